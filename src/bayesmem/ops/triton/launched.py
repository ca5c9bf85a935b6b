"""Launches of a Triton kernel at a fraction of what they cost the host.

Triton binds and specialises all arguments anew at every launch, and reads its settings from the environment, which
takes the host longer than some kernels take the GPU. What it would find again is kept here by all that it depends on,
and the compiled kernel is called as Triton lets one call it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from triton import JITFunction

ALIGNED = 16  # bytes: pointers, and whole numbers, that are multiples of it are compiled for as such


class Launched:
    """A kernel of tensors, numbers and ``None``, then options by name, launched as any: ``kernel[grid](...)``.

    Args:
        kernel: made by ``triton.jit``.
    """

    def __init__(self, kernel: Any):
        self.kernel = kernel
        self.compiled: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kernel, name)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *args, **options: self._launch(grid, args, options)

    def _launch(self, grid: tuple[int, ...], args: tuple[Any, ...], options: dict[str, Any]) -> None:
        kinds = [
            None if x is None else (x.dtype, x.data_ptr() % ALIGNED == 0) if isinstance(x, Tensor) else _kind(x)
            for x in args
        ]
        key = (torch.cuda.current_device(), *kinds, *options.items())
        known = self.compiled.get(key)
        if known is None:
            compiled = self.kernel[grid](*args, **options)
            self.compiled[key] = compiled, tuple(options[name] for name in self.kernel.arg_names[len(args) :])
            return
        compiled, constants = known
        compiled[(*grid, 1, 1)[:3]](*args, *constants)


def _kind(x: int | float) -> tuple[Any, ...]:
    """What Triton specialises a number by."""
    if isinstance(x, bool) or not isinstance(x, int):
        return (type(x),)
    return x == 1, x % ALIGNED == 0, x.bit_length() > 31  # 32 bits or 64


def launched(kernel: Any) -> Any:
    """The same kernel, launched cheaply; as it is where Triton interprets, which has nothing to compile."""
    return Launched(kernel) if isinstance(kernel, JITFunction) else kernel


def cdiv(size: int, step: int) -> int:
    """How many steps cover ``size``; Triton's own, which kernels can call too, takes the host some microseconds."""
    return -(-size // step)


def power_of_two(size: int) -> int:
    """The least that is ``size`` (at least 1) or more; likewise."""
    return 1 << (size - 1).bit_length()

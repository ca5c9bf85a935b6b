"""Launches of a Triton kernel at a fraction of what they cost the host.

Triton binds and specialises all arguments anew at every launch, and reads its settings from the environment, which
takes the host longer than some kernels take the GPU. What it would find again is kept here by all that it depends on,
and the compiled kernel is called as Triton lets one call it. Its hooks, and its check that a kernel's global names are
what they were, run at the first launch of a kind only.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from triton import JITFunction

ALIGNED = 16  # bytes: pointers, and whole numbers, that are multiples of it are compiled for as such


class Launched:
    """A kernel of tensors, numbers and ``None`` in their order, and ``constexpr`` by name, launched as any.

    Args:
        kernel: made by ``triton.jit``; its ``constexpr`` parameters come last.
    """

    def __init__(self, kernel: Any):
        self.kernel = kernel
        self.compiled: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}
        self.given = sum(not param.is_constexpr for param in kernel.params)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *args, **options: self._launch(grid, args, options)

    def _launch(self, grid: tuple[int, ...], args: tuple[Any, ...], options: dict[str, Any]) -> None:
        kinds = [
            None if x is None else (x.dtype, x.data_ptr() % ALIGNED == 0) if isinstance(x, Tensor) else _kind(x)
            for x in args
        ]
        key = (torch.cuda.current_device(), *kinds, *options.items())
        known = self.compiled.get(key)
        if known is not None:
            compiled, constants = known
            compiled[(*grid, 1, 1)[:3]](*args, *constants)
            return
        if len(args) != self.given:
            raise TypeError(
                f"{len(args)} arguments in their order; expected {self.given}, and every constexpr by its name."
            )
        constants = tuple(options[name] for name in self.kernel.arg_names[self.given :])
        compiled = self.kernel[grid](*args, **options)
        if compiled is not None:  # a hook of Triton's may forbid to compile
            self.compiled[key] = compiled, constants


def _kind(x: int | float) -> tuple[Any, ...]:
    """What Triton specialises a number by."""
    if isinstance(x, bool) or not isinstance(x, int):
        return (type(x),)
    return x == 1, x % ALIGNED == 0, x.bit_length() > 31  # 32 bits or 64


def launched(kernel: Any) -> Any:
    """The same kernel, launched cheaply.

    As it is where Triton interprets, which has nothing to compile, and on AMD's GPUs, for which it specialises by the
    size of what lies behind a pointer too.
    """
    return Launched(kernel) if isinstance(kernel, JITFunction) and torch.version.hip is None else kernel

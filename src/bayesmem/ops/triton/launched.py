"""Launches of a Triton kernel at a fraction of what they cost the host.

Triton binds and specialises all arguments anew at every launch, and reads its settings from the environment, which
takes the host longer than some kernels take the GPU. What it would find again is kept here by all that it depends on,
and the compiled kernel is run as torch.compile runs those that it makes. Its hooks on compilation, and its check that a
kernel's global names are what they were, run at the first launch of a kind only; where a profiler hooks on launches,
they go Triton's own way.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from triton import JITFunction, knobs

from bayesmem.ops.triton.cuda_launch import current_stream
from bayesmem.ops.triton.recording import recording

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
        device = torch.cuda.current_device()
        kinds = [
            (x.dtype if x.data_ptr() % ALIGNED == 0 else (x.dtype,)) if isinstance(x, Tensor) else _kind(x)
            for x in args
        ]
        key = (device, *kinds, *options, *options.values())
        known = self.compiled.get(key)
        if known is not None and not watched():
            shape = (*grid, 1, 1)[:3]
            _again(*known, shape, current_stream(device), args)
            if (recorder := recording()) is not None:
                recorder.note(partial(_again, *known, shape), args)
            return
        if len(args) != self.given:
            raise TypeError(
                f"{len(args)} arguments in their order; expected {self.given}, and every constexpr by its name."
            )
        constants = tuple(options[name] for name in self.kernel.arg_names[self.given :])
        compiled = self.kernel[grid](*args, **options)
        if compiled is not None:  # a hook of Triton's may forbid to compile
            self.compiled[key] = compiled, constants


def _again(compiled: Any, constants: tuple[Any, ...], shape: tuple[int, ...], stream: int, args: Sequence[Any]) -> None:
    """Run what Triton compiled; tensors may be given as their addresses."""
    at = (*shape, stream, compiled.function, compiled.packed_metadata)
    compiled.run(*at, None, None, None, *args, *constants)  # no metadata, no hooks


def watched() -> bool:
    """Whether something hooks on launches; since Triton 3.5 hooks come in chains, which may be empty."""
    enter, leave = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    return bool(getattr(enter, "calls", enter) or getattr(leave, "calls", leave))


def _kind(x: int | float | None) -> tuple[Any, ...] | None:
    """What Triton specialises a number by."""
    if x is None:
        return None
    if isinstance(x, bool) or not isinstance(x, int):
        return (type(x),)
    return x == 1, x % ALIGNED == 0, x.bit_length() > 31  # 32 bits or 64


def launched(kernel: Any) -> Any:
    """The same kernel, launched cheaply.

    As it is where Triton interprets, which has nothing to compile, and on AMD's GPUs, for which it specialises by the
    size of what lies behind a pointer too.
    """
    return Launched(kernel) if isinstance(kernel, JITFunction) and torch.version.hip is None else kernel

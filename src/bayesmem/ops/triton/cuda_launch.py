"""Launch of a compiled CUDA kernel by the driver itself: PyTorch's way costs the host more than one token's work.

``torch.cuda._compile_kernel``'s kernels open the driver's library anew at every call, and make four Python objects of
every argument.
"""

import ctypes
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from struct import Struct
from typing import Any

import torch
from torch import Tensor

from bayesmem.ops.triton.recording import recording, refuse

Room = tuple[Any, Any, Struct]


@lru_cache(maxsize=1)
def driver() -> ctypes.CDLL | None:
    """CUDA's driver with its launch declared, or ``None`` where there is none."""
    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        pointer, whole = ctypes.c_void_p, ctypes.c_uint
        library.cuLaunchKernel.argtypes = [pointer, *[whole] * 7, pointer, pointer, pointer]
        library.cuMemsetD8Async.argtypes = [pointer, ctypes.c_ubyte, ctypes.c_size_t, pointer]
    except (OSError, AttributeError):
        return None
    return library


def current_stream(device: int) -> int:
    """Handle of a device's current stream: in a graph's capture, of the captured one."""
    raw = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    found: int = torch.cuda.current_stream(device).cuda_stream if raw is None else raw(device)
    return found


def aligned(x: Tensor) -> Tensor:
    """The same, from an address that 16 bytes can be read at: a copy, where a view begins elsewhere."""
    return x if x.data_ptr() % 16 == 0 else x.clone()


def launcher(kernel: Callable[..., None], device: int) -> Callable[..., None]:
    """The kernel, called as before and cheaply; in PyTorch's way where it or the driver lack what that takes.

    Args:
        kernel: of ``torch.cuda._compile_kernel``.
        device: index of the GPU that it was compiled for.
    """
    library, handle = driver(), getattr(kernel, "func", None)
    ordered = sys.byteorder == "little"  # a whole number lies in its slot's low bytes
    if library is None or not isinstance(handle, ctypes.c_void_p) or not ordered:

        def guarded(*given: Any, **named: Any) -> None:
            refuse("the driver is not called by itself")
            with torch.cuda.device(device):
                kernel(*given, **named)

        return guarded
    return Launcher(kernel, handle, library, device)


def _room(count: int) -> Room:
    """For so many arguments, each in a slot as wide as a pointer: the slots, their addresses, and what writes them."""
    kind = ctypes.c_void_p * count
    values = kind()
    first, width = ctypes.addressof(values), ctypes.sizeof(ctypes.c_void_p)
    return values, kind(*range(first, first + width * count, width)), Struct(f"{count}q")


class Launcher:
    """A kernel on one device, which takes as many arguments at every call. Threads may share it.

    Args:
        kernel: PyTorch's, kept alive.
        handle: the driver's.
        library: the driver.
        device: index of the GPU.
    """

    def __init__(self, kernel: Callable[..., None], handle: ctypes.c_void_p, library: Any, device: int):
        self.kernel, self.handle, self.library, self.device = kernel, handle, library, device
        self.launch = library.cuLaunchKernel
        self._idle: list[Room] = []  # one a thread at most: another may run while the driver is asked

    def __call__(
        self,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        args: Sequence[Tensor | int],
        shared_mem: int = 0,
    ) -> None:
        """Launch on the device's current stream.

        Args:
            grid: blocks.
            block: threads of one.
            args: the kernel's, in order: tensors of the device, and whole numbers for ``int``.
            shared_mem: bytes of dynamic shared memory of a block.

        Raises:
            RuntimeError: the driver refuses.
        """
        if torch.cuda.current_device() != self.device:
            with torch.cuda.device(self.device):
                self(grid, block, args, shared_mem)
            return
        numbers = [x if isinstance(x, int) else x.data_ptr() for x in args]
        self.again((*grid, *block, shared_mem), current_stream(self.device), numbers)
        if (recorder := recording()) is not None:
            recorder.note(partial(self.again, (*grid, *block, shared_mem)), args)

    def again(self, shape: tuple[int, ...], stream: int, numbers: Sequence[int]) -> None:
        """Launch with arguments that are numbers already.

        Args:
            shape: blocks and threads along three axes each, and bytes of shared memory.
            stream: of the device, which is current.
            numbers: addresses, and what ``int`` is given.

        Raises:
            RuntimeError: the driver refuses.
        """
        room = self._idle.pop() if self._idle else _room(len(numbers))
        values, places, written = room
        written.pack_into(values, 0, *numbers)
        failed = self.launch(self.handle, *shape, stream, places, None)
        self._idle.append(room)
        if failed:
            told = ctypes.c_char_p()
            self.library.cuGetErrorString(failed, ctypes.byref(told))
            raise RuntimeError(f"CUDA error {failed} at a kernel's launch: {(told.value or b'unknown').decode()}")


def clear(size: int, stream: int, numbers: Sequence[int]) -> None:
    """Set so many bytes from the first number, an address, to zero.

    Raises:
        RuntimeError: the driver refuses.
    """
    library = driver()
    failed = 1 if library is None else library.cuMemsetD8Async(numbers[0], 0, size, stream)
    if failed:
        raise RuntimeError(f"CUDA error {failed} at setting memory to zero")

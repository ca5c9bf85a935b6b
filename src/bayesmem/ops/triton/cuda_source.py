"""CUDA C++ to a kernel at first use, by the NVRTC that PyTorch carries; no CUDA toolkit is needed."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from bayesmem.ops.triton.cuda_launch import launcher
from bayesmem.ops.triton.device import limits

HERE = Path(__file__).parent


def compiled(
    name: str, files: Sequence[str], defines: Mapping[str, int], device: int, shared_bytes: int = 0
) -> Callable[..., None] | None:
    """A kernel of these sources, or ``None`` where it could not be compiled (said once for every kind).

    Args:
        name: of the kernel.
        files: beside this one, in order.
        defines: what they are compiled with.
        device: index of the GPU.
        shared_bytes: dynamic shared memory of a block, where it is more than every device gives.
    """
    source = "".join(f"#define {key} {value}\n" for key, value in defines.items())
    source += "".join((HERE / file).read_text() for file in files)
    try:
        with torch.cuda.device(device), without_toolkit():
            kernel = torch.cuda._compile_kernel(source, name, compute_capability=architecture(device))
            if shared_bytes:
                kernel.set_shared_memory_config(shared_bytes)
    except (RuntimeError, OSError, AttributeError, ImportError) as reason:
        warnings.warn(
            f"bayesmem: the CUDA kernel {name} did not compile ({reason}); the slower Triton one is used.",
            stacklevel=2,
        )
        return None
    return launcher(kernel, device)


def architecture(device: int) -> str:
    """Of a GPU, as compilers name it; Hopper's own instructions (wgmma) need the name that no other chip runs."""
    capability = limits(torch.device("cuda", device)).capability
    return "".join(map(str, capability)) + ("a" if capability == (9, 0) else "")


@contextmanager
def without_toolkit() -> Iterator[None]:
    """Let PyTorch compile without a CUDA toolkit: it asks for one's headers, and our sources include none."""
    from torch.utils import cpp_extension

    if cpp_extension.CUDA_HOME is not None:
        yield
        return
    cpp_extension.CUDA_HOME = str(HERE)
    try:
        yield
    finally:
        cpp_extension.CUDA_HOME = None

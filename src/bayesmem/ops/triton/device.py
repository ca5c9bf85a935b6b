"""What a device gives a kernel: read once, asked for by every choice of block sizes."""

from functools import lru_cache
from typing import NamedTuple

import torch

LARGE_SHARED = 160 * 1024  # bytes from which the larger tiles are taken: A100 gives 163 KiB, H100 227, most others 99


class Device(NamedTuple):
    """Limits of a device.

    Attributes:
        capability: major and minor, of NVIDIA's.
        processors: multiprocessors.
        shared: bytes of shared memory that one program may take.
    """

    capability: tuple[int, int]
    processors: int
    shared: int


@lru_cache
def limits(device: torch.device) -> Device:
    """Limits of ``device``; a CPU, which interprets kernels, passes for an H100."""
    if device.type != "cuda":
        return Device((9, 0), 132, 227 * 1024)
    found = torch.cuda.get_device_properties(device)
    shared = found.shared_memory_per_block_optin  # type: ignore[attr-defined]
    return Device((found.major, found.minor), found.multi_processor_count, shared)


def matmul_precision() -> str:
    """Of float32 matrix products, ``highest`` if they are whole; whichever of torch's two settings was used."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # the newer one, fp32_precision, was; this getter then refuses
        return "high" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "highest"

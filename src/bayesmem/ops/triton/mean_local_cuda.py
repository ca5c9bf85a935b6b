"""Gradients of the mean pass inside a chunk in CUDA C++, for Hopper (mean_local.cu tells how it works)."""

from collections.abc import Callable
from functools import lru_cache

import torch

from bayesmem.ops.triton.hopper import TOKENS, fits, hopper_kernel, hopper_settings

NAME = "mean_local"
VALUE_DIMS = (64, 128, 256)  # of which threads bring whole rows
SHARED, RESERVED = 228 * 1024, 1024  # bytes of a multiprocessor, and of those what every block takes beside its own


def settings(key_dim: int, value: int) -> dict[str, int]:
    """What the source is compiled with."""
    blocks = min(SHARED // (shared_bytes(key_dim, value) + RESERVED), 512 // (2 * key_dim))
    return hopper_settings(key_dim, blocks) | {"VDIM": value}


def shared_bytes(key_dim: int, value: int) -> int:
    """Size of ``struct Shared``."""
    rows, values, square, state = (2 * size for size in (64 * key_dim, 64 * value, 64 * 64, key_dim * value))
    return 3 * max(rows, values) + max(state, 2 * rows) + max(state, rows + 2 * square) + 4 * 4 * TOKENS


@lru_cache
def cuda_local(key_dim: int, value: int, chunk: int, device: torch.device) -> Callable[..., None] | None:
    """What launches the kernel over so many chunks and heads with its arguments, or ``None`` where a Triton one is to.

    Args:
        key_dim: K.
        value: V.
        chunk: tokens a chunk.
        device: where.
    """
    if value not in VALUE_DIMS or not fits(key_dim, chunk, device):
        return None
    return hopper_kernel(NAME, settings(key_dim, value), shared_bytes(key_dim, value), device.index)

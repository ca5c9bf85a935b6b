"""The tokens of the covariance's backward in CUDA C++, for Hopper (covariance_tokens.cu tells how it works)."""

from collections.abc import Callable
from functools import lru_cache

import torch

from bayesmem.ops.triton.hopper import TOKEN_PLANE, TOKENS, fits_pairs, hopper_kernel, hopper_settings

NAME = "covariance_tokens"


def settings(key_dim: int) -> dict[str, int]:
    """What the source is compiled with."""
    return hopper_settings(key_dim, 2)


def shared_bytes(key_dim: int) -> int:
    """Size of ``struct Shared``."""
    rows, square = 2 * TOKENS * key_dim, TOKENS // 4 * TOKEN_PLANE
    vectors = 16 + key_dim // 64 + key_dim // 16
    return 2 * rows + rows + max(2 * square, 2 * rows) + square + 4 * (TOKENS * vectors + 2)


@lru_cache
def cuda_tokens(key_dim: int, chunk: int, prec: str, device: torch.device) -> Callable[..., None] | None:
    """What launches the kernel over so many chunks and heads with its arguments, or ``None`` where a Triton one is to.

    The arguments are those of ``fits_pairs``.
    """
    if not fits_pairs(key_dim, chunk, prec, device):
        return None
    return hopper_kernel(NAME, settings(key_dim), shared_bytes(key_dim), device.index)

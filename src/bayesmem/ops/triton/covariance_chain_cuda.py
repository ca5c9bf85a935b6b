"""The reverse chain of the covariance's backward in CUDA C++, for Hopper (covariance_chain.cu tells how it works)."""

from collections.abc import Callable
from functools import lru_cache

import torch

from bayesmem.ops.triton.covariance_config import RENEW
from bayesmem.ops.triton.covariance_cuda import KEY_KINDS
from bayesmem.ops.triton.cuda_source import compiled
from bayesmem.ops.triton.device import limits

CAPABILITY = (9, 0)  # products of four warps with what lies in shared memory
KEY_DIMS = (64, 128)  # whole warpgroups
TOKENS = 64
FILES = ("covariance_prelude.cu", "covariance_wgmma.cu", "covariance_chain_prelude.cu", "covariance_chain.cu")


def settings(key_dim: int) -> dict[str, int]:
    """What the source is compiled with."""
    blocks = 2 if key_dim == 64 else 1  # that share a multiprocessor
    machine = {"CLUSTER": 1, "KEY_KIND": KEY_KINDS[torch.bfloat16], "BLOCKS": blocks}
    return {"KDIM": key_dim, "THREADS": 2 * key_dim, "RENEW": RENEW, **machine}


def shared_bytes(key_dim: int) -> int:
    """Size of ``struct Shared``."""
    token_plane, channel_plane = 2 * (8 * TOKENS + 8), 2 * (8 * key_dim + 8)  # of 8 numbers of the contraction
    sent, drive, met = key_dim // 4 * token_plane, TOKENS // 4 * channel_plane, TOKENS // 4 * token_plane
    alpha = 4 * key_dim * (TOKENS + 8)
    return 3 * 4 * TOKENS * key_dim + max(sent, drive) + met + alpha + 4 * (TOKENS + key_dim // 16)


@lru_cache
def _kernel(key_dim: int, device: int) -> Callable[..., None] | None:
    return compiled("covariance_chain", FILES, settings(key_dim), device, shared_bytes(key_dim))


def cuda_chain(key_dim: int, chunk: int, prec: str, device: torch.device) -> Callable[..., None] | None:
    """What launches the kernel over so many chains with its arguments, or ``None`` where a Triton one is to do it.

    Args:
        key_dim: K.
        chunk: tokens a chunk.
        prec: of the products: only those of pairs of bfloat16 are made here.
        device: where, with its index.
    """
    if device.type != "cuda" or torch.version.cuda is None or prec != "bf16x3" or key_dim not in KEY_DIMS:
        return None
    if chunk != TOKENS or limits(device).capability != CAPABILITY:
        return None
    kernel = _kernel(key_dim, device.index)
    if kernel is None:
        return None
    shared = shared_bytes(key_dim)
    return lambda chains, args: kernel(grid=(chains, 1, 1), block=(2 * key_dim, 1, 1), args=args, shared_mem=shared)

"""The covariance's backward in CUDA C++, for Hopper: covariance_prepare.cu, covariance_chain.cu, covariance_tokens.cu.

They multiply pairs of bfloat16 by whole warpgroups, as Triton's kernels of the same equations do with more waiting.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from bayesmem.ops.triton.cuda_source import compiled
from bayesmem.ops.triton.device import limits

CAPABILITY = (9, 0)  # products of four warps with what lies in shared memory
KEY_DIMS = (64, 128)  # whole warpgroups
TOKENS = 64
RENEW = 8  # chunks that share an overlap in the chain, as ``covariance_config.chain_config`` has it for pairs
PREPARE, CHAIN, TOKEN = "covariance_prepare", "covariance_chain", "covariance_tokens"
MACHINE, SHARED = "covariance_pairs_prelude.cu", "covariance_pairs.cu"


def settings(name: str, key_dim: int) -> dict[str, int]:
    """What a kernel is compiled with; so many BLOCKS are to share a multiprocessor."""
    blocks = ({64: 2, 128: 1} if name == CHAIN else {64: 3, 128: 2})[key_dim]
    return {"KDIM": key_dim, "THREADS": 2 * key_dim, "BLOCKS": blocks} | ({"RENEW": RENEW} if name == CHAIN else {})


def shared_bytes(name: str, key_dim: int) -> int:
    """Size of its ``struct Shared``."""
    token_plane, channel_plane = 2 * (8 * TOKENS + 8), 2 * (8 * key_dim + 8)  # of 8 numbers of the contraction
    square, tall, wide = 2 * TOKENS // 8 * token_plane, 2 * key_dim // 8 * token_plane, 2 * TOKENS // 8 * channel_plane
    rows = 2 * 2 * TOKENS * key_dim  # a pair as it lies in memory
    warps = key_dim // 16
    if name == CHAIN:
        alpha = 4 * key_dim * (TOKENS + 8)
        return rows + 2 * rows + max(tall, wide) + square + alpha + 4 * (TOKENS + warps)
    if name == PREPARE:
        return rows // 2 + max(4 * square, 2 * rows) + 4 * (4 * 16 * 17 + 5 * TOKENS)
    return max(2 * square, rows) + max(tall, rows) + rows // 2 + square + 4 * TOKENS * (13 + 2 * warps)


@lru_cache
def _kernel(name: str, key_dim: int, device: int) -> Callable[..., None] | None:
    files = (MACHINE, SHARED, f"{name}.cu")
    return compiled(name, files, settings(name, key_dim), device, shared_bytes(name, key_dim))


def pairs_kernel(name: str, key_dim: int, chunk: int, prec: str, device: torch.device) -> Callable[..., None] | None:
    """What launches a kernel with so many blocks and its arguments, or ``None`` where the Triton one is to do it.

    Args:
        name: ``PREPARE``, ``CHAIN`` or ``TOKEN``.
        key_dim: K.
        chunk: tokens a chunk.
        prec: of the products: only those of pairs of bfloat16 are made here.
        device: where.
    """
    if device.type != "cuda" or torch.version.cuda is None or prec != "bf16x3" or key_dim not in KEY_DIMS:
        return None
    if chunk != TOKENS or limits(device).capability != CAPABILITY:
        return None
    kernel = _kernel(name, key_dim, device.index)
    if kernel is None:
        return None
    shared = shared_bytes(name, key_dim)

    def launch(blocks: int, args: Sequence[Tensor | int]) -> None:
        kernel(grid=(blocks, 1, 1), block=(2 * key_dim, 1, 1), args=args, shared_mem=shared)

    return launch

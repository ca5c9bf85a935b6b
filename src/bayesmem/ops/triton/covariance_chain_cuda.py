"""The reverse chain of the covariance's backward in CUDA C++, for Hopper (covariance_chain.cu tells how it works)."""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from bayesmem.ops.triton.cuda_source import compiled
from bayesmem.ops.triton.device import limits
from bayesmem.ops.triton.spans import Spans

CAPABILITY = (9, 0)  # products of four warps with what lies in shared memory
KEY_DIMS = (64, 128)  # whole warpgroups
TOKENS = 64
FILES = ("covariance_chain_prelude.cu", "covariance_chain.cu")


def settings(key_dim: int, renew: int) -> dict[str, int]:
    """What the source is compiled with; an overlap is renewed every ``renew`` chunks."""
    return {"KDIM": key_dim, "THREADS": 2 * key_dim, "RENEW": renew}


def shared_bytes(key_dim: int) -> int:
    """Size of ``struct Shared``."""
    token_plane, channel_plane = 2 * (8 * TOKENS + 8), 2 * (8 * key_dim + 8)
    gain = read = 4 * TOKENS * key_dim
    sent, drive, met = (
        2 * n // 8 * plane for n, plane in ((key_dim, token_plane), (TOKENS, channel_plane), (TOKENS, token_plane))
    )
    alpha = 4 * key_dim * (TOKENS + 8)
    return gain + 2 * read + max(sent, drive) + met + alpha + 4 * (TOKENS + key_dim // 16)


@lru_cache
def _kernel(key_dim: int, renew: int, device: int) -> Callable[..., None] | None:
    return compiled("covariance_chain", FILES, settings(key_dim, renew), device, shared_bytes(key_dim))


def cuda_chain(final_cov: Tensor, spans: Spans, prec: str, renew: int) -> Callable[..., None] | None:
    """A function that launches the kernel over all chains, or ``None`` where the Triton ones are to do it.

    It takes what the kernel takes before ``seq_start``: the pair of gains, alpha, the pair of Kbar, log retention,
    R_C / R_t, checkpoints and final covariance; and fills N as a pair, S, trace, overlap, and at last what held
    dLoss / dP of the ends with that of the beginnings.

    Args:
        final_cov: ``[S, H, K, K]``.
        spans: where sequences and chunks lie.
        prec: of the products: only those of pairs of bfloat16 are made here.
        renew: how many chunks share an overlap.
    """
    heads, key_dim, device = final_cov.shape[1], final_cov.shape[-1], final_cov.device
    if device.type != "cuda" or torch.version.cuda is None or prec != "bf16x3" or key_dim not in KEY_DIMS:
        return None
    if spans.chunk_size != TOKENS or limits(device).capability != CAPABILITY:
        return None
    kernel = _kernel(key_dim, renew, device.index)
    if kernel is None:
        return None

    def launch(*tensors: Tensor) -> None:
        kernel(
            grid=(spans.sequences * heads, 1, 1),
            block=(2 * key_dim, 1, 1),
            args=[*tensors, spans.seq_start, spans.chunk_first, heads],
            shared_mem=shared_bytes(key_dim),
        )

    return launch

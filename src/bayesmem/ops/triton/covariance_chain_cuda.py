"""The reverse chain of the covariance's backward in CUDA C++, for Hopper (covariance_chain.cu tells how it works)."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from bayesmem.ops.triton.covariance_config import RENEW
from bayesmem.ops.triton.covariance_cuda import KEY_KINDS
from bayesmem.ops.triton.cuda_source import compiled
from bayesmem.ops.triton.device import limits

CAPABILITY = (9, 0)  # products of four warps with what lies in shared memory
KEY_DIMS = (64, 128)  # whole warpgroups
TOKENS = 64
MACHINE = ("covariance_prelude.cu", "covariance_wgmma.cu", "covariance_chain_prelude.cu")  # tests have others
SOURCES = ("covariance_keys.cu", "covariance_cuts.cu", "covariance_chain.cu")
FILES = (*MACHINE, *SOURCES)


def settings(key_dim: int) -> dict[str, int]:
    """What the source is compiled with."""
    blocks = 2 if key_dim == 64 else 1  # that share a multiprocessor
    machine = {"CLUSTER": 1, "KEY_KIND": KEY_KINDS[torch.bfloat16], "BLOCKS": blocks}
    return {"K": key_dim, "KDIM": key_dim, "THREADS": 2 * key_dim, "RENEW": RENEW, "MEND": 0, **machine}


def shared_bytes(key_dim: int) -> int:
    """Size of ``struct Shared``."""
    token_plane, channel_plane = 2 * (8 * TOKENS + 8), 2 * (8 * key_dim + 8)  # of 8 numbers of the contraction
    sent, drive, met = key_dim // 4 * token_plane, TOKENS // 4 * channel_plane, TOKENS // 4 * token_plane
    alpha = 4 * key_dim * (TOKENS + 8)
    return 3 * 4 * TOKENS * key_dim + max(sent, drive) + met + alpha + 4 * (TOKENS + key_dim // 16 + 8)


@lru_cache
def _kernel(key_dim: int, device: int, mend: bool = False) -> Callable[..., None] | None:
    chosen = settings(key_dim) | {"MEND": int(mend)}
    return compiled(kernel_name(mend), FILES, chosen, device, shared_bytes(key_dim))


def kernel_name(mend: bool) -> str:
    """Of what the sources compile to."""
    return "covariance_chain_mend" if mend else "covariance_chain"


def cuda_chain(key_dim: int, chunk: int, prec: str, device: torch.device) -> Callable[..., None] | None:
    """What launches the kernel over so many chains, cut into segments at most, with its arguments.

    Args:
        key_dim: K.
        chunk: tokens a chunk.
        prec: of the products: only those of pairs of bfloat16 are made here.
        device: where, with its index.

    Returns:
        ``None`` where a Triton kernel is to do it.
    """
    if device.type != "cuda" or torch.version.cuda is None or prec != "bf16x3" or key_dim not in KEY_DIMS:
        return None
    if chunk != TOKENS or limits(device).capability != CAPABILITY:
        return None
    kernel = _kernel(key_dim, device.index)
    if kernel is None:
        return None
    shared = {"block": (2 * key_dim, 1, 1), "shared_mem": shared_bytes(key_dim)}

    def launch(chains: int, segments: int, args: Sequence[Tensor | int]) -> None:
        kernel(grid=(chains * segments, 1, 1), args=(*args, segments), **shared)
        if segments > 1:
            mend = _kernel(key_dim, device.index, True)
            if mend is None:
                raise RuntimeError("the CUDA kernel that mends segments did not compile where the one that cuts did")
            mend(grid=(chains, 1, 1), args=(*args, segments), **shared)

    return launch

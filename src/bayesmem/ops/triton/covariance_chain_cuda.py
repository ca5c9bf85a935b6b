"""The reverse chain of the covariance's backward in CUDA C++, for Hopper (covariance_chain.cu tells how it works)."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from bayesmem.ops.triton.covariance_config import RENEW
from bayesmem.ops.triton.hopper import TOKEN_PLANE, TOKENS, fits_pairs, hopper_kernel, hopper_settings

NAME = "covariance_chain"


def settings(key_dim: int, keys: torch.dtype, mend: bool = False) -> dict[str, int]:
    """What the source is compiled with."""
    return hopper_settings(key_dim, 2 if key_dim == 64 else 1, keys) | {"RENEW": RENEW, "MEND": int(mend)}


def shared_bytes(key_dim: int) -> int:
    """Size of ``struct Shared``."""
    channel_plane = 2 * (8 * key_dim + 8)
    sent, drive, met = key_dim // 4 * TOKEN_PLANE, TOKENS // 4 * channel_plane, TOKENS // 4 * TOKEN_PLANE
    alpha, runs = 4 * key_dim * (TOKENS + 8), 4 * 5  # the last: how it is cut, what is told
    return 3 * 4 * TOKENS * key_dim + max(sent, drive) + met + alpha + 4 * (TOKENS + key_dim // 16) + runs


@lru_cache
def cuda_chain(
    key_dim: int, keys: torch.dtype, chunk: int, prec: str, device: torch.device
) -> Callable[..., None] | None:
    """What launches the kernel over so many chains, cut into so many segments at most, with its arguments.

    ``None`` where a Triton kernel is to do it. The arguments are those of ``fits_pairs``, and the dtype of keys.
    """
    if not fits_pairs(key_dim, chunk, prec, device):
        return None
    run, mend = (
        hopper_kernel(name, settings(key_dim, keys, bool(again)), shared_bytes(key_dim), device.index)
        for again, name in enumerate((NAME, f"{NAME}_mend"))
    )
    if run is None or mend is None:
        return None

    def launch(chains: int, segments: int, args: Sequence[Tensor | int]) -> None:
        run(chains * segments, (*args, segments))
        if segments > 1:
            mend(chains, (*args, segments))

    return launch

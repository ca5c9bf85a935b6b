"""Block sizes, warps and stages of the kernels of the covariance's backward; nothing is tuned at run time.

Blocks of 32 channels leave the parallel kernels registers for their C x C tiles.
"""

from typing import Any

from torch import Tensor

from bayesmem.ops.triton.device import LARGE_SHARED, limits
from bayesmem.ops.triton.mean_config import Tuning, put_over
from bayesmem.ops.triton.sizes import block

Config = dict[str, Any]

# Shared memory (bytes) that the chain takes to hold Lambda whole at K = 128: what a Hopper has.
WHOLE_SHARED = 200 * 1024
# Chunks of the chain that share an overlap, of pairs.
RENEW = 8


def prepare_config(dgain: Tensor, prec: str, tuning: Tuning | None) -> Config:
    """Of ``covariance_prepare``: BK channels at a time in, OUT_BLOCK out."""
    size = dgain.shape[-1]
    stages = 3 if prec == "bf16x3" and limits(dgain.device).shared >= LARGE_SHARED else 2
    config = {"BK": block(size, 32), "OUT_BLOCK": block(size, 64), "PREC": prec, "num_warps": 4, "num_stages": stages}
    return put_over("prepare", config, tuning)


def chain_config(final_cov: Tensor, prec: str, tuning: Tuning | None) -> Config:
    """Of ``covariance_chain``: BK, at least K where Lambda stays in registers, otherwise the size of its tiles.

    <Lambda, P> is made anew every RENEW chunks, between which it is a sum: rarer is faster, and rounds more than
    float32 streams are meant to.
    """
    whole = block(final_cov.shape[-1], 256)
    fits = whole <= 64 or (whole == 128 and limits(final_cov.device).shared >= WHOLE_SHARED)
    blocks = {"BK": whole if fits else 64, "RENEW": RENEW if prec == "bf16x3" else 1, "PREC": prec}
    config = {**blocks, "num_warps": 8 if fits and whole == 128 else 4, "num_stages": 1}
    return put_over("chain", config, tuning)


def transition_config(gain: Tensor, prec: str, tuning: Tuning | None) -> Config:
    """Of ``covariance_transition``: BA columns of A a program, whose rows stand in blocks of BH, at least half of K.

    Products of float32 over 128 channels do not fit the registers; over 64 they do.
    """
    size = gain.shape[-1]
    blocks = {"BH": block(size, 64), "BA": block(size, 32)}
    config = {**blocks, "PREC": prec, "num_warps": 4, "num_stages": 1}
    return put_over("transition", config, tuning)


def tokens_config(k: Tensor, prec: str, tuning: Tuning | None) -> Config:
    """Of ``covariance_tokens``: BK channels at a time; then OUT_BLOCK of keys, summed over SUM_BLOCK a step.

    Without OUT_BLOCK it is ``covariance_tokens_whole``'s, BK at least K: for streams of 16 bits, where K is at most 128
    and no blocks are asked for.
    """
    size = k.shape[-1]
    blocks = {"BK": block(size, 32), "OUT_BLOCK": block(size, 64), "SUM_BLOCK": block(size, 32)}
    if prec == "bf16x3" and size <= 128 and not blocks.keys() & (tuning or {}).get("tokens", {}).keys():
        blocks = {"BK": block(size, 128)}
    return put_over("tokens", {**blocks, "PREC": prec, "num_warps": 4, "num_stages": 2}, tuning)


def retention_config(k: Tensor, prec: str, tuning: Tuning | None) -> Config:
    """Of ``covariance_retention``: BK channels at a time; three C x C sums want the registers of 8 warps."""
    config = {"BK": block(k.shape[-1], 32), "PREC": prec, "num_warps": 8, "num_stages": 2}
    return put_over("retention", config, tuning)


def product_config(gain: Tensor, product: str, prec: str, tuning: Tuning | None) -> Config:
    """Of ``variance``: OUT_BLOCK columns of a product at a time, summed over SUM_BLOCK a step."""
    size = gain.shape[-1]
    blocks = {"OUT_BLOCK": block(size, 64), "SUM_BLOCK": block(size, 32)}
    return put_over(product, {**blocks, "PREC": prec, "num_warps": 4, "num_stages": 2}, tuning)

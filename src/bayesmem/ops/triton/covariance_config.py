"""Block sizes, warps and stages of the kernels of the covariance's backward; nothing is tuned at run time.

Blocks of 32 channels leave the parallel kernels registers for their C x C tiles.
"""

import torch
from torch import Tensor

from bayesmem.ops.triton.mean_config import Config, Tuning, block

# Shared memory (bytes) that the chain takes to hold Lambda whole at K = 128: what a Hopper has.
WHOLE_SHARED = 200 * 1024


def prepare_config(gain: Tensor, tuning: Tuning | None) -> Config:
    """Of ``covariance_prepare``: BK."""
    size = gain.shape[-1]
    config = {"BK": block(size, 32), "OUT_BLOCK": block(size, 64), "num_warps": 4, "num_stages": 2}
    return _put("prepare", config, tuning)


def chain_config(gain: Tensor, prec: str, tuning: Tuning | None) -> Config:
    """Of ``covariance_chain``: BK, at least K where Lambda stays in registers, otherwise the size of its tiles."""
    whole = block(gain.shape[-1], 256)
    fits = whole <= 64 or (whole == 128 and prec == "tf32" and _shared_memory(gain) >= WHOLE_SHARED)
    config = {"BK": whole if fits else 64, "num_warps": 4 if whole <= 64 else 8, "num_stages": 1}
    return _put("chain", config, tuning)


def tokens_config(gain: Tensor, tuning: Tuning | None) -> Config:
    """Of ``covariance_tokens``: BK."""
    return _put("tokens", {"BK": block(gain.shape[-1], 32), "num_warps": 4, "num_stages": 2}, tuning)


def product_config(gain: Tensor, product: str, tuning: Tuning | None) -> Config:
    """Of ``variance``: OUT_BLOCK columns of a product at a time, summed over SUM_BLOCK a step."""
    size = gain.shape[-1]
    config = {"OUT_BLOCK": block(size, 64), "SUM_BLOCK": block(size, 32), "num_warps": 4, "num_stages": 2}
    return _put(product, config, tuning)


def _shared_memory(x: Tensor) -> int:
    """Bytes that a program may take; the interpreter passes for an H100."""
    if x.device.type != "cuda":
        return 227 * 1024
    return torch.cuda.get_device_properties(x.device).shared_memory_per_block_optin


def _put(kernel: str, config: Config, tuning: Tuning | None) -> Config:
    return config | (tuning or {}).get(kernel, {})

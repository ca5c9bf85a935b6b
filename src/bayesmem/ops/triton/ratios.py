"""Decays inside a chunk as ratios of a later to an earlier time, exact to rounding whatever lies before.

A difference of one float32 cumulative sum loses digits after a hard reset (-60). So every log is split into
a multiple of 1/256, whose sums over a chunk are exact in float32 (below 2^16), and a remainder below 1/512.
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def split_cumsum(log_decay):
    """Two cumulative sums whose differences, added, are the log of R_t / R_s; along the only axis."""
    coarse = tl.floor(log_decay * 256.0 + 0.5) * 0.00390625
    return tl.cumsum(coarse, 0), tl.cumsum(log_decay - coarse, 0)


@triton.jit
@no_type_check
def ratio_matrix(coarse, fine, lower):
    """``R_t / R_s`` where ``lower[t, s]``, else 0, from the two sums of ``split_cumsum``."""
    log_ratio = (coarse[:, None] - coarse[None, :]) + (fine[:, None] - fine[None, :])
    return tl.where(lower, tl.exp(tl.where(lower, log_ratio, 0.0)), 0.0)

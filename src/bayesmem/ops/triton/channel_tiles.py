"""Decays per key channel inside a chunk: logs summed over their own segment, so that no exponent is above 0.

Legend (docs/math.md section 4): a_t the log decays of token t ``[K]``. A chunk of C tokens is cut into blocks of
BLOCK. A ratio R_t / R_s whose tokens stand in different blocks is ``exp(after) exp(before)``: the decays from a border
between the blocks up to t, and those after s up to it. Both are sums of numbers at most 0, and neither is a difference
of sums, which would lose digits after a hard reset. Inside a block every segment is summed by itself.
"""

from typing import no_type_check

import triton
import triton.language as tl
from torch import Tensor

from bayesmem.ops.triton.mean_config import Config, Tuning
from bayesmem.ops.triton.sizes import block

BLOCK = 16  # tokens a block: the least that a matrix product takes


@triton.jit
@no_type_check
def span(chunk, seq_start, chunk_seq, chunk_first, C: tl.constexpr):
    """The first token of a chunk (int64), and the end of its sequence."""
    seq = tl.load(chunk_seq + chunk)
    first = tl.load(seq_start + seq) + (chunk - tl.load(chunk_first + seq)) * C
    return first.to(tl.int64), tl.load(seq_start + seq + 1)


@triton.jit
@no_type_check
def channels(x, rows, live, head, cols, HEADS: tl.constexpr, D: tl.constexpr):
    """``x[rows, head, cols]`` of ``[N, HEADS, D]`` in float32, zero where not ``live``."""
    offsets = (rows * HEADS + head)[:, None] * D + cols[None, :]
    return tl.load(x + offsets, mask=live[:, None] & (cols < D)[None, :], other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def channel_row(x, row, end, head, cols, HEADS: tl.constexpr, D: tl.constexpr):
    """``x[row, head, cols]`` of one token in float32, zero from ``end`` on."""
    return tl.load(x + (row * HEADS + head) * D + cols, mask=cols < tl.where(row < end, D, 0), other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def decays_up_to(log_decay, rows, live, head, cols, H: tl.constexpr, K: tl.constexpr):
    """``sum_{i <= t} a_i`` over the live ones of ``rows``, for each of them ``[rows, cols]``."""
    return tl.cumsum(channels(log_decay, rows, live, head, cols, H, K), 0)


@triton.jit
@no_type_check
def decays_after(log_decay, rows, live_next, head, cols, H: tl.constexpr, K: tl.constexpr):
    """``sum_{i > s} a_i``, where ``live_next`` says of each of ``rows`` whether the one after it counts."""
    return tl.cumsum(channels(log_decay, rows + 1, live_next, head, cols, H, K), 0, reverse=True)


def channel_config(name: str, k: Tensor, tuning: Tuning | None) -> Config:
    """Of the kernels that are parallel over chunks: BK. Blocks of 64 channels spill registers (Triton 3.6, sm_90)."""
    return {"BK": block(k.shape[-1], 32), "num_warps": 4, "num_stages": 1} | (tuning or {}).get(name, {})

"""What the kernels of the covariance's backward share beyond ``mean_tiles``.

Gates, tiles with tokens last, tiles of K x K matrices, and the retentions of a chunk.
"""

from typing import no_type_check

import triton
import triton.language as tl

from bayesmem.ops.triton.ratios import ratio_matrix, split_cumsum


@triton.jit
@no_type_check
def load_gate(gate, rows, live, head, HEADS: tl.constexpr, other):
    """One number a token ``[C]`` of ``[N, HEADS]``."""
    return tl.load(gate + rows * HEADS + head, mask=live, other=other)


@triton.jit
@no_type_check
def load_columns(x, at, row, K: tl.constexpr, C: tl.constexpr, BK: tl.constexpr):
    """A tile ``[BK, C]`` of matrix ``at`` of ``[.., K, C]``."""
    channels = row + tl.arange(0, BK)
    offsets = at * (K * C) + channels[:, None] * C + tl.arange(0, C)[None, :]
    return tl.load(x + offsets, mask=(channels < K)[:, None], other=0.0)


@triton.jit
@no_type_check
def store_columns(x, tile, at, row, K: tl.constexpr, C: tl.constexpr, BK: tl.constexpr):
    """The inverse of ``load_columns``."""
    channels = row + tl.arange(0, BK)
    offsets = at * (K * C) + channels[:, None] * C + tl.arange(0, C)[None, :]
    tl.store(x + offsets, tile, mask=(channels < K)[:, None])


@triton.jit
@no_type_check
def retention_ratios(log_retention, rows, live, head, HEADS: tl.constexpr, C: tl.constexpr):
    """``R_t / R_s`` for ``s <= t`` ``[C, C]``, ``R_t`` ``[C]`` and ``R_C / R_t`` ``[C]``."""
    coarse, fine = split_cumsum(load_gate(log_retention, rows, live, head, HEADS, 0.0))
    i = tl.arange(0, C)
    ratio = ratio_matrix(coarse, fine, i[:, None] >= i[None, :])
    # Tokens past the end keep everything, so that the last sums are those of the chunk's end.
    left = (tl.sum(tl.where(i == C - 1, coarse, 0.0), 0) - coarse) + (tl.sum(tl.where(i == C - 1, fine, 0.0), 0) - fine)
    return ratio, tl.exp(coarse + fine), tl.exp(left)


@triton.jit
@no_type_check
def matrix_tile(row, col, K: tl.constexpr, BK: tl.constexpr):
    """Offsets and mask of a tile ``[BK, BK]`` of a ``[K, K]`` matrix."""
    i, j = row + tl.arange(0, BK), col + tl.arange(0, BK)
    return i[:, None] * K + j[None, :], (i < K)[:, None] & (j < K)[None, :]


@triton.jit
@no_type_check
def cov_after(checkpoints, final_cov, chunk, last, sequence, head, H: tl.constexpr, K: tl.constexpr):
    """Where P_C lies: the next chunk's checkpoint, after the sequence's last chunk the final covariance."""
    if chunk == last:
        where = final_cov + (sequence.to(tl.int64) * H + head) * (K * K)
    else:
        where = checkpoints + ((chunk + 1).to(tl.int64) * H + head) * (K * K)
    return where

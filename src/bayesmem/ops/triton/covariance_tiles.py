"""What the kernels of the covariance's backward share: where a chunk lies, its tiles in and out, its retentions.

Legend: C tokens a chunk, ``first`` its first token (int64), ``live`` those of the C that exist; ``at`` the chunk and
head as one index (int64). Only the start of a tile is an int64: offsets inside are int32 and take half the registers.
"""

from typing import no_type_check

import triton
import triton.language as tl

from bayesmem.ops.triton.ratios import ratio_matrix, split_cumsum


@triton.jit
@no_type_check
def place_chunk(chunk, seq_start, chunk_seq, chunk_first, C: tl.constexpr):
    """The first token of a chunk, and which of its C exist."""
    sequence = tl.load(chunk_seq + chunk)
    first = tl.load(seq_start + sequence) + (chunk - tl.load(chunk_first + sequence)) * C
    return first.to(tl.int64), tl.arange(0, C) < tl.load(seq_start + sequence + 1) - first


@triton.jit
@no_type_check
def load_gate(gate, first, live, head, HEADS: tl.constexpr, C: tl.constexpr, other):
    """One number a token ``[C]`` of ``[N, HEADS]``."""
    return tl.load(gate + (first * HEADS + head) + tl.arange(0, C) * HEADS, mask=live, other=other)


@triton.jit
@no_type_check
def store_gate(gate, value, first, live, head, HEADS: tl.constexpr, C: tl.constexpr):
    """The inverse of ``load_gate``."""
    tl.store(gate + (first * HEADS + head) + tl.arange(0, C) * HEADS, value, mask=live)


@triton.jit
@no_type_check
def load_tokens(x, first, live, head, col, HEADS: tl.constexpr, D: tl.constexpr, C: tl.constexpr, BD: tl.constexpr):
    """A tile ``[C, BD]`` of ``[N, HEADS, D]``."""
    cols = col + tl.arange(0, BD)
    offsets = tl.arange(0, C)[:, None] * (HEADS * D) + cols[None, :]
    mask = live[:, None] if D % BD == 0 else live[:, None] & (cols < D)[None, :]
    return tl.load(x + (first * HEADS + head) * D + offsets, mask=mask, other=0.0)


@triton.jit
@no_type_check
def store_tokens(
    x, tile, first, live, head, col, HEADS: tl.constexpr, D: tl.constexpr, C: tl.constexpr, BD: tl.constexpr
):
    """The inverse of ``load_tokens``, rounded to what ``x`` holds."""
    cols = col + tl.arange(0, BD)
    offsets = tl.arange(0, C)[:, None] * (HEADS * D) + cols[None, :]
    mask = live[:, None] if D % BD == 0 else live[:, None] & (cols < D)[None, :]
    tl.store(x + (first * HEADS + head) * D + offsets, tile.to(x.dtype.element_ty), mask=mask)


@triton.jit
@no_type_check
def load_columns(x, at, row, K: tl.constexpr, C: tl.constexpr, BK: tl.constexpr):
    """A tile ``[BK, C]`` of matrix ``at`` of ``[.., K, C]``."""
    channels = row + tl.arange(0, BK)
    offsets = channels[:, None] * C + tl.arange(0, C)[None, :]
    mask = None if K % BK == 0 else (channels < K)[:, None]
    return tl.load(x + at * (K * C) + offsets, mask=mask, other=None if K % BK == 0 else 0.0)


@triton.jit
@no_type_check
def store_columns(x, tile, at, row, K: tl.constexpr, C: tl.constexpr, BK: tl.constexpr):
    """The inverse of ``load_columns``."""
    channels = row + tl.arange(0, BK)
    offsets = channels[:, None] * C + tl.arange(0, C)[None, :]
    mask = None if K % BK == 0 else (channels < K)[:, None]
    tl.store(x + at * (K * C) + offsets, tile, mask=mask)


@triton.jit
@no_type_check
def load_token_pair(
    high, low, first, live, head, col, HEADS: tl.constexpr, D: tl.constexpr, C: tl.constexpr, BD: tl.constexpr
):
    """``load_tokens`` of a pair (``covariance_products``), whose ``low`` may be None."""
    if low is None:
        return (load_tokens(high, first, live, head, col, HEADS, D, C, BD),)
    else:
        high_tile = load_tokens(high, first, live, head, col, HEADS, D, C, BD)
        return high_tile, load_tokens(low, first, live, head, col, HEADS, D, C, BD)


@triton.jit
@no_type_check
def store_token_pair(
    high, low, pair, first, live, head, col, HEADS: tl.constexpr, D: tl.constexpr, C: tl.constexpr, BD: tl.constexpr
):
    """The inverse of ``load_token_pair``."""
    store_tokens(high, pair[0], first, live, head, col, HEADS, D, C, BD)
    if low is not None:
        store_tokens(low, pair[1], first, live, head, col, HEADS, D, C, BD)


@triton.jit
@no_type_check
def load_column_pair(high, low, at, row, K: tl.constexpr, C: tl.constexpr, BK: tl.constexpr):
    """``load_columns`` of a pair, whose ``low`` may be None."""
    if low is None:
        return (load_columns(high, at, row, K, C, BK),)
    else:
        high_tile = load_columns(high, at, row, K, C, BK)
        return high_tile, load_columns(low, at, row, K, C, BK)


@triton.jit
@no_type_check
def store_column_pair(high, low, pair, at, row, K: tl.constexpr, C: tl.constexpr, BK: tl.constexpr):
    """The inverse of ``load_column_pair``."""
    store_columns(high, pair[0], at, row, K, C, BK)
    if low is not None:
        store_columns(low, pair[1], at, row, K, C, BK)


@triton.jit
@no_type_check
def load_matrix(x, row, col, K: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr):
    """A tile ``[BI, BJ]`` of the ``[K, K]`` matrix at ``x``."""
    i, j = row + tl.arange(0, BI), col + tl.arange(0, BJ)
    even: tl.constexpr = (K % BI == 0) & (K % BJ == 0)
    mask = None if even else (i < K)[:, None] & (j < K)[None, :]
    return tl.load(x + (i[:, None] * K + j[None, :]), mask=mask, other=None if even else 0.0)


@triton.jit
@no_type_check
def store_matrix(x, tile, row, col, K: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr):
    """The inverse of ``load_matrix``."""
    i, j = row + tl.arange(0, BI), col + tl.arange(0, BJ)
    mask = None if (K % BI == 0) & (K % BJ == 0) else (i < K)[:, None] & (j < K)[None, :]
    tl.store(x + (i[:, None] * K + j[None, :]), tile, mask=mask)


@triton.jit
@no_type_check
def retention_ratios(log_retention, first, live, head, HEADS: tl.constexpr, C: tl.constexpr):
    """``R_t / R_s`` for ``s <= t`` ``[C, C]``, ``R_t`` ``[C]`` and ``R_C / R_t`` ``[C]``."""
    coarse, fine = split_cumsum(load_gate(log_retention, first, live, head, HEADS, C, 0.0))
    i = tl.arange(0, C)
    ratio = ratio_matrix(coarse, fine, i[:, None] >= i[None, :])
    # Tokens past the end keep everything, so that the last sums are those of the chunk's end.
    left = (tl.sum(tl.where(i == C - 1, coarse, 0.0), 0) - coarse) + (tl.sum(tl.where(i == C - 1, fine, 0.0), 0) - fine)
    return ratio, tl.exp(coarse + fine), tl.exp(left)


@triton.jit
@no_type_check
def store_sums(sums, log_retention, first, live, head, at, HEADS: tl.constexpr, C: tl.constexpr):
    """Both sums of ``split_cumsum`` over a chunk into ``sums`` ``[NC, HEADS, 2, C]``, of tokens past the end too."""
    coarse, fine = split_cumsum(load_gate(log_retention, first, live, head, HEADS, C, 0.0))
    where = sums + at * (2 * C) + tl.arange(0, C)
    tl.store(where, coarse)
    tl.store(where + C, fine)


@triton.jit
@no_type_check
def load_sums(sums, at, C: tl.constexpr):
    """What ``store_sums`` stored. A load has any layout at once, which a scan has not: its ratios need no other one."""
    where = sums + at * (2 * C) + tl.arange(0, C)
    return tl.load(where), tl.load(where + C)


@triton.jit
@no_type_check
def retention_left(sums, coarse, fine, at, C: tl.constexpr):
    """``R_C / R_t`` ``[C]`` of ``load_sums``."""
    last = sums + at * (2 * C) + C - 1
    return tl.exp((tl.load(last) - coarse) + (tl.load(last + C) - fine))


@triton.jit
@no_type_check
def cov_after(checkpoints, final_cov, chunk, last, sequence, head, H: tl.constexpr, K: tl.constexpr):
    """Where P_C lies: the next chunk's checkpoint, after the sequence's last chunk the final covariance."""
    if chunk == last:
        where = final_cov + (sequence.to(tl.int64) * H + head) * (K * K)
    else:
        where = checkpoints + ((chunk + 1).to(tl.int64) * H + head) * (K * K)
    return where

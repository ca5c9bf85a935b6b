"""What the kernels of the mean pass share: where a chunk lies, and its tiles in and out.

Legend: C tokens a chunk, ``rows`` its tokens (int64), ``live`` those that exist (the last chunk of a
sequence may be short; what lies past its end is read as zeros), ``at`` the chunk and head as one index
(int64).
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def place(chunk, seq_start, chunk_seq, chunk_first, C: tl.constexpr):
    """The tokens of a chunk, and which of them exist."""
    seq = tl.load(chunk_seq + chunk)
    first = tl.load(seq_start + seq) + (chunk - tl.load(chunk_first + seq)) * C
    rows = first.to(tl.int64) + tl.arange(0, C)
    return rows, rows < tl.load(seq_start + seq + 1)


@triton.jit
@no_type_check
def load_rows(x, rows, live, head, col, HEADS: tl.constexpr, D: tl.constexpr, BD: tl.constexpr):
    """``x[rows, head, col : col + BD]`` of ``[N, HEADS, D]``."""
    cols = col + tl.arange(0, BD)
    offsets = (rows * HEADS + head)[:, None] * D + cols[None, :]
    return tl.load(x + offsets, mask=live[:, None] & (cols < D)[None, :], other=0.0)


@triton.jit
@no_type_check
def store_rows(x, tile, rows, live, head, col, HEADS: tl.constexpr, D: tl.constexpr, BD: tl.constexpr):
    """The inverse of ``load_rows``, rounded to what ``x`` holds."""
    cols = col + tl.arange(0, BD)
    offsets = (rows * HEADS + head)[:, None] * D + cols[None, :]
    tl.store(x + offsets, tile.to(x.dtype.element_ty), mask=live[:, None] & (cols < D)[None, :])


@triton.jit
@no_type_check
def state_tile(at, k_col, v_col, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr):
    """Offsets and mask of a ``[BK, BV]`` tile of matrix ``at`` of ``[.., K, V]``."""
    ks, vs = k_col + tl.arange(0, BK), v_col + tl.arange(0, BV)
    return at * (K * V) + ks[:, None] * V + vs[None, :], (ks < K)[:, None] & (vs < V)[None, :]


@triton.jit
@no_type_check
def square_tile(at, C: tl.constexpr):
    """Offsets of matrix ``at`` of ``[.., C, C]``."""
    i = tl.arange(0, C)
    return at * (C * C) + i[:, None] * C + i[None, :]

"""What a chunk of the mean pass knows before any state reaches it: parallel over chunks and heads.

Legend (docs/math.md section 4): q, k, g the queries, keys and gains of a chunk ``[C, K]``, R_t the product of
its decays up to t. Kept in the dtype of the streams, ``[NC, H, C, C]``, and for the decays ``[NC, H, 2, C]``:

    X_ts = (R_t / R_s) k_t^T g_s,  s < t       solve = (I + X)^{-1}
    scores_ts = (R_t / R_s) q_t^T g_s, s <= t  factors = R_t, R_C / R_t

The inverse doubles its blocks. Let T be that of the diagonal blocks of size b, and L what X adds to it in blocks
of 2b; then ``L T L = 0`` there, and ``(T^{-1} + L)^{-1} = T - T L T``: from b = 1, log2(C) times. No power of X
is formed, so it is as stable as substitution. T L T is what (T X) T has in those blocks: made whole, and masked after,
X is the same operand at all levels, and T X goes from one product to the next in registers.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from bayesmem.ops.triton.launched import launched
from bayesmem.ops.triton.mean_config import Tuning, prepare_config
from bayesmem.ops.triton.mean_tiles import load_rows, place, square_tile, store_rows
from bayesmem.ops.triton.ratios import ratio_matrix, split_cumsum
from bayesmem.ops.triton.spans import Spans


@triton.jit
@no_type_check
def unit_inverse(x, C: tl.constexpr, LEVELS: tl.constexpr, PREC: tl.constexpr):
    """``(I + x)^{-1}`` of a strictly lower triangular ``x`` ``[C, C]``, C = 2^LEVELS."""
    i, j = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    inverse = tl.where(i == j, 1.0, 0.0) - tl.where((i >> 1) == (j >> 1), x, 0.0)
    for level in range(1, LEVELS):
        joins = ((i >> (level + 1)) == (j >> (level + 1))) & ((i >> level) != (j >> level))
        left = tl.dot(inverse, x, input_precision=PREC)
        inverse -= tl.where(joins, tl.dot(left, inverse, input_precision=PREC), 0.0)
    return inverse


@launched
@triton.jit
@no_type_check
def prepare_kernel(
    q,
    k,
    gain,
    log_decay,
    written,
    solve,
    scores,
    factors,
    seq_start,
    chunk_seq,
    chunk_first,
    H: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    LEVELS: tl.constexpr,
    BK: tl.constexpr,
    PREC: tl.constexpr,
    SOLVE_PREC: tl.constexpr,
):
    """One program a chunk and head; ``written``, the gain in the dtype of k, is None where it has it."""
    at = tl.program_id(0).to(tl.int64)
    chunk, head = at // H, at % H
    rows, live = place(chunk, seq_start, chunk_seq, chunk_first, C)
    reads = tl.zeros([C, C], tl.float32)
    seen = tl.zeros([C, C], tl.float32)
    for col in range(0, K, BK):
        g = load_rows(gain, rows, live, head, col, H, K, BK).to(k.dtype.element_ty)
        if written is not None:
            store_rows(written, g, rows, live, head, col, H, K, BK)
        k_tile = load_rows(k, rows, live, head // (H // G), col, G, K, BK)
        q_tile = load_rows(q, rows, live, head // (H // G), col, G, K, BK)
        reads = tl.dot(k_tile, tl.trans(g), reads, input_precision=PREC)
        seen = tl.dot(q_tile, tl.trans(g), seen, input_precision=PREC)

    coarse, fine = split_cumsum(tl.load(log_decay + rows * H + head, mask=live, other=0.0))
    i = tl.arange(0, C)
    ratio = ratio_matrix(coarse, fine, i[:, None] >= i[None, :])
    tl.store(scores + square_tile(at, C), (ratio * seen).to(scores.dtype.element_ty))
    reads = tl.where(i[:, None] > i[None, :], ratio * reads, 0.0)
    inverse = unit_inverse(reads, C, LEVELS, SOLVE_PREC)
    tl.store(solve + square_tile(at, C), inverse.to(solve.dtype.element_ty))

    # Tokens past the end have log decay 0, so that the last row is that of the last token.
    left = tl.sum(tl.where(i[:, None] == C - 1, ratio, 0.0), 0)
    tl.store(factors + at * (2 * C) + i, tl.exp(coarse + fine))
    tl.store(factors + at * (2 * C) + C + i, left)


def prepared_tensors(k: Tensor, gain: Tensor, log_decay: Tensor, spans: Spans) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What ``prepare`` fills: the gain as the streams are (``gain`` itself where it is so), solve, scores, factors."""
    heads, chunk = gain.shape[1], spans.chunk_size
    solve = k.new_empty(spans.chunks, heads, chunk, chunk)
    factors = log_decay.new_empty(spans.chunks, heads, 2, chunk)
    written = gain if gain.dtype == k.dtype else torch.empty_like(gain, dtype=k.dtype)
    return written, solve, torch.empty_like(solve), factors


def prepare(
    q: Tensor,
    k: Tensor,
    gain: Tensor,
    log_decay: Tensor,
    prepared: tuple[Tensor, Tensor, Tensor, Tensor],
    spans: Spans,
    prec: str,
    tuning: Tuning | None,
) -> None:
    """Launch ``prepare_kernel``.

    It fills ``prepared``: the gain in the dtype of the streams ``[N, H, K]``, solve and scores ``[NC, H, C, C]``, and
    factors.
    """
    written, solve, scores, factors = prepared
    heads, size, chunk = gain.shape[1], k.shape[-1], spans.chunk_size
    wide = k.dtype == torch.float32
    prepare_kernel[(spans.chunks * heads,)](
        q,
        k,
        gain,
        log_decay,
        None if written is gain else written,
        solve,
        scores,
        factors,
        spans.seq_start,
        spans.chunk_seq,
        spans.chunk_first,
        H=heads,
        G=k.shape[1],
        K=size,
        C=chunk,
        LEVELS=chunk.bit_length() - 1,
        PREC=prec,
        SOLVE_PREC=prec if wide else "tf32",  # its result is rounded to 16 bits
        **prepare_config(k, tuning),
    )

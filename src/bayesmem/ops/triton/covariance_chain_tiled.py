"""The reverse chain where Lambda is too large for registers: by tiles, in global memory that stays in the cache.

The equations and the legend are those of ``covariance_chain``.
"""

from typing import no_type_check

import triton
import triton.language as tl

from bayesmem.ops.triton.covariance_products import joined, pair_product, product, split, transposed
from bayesmem.ops.triton.covariance_tiles import (
    cov_after,
    load_column_pair,
    load_columns,
    load_gate,
    load_matrix,
    load_token_pair,
    store_columns,
    store_matrix,
    store_token_pair,
)
from bayesmem.ops.triton.launched import launched
from bayesmem.ops.triton.mean_tiles import square_tile


@launched
@triton.jit
@no_type_check
def tiled_chain_kernel(
    gain_high,
    gain_low,
    alpha,
    read_high,
    read_low,
    heard,
    dvar,
    log_retention,
    to_end,
    checkpoints,
    final_cov,
    sent_high,
    sent_low,
    met,
    trace,
    overlap,
    began,
    d_initial_cov,
    seq_start,
    chunk_first,
    H: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
    RENEW: tl.constexpr,
    PREC: tl.constexpr,
):
    """One program a sequence and head; Lambda starts and lives in ``d_initial_cov``; Z replaces ``alpha``.

    What one phase writes the next one reads, of this program's own: hence the barriers.
    """
    sequence, head = tl.program_id(0), tl.program_id(1)
    chunk_begin, last = tl.load(chunk_first + sequence), tl.load(chunk_first + sequence + 1) - 1
    lam = d_initial_cov + (sequence.to(tl.int64) * H + head) * (K * K)
    i, every = tl.arange(0, BK), tl.arange(0, C) >= 0
    begin, end = tl.load(seq_start + sequence).to(tl.int64), tl.load(seq_start + sequence + 1)
    for back in range(last - chunk_begin + 1):
        chunk = last - back
        at = chunk.to(tl.int64) * H + head
        first = begin + (chunk - chunk_begin) * C
        live = first + tl.arange(0, C) < end
        cov = cov_after(checkpoints, final_cov, chunk, last, sequence, head, H, K)
        after = load_gate(to_end, first, live, head, H, C, 1.0)
        kept = tl.exp(tl.load(log_retention + first * H + head)) * tl.load(to_end + first * H + head)
        renew = back % RENEW == 0
        s = tl.zeros([C, C], tl.float32)
        shared = tl.zeros([BK, BK], tl.float32)
        before = tl.zeros([BK, BK], tl.float32)
        for col in range(0, K, BK):
            n = tl.zeros([BK, C], tl.float32)
            for row in range(0, K, BK):
                part = load_matrix(lam, col, row, K, BK, BK)
                g = transposed(load_token_pair(gain_high, gain_low, first, live, head, row, H, K, C, BK))
                n = pair_product(split(part, PREC), g, n, PREC)
                if renew:
                    shared += part * load_matrix(cov, col, row, K, BK, BK)
                if began is not None:
                    before += part * load_matrix(checkpoints + at * (K * K), col, row, K, BK, BK)
                if row == col:
                    diagonal = tl.sum(tl.where(i[:, None] == i[None, :], part, 0.0), 1)
                    tl.store(trace + at * K + col + i, diagonal, mask=col + i < K)
            n_pair = split(n * after[None, :], PREC)
            store_token_pair(sent_high, sent_low, transposed(n_pair), at * C, every, 0, col, 1, K, C, BK)
            g = load_token_pair(gain_high, gain_low, first, live, head, col, H, K, C, BK)
            s = pair_product(g, n_pair, s, PREC)
        s *= after[:, None]
        tl.store(met + square_tile(at, C), s)
        if renew:
            tl.store(overlap + at, tl.sum(tl.sum(shared, 1), 0))
        if began is not None:
            tl.store(began + at, tl.sum(tl.sum(before, 1), 0))
        s_pair = split(0.5 * s, PREC)
        tl.debug_barrier()
        for col in range(0, K, BK):
            n = tl.trans(joined(load_token_pair(sent_high, sent_low, at * C, every, 0, col, 1, K, C, BK)))
            z = 0.5 * load_columns(alpha, at, col, K, C, BK) - kept * n
            k_bar = load_column_pair(read_high, read_low, at, col, K, C, BK)
            store_columns(alpha, pair_product(k_bar, s_pair, z, PREC), at, col, K, C, BK)
        tl.debug_barrier()
        for row in range(0, K, BK):
            k_bar = load_column_pair(read_high, read_low, at, row, K, C, BK)
            z_pair = split(load_columns(alpha, at, row, K, C, BK), PREC)
            for col in range(0, row + BK, BK):
                other = split(tl.trans(load_columns(alpha, at, col, K, C, BK)), PREC)
                moved = kept * kept * load_matrix(lam, row, col, K, BK, BK)
                moved = pair_product(k_bar, other, moved, PREC)
                other = transposed(load_column_pair(read_high, read_low, at, col, K, C, BK))
                moved = pair_product(z_pair, other, moved, PREC)
                if dvar is not None:
                    q_row = load_columns(heard, at, row, K, C, BK)
                    q_row *= load_gate(dvar, first, live, head, H, C, 0.0)[None, :]
                    q_col = load_columns(heard, at, col, K, C, BK)
                    moved = product(q_row, tl.trans(q_col), moved, PREC)
                tl.debug_barrier()
                store_matrix(lam, moved, row, col, K, BK, BK)
                if row != col:
                    store_matrix(lam, tl.trans(moved), col, row, K, BK, BK)
        tl.debug_barrier()

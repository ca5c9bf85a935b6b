"""The reverse chain where Lambda is too large for registers: by tiles, in global memory that stays in the cache.

The equations and the legend are those of ``covariance_chain``.
"""

from typing import no_type_check

import triton
import triton.language as tl

from bayesmem.ops.triton.covariance_tiles import cov_after, load_columns, load_gate, matrix_tile, store_columns
from bayesmem.ops.triton.mean_tiles import load_rows, place, square_tile


@triton.jit
@no_type_check
def tiled_chain_kernel(
    gain,
    alpha,
    read,
    heard,
    dvar,
    log_retention,
    to_end,
    checkpoints,
    final_cov,
    sent,
    met,
    trace,
    overlap,
    d_initial_cov,
    seq_start,
    chunk_seq,
    chunk_first,
    H: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
    PREC: tl.constexpr,
):
    """One program a sequence and head; Lambda starts and lives in ``d_initial_cov``; Z replaces ``alpha``.

    What one phase writes the next one reads, of this program's own: hence the barriers.
    """
    sequence, head = tl.program_id(0), tl.program_id(1)
    first, last = tl.load(chunk_first + sequence), tl.load(chunk_first + sequence + 1) - 1
    lam = d_initial_cov + (sequence.to(tl.int64) * H + head) * (K * K)
    i = tl.arange(0, BK)
    for back in range(last - first + 1):
        chunk = last - back
        at = chunk.to(tl.int64) * H + head
        rows, live = place(chunk, seq_start, chunk_seq, chunk_first, C)
        cov = cov_after(checkpoints, final_cov, chunk, last, sequence, head, H, K)
        after = load_gate(to_end, rows, live, head, H, 1.0)
        kept = tl.exp(tl.sum(load_gate(log_retention, rows, live, head, H, 0.0), 0))
        s = tl.zeros([C, C], tl.float32)
        shared = tl.zeros([BK, BK], tl.float32)
        diagonal = tl.zeros([BK, BK], tl.float32)
        for col in range(0, K, BK):
            n = tl.zeros([BK, C], tl.float32)
            for row in range(0, K, BK):
                tile, inside = matrix_tile(col, row, K, BK)
                part = tl.load(lam + tile, mask=inside, other=0.0)
                g = load_rows(gain, rows, live, head, row, H, K, BK)
                n = tl.dot(part, tl.trans(g), n, input_precision=PREC)
                shared += part * tl.load(cov + tile, mask=inside, other=0.0)
                if row == col:
                    diagonal += tl.where(i[:, None] == i[None, :], part, 0.0)
            n *= after[None, :]
            store_columns(sent, n, at, col, K, C, BK)
            g = load_rows(gain, rows, live, head, col, H, K, BK)
            s = tl.dot(g, n, s, input_precision=PREC)
        s *= after[:, None]
        tl.store(met + square_tile(at, C), s)
        tl.store(overlap + at, tl.sum(tl.sum(shared, 1), 0))
        tl.store(trace + at, tl.sum(tl.sum(diagonal, 1), 0))
        tl.debug_barrier()
        for col in range(0, K, BK):
            k_bar = load_columns(read, at, col, K, C, BK)
            z = 0.5 * load_columns(alpha, at, col, K, C, BK) - kept * load_columns(sent, at, col, K, C, BK)
            z += 0.5 * tl.dot(k_bar, s, input_precision=PREC)
            store_columns(alpha, z, at, col, K, C, BK)
        tl.debug_barrier()
        for row in range(0, K, BK):
            k_row = load_columns(read, at, row, K, C, BK)
            z_row = load_columns(alpha, at, row, K, C, BK)
            for col in range(0, row + BK, BK):
                k_col = load_columns(read, at, col, K, C, BK)
                z_col = load_columns(alpha, at, col, K, C, BK)
                moved = tl.dot(k_row, tl.trans(z_col), input_precision=PREC)
                moved = tl.dot(z_row, tl.trans(k_col), moved, input_precision=PREC)
                if dvar is not None:
                    nu = load_gate(dvar, rows, live, head, H, 0.0)
                    q_row = load_columns(heard, at, row, K, C, BK) * nu[None, :]
                    q_col = load_columns(heard, at, col, K, C, BK)
                    moved = tl.dot(q_row, tl.trans(q_col), moved, input_precision=PREC)
                tile, inside = matrix_tile(row, col, K, BK)
                mirror, mirrored = matrix_tile(col, row, K, BK)
                moved += kept * kept * tl.load(lam + tile, mask=inside, other=0.0)
                tl.debug_barrier()
                tl.store(lam + tile, moved, mask=inside)
                tl.store(lam + mirror, tl.trans(moved), mask=mirrored & (row != col))
        tl.debug_barrier()

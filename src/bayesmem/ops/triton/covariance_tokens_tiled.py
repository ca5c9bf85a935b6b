"""``covariance_tokens`` where a token's channels come in blocks: float32 streams, and K above 128.

Legend: as in ``covariance_tokens``. wbar goes by way of memory, block by block, before its products with P_0.
"""

from typing import no_type_check

import triton
import triton.language as tl

from bayesmem.ops.triton.covariance_products import joined, pair_product, split, transposed
from bayesmem.ops.triton.covariance_tiles import (
    load_gate,
    load_matrix,
    load_sums,
    load_token_pair,
    load_tokens,
    place_chunk,
    retention_left,
    store_gate,
    store_token_pair,
    store_tokens,
)
from bayesmem.ops.triton.launched import launched
from bayesmem.ops.triton.mean_tiles import square_tile
from bayesmem.ops.triton.ratios import ratio_matrix


@launched
@triton.jit
@no_type_check
def tokens_kernel(
    k,
    q,
    gain_high,
    gain_low,
    innovation_var,
    sums,
    process_noise,
    obs_noise,
    floor,
    dgain,
    dinnovation_var,
    dvar,
    var,
    solve,
    direct,
    query,
    along_key,
    sent_high,
    sent_low,
    met,
    trace,
    checkpoints,
    wbar_high,
    wbar_low,
    dk,
    dlog_retention,
    turned,
    dprocess_noise,
    dobs_noise,
    dfloor,
    seq_start,
    chunk_seq,
    chunk_first,
    H: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
    OUT_BLOCK: tl.constexpr,
    SUM_BLOCK: tl.constexpr,
    ADDED: tl.constexpr,
    PREC: tl.constexpr,
):
    """One program a chunk and head; ``dfloor`` is a part of the sum, ``[NC, H]``; wbar is only passed on.

    ``dlog_retention`` still lacks what later chunks gather, of which ``turned`` is this one's, ``[NC, H]``.
    """
    chunk, head = tl.program_id(0), tl.program_id(1)
    at, key_head = chunk.to(tl.int64) * H + head, head // (H // G)
    first, live = place_chunk(chunk, seq_start, chunk_seq, chunk_first, C)
    if tl.max(live.to(tl.int32), 0) == 0:
        return  # a chunk made room for and not filled
    i = tl.arange(0, C)
    below = i[:, None] > i[None, :]
    coarse, fine = load_sums(sums, at, C)
    ratio = ratio_matrix(coarse, fine, i[:, None] >= i[None, :])
    since, to_end = tl.exp(coarse + fine), retention_left(sums, coarse, fine, at, C)

    # Split before they are transposed: halves of 16 bits need not be turned (``covariance_products``).
    inverse = tl.load(solve + square_tile(at, C))
    pair = split(inverse, PREC)
    toward = pair_product(split(tl.load(met + square_tile(at, C)), PREC), pair, None, PREC)
    toward = pair_product(transposed(pair), split(toward, PREC), None, PREC)
    toward = tl.load(direct + square_tile(at, C)) - tl.where(below, ratio * toward, 0.0)
    toward_pair = transposed(split(toward, PREC))
    half_pair = transposed(split(tl.where(below, -0.5 * ratio * inverse, 0.0), PREC))
    inverse_pair = transposed(split(inverse * to_end[None, :], PREC))
    spread = load_gate(innovation_var, first, live, head, H, C, 1.0)
    per_var = 1.0 / spread

    heard = tl.zeros([C, C], tl.float32)  # wbar_t . g_s
    w_k = tl.zeros([C], tl.float32)
    k_k = tl.zeros([C], tl.float32)
    q_q = tl.zeros([C], tl.float32)
    lam_trace = 0.0
    for col in range(0, K, BK):
        k_tile = load_tokens(k, first, live, key_head, col, G, K, C, BK)
        y_tile = load_tokens(dgain, first, live, head, col, H, K, C, BK) * per_var[:, None]
        lam_g = pair_product(toward_pair, split(k_tile, PREC), None, PREC)
        lam_g = pair_product(half_pair, split(y_tile, PREC), lam_g, PREC)
        n = load_token_pair(sent_high, sent_low, at * C, i >= 0, 0, col, 1, K, C, BK)
        lam_g = pair_product(inverse_pair, n, lam_g, PREC)
        if dvar is not None:
            q_tile = load_tokens(q, first, live, key_head, col, G, K, C, BK)
            asked = transposed(split(tl.load(query + square_tile(at, C)), PREC))
            lam_g = pair_product(asked, split(q_tile, PREC), lam_g, PREC)
            q_tile = q_tile.to(tl.float32)
            q_q += tl.sum(q_tile * q_tile, 1)
        w_tile = y_tile - 2.0 * lam_g
        w_pair = split(w_tile, PREC)
        store_token_pair(wbar_high, wbar_low, w_pair, first, live, head, col, H, K, C, BK)
        g = load_token_pair(gain_high, gain_low, first, live, head, col, H, K, C, BK)
        heard = pair_product(w_pair, transposed(g), heard, PREC)
        k_tile = k_tile.to(tl.float32)
        w_k += tl.sum(w_tile * k_tile, 1)
        k_k += tl.sum(k_tile * k_tile, 1)
        channels = col + tl.arange(0, BK)
        lam_trace += tl.sum(tl.load(trace + at * K + channels, mask=channels < K, other=0.0), 0)

    # wbar . g = y . g - 2 g . Lambda g, so that sbar = c + g . Lambda g = (c + sigma - wbar . g) / 2.
    w_g = tl.sum(tl.where(i[:, None] == i[None, :], heard, 0.0), 1)
    ds = 0.5 * (load_gate(along_key, first, live, head, H, C, 0.0) - w_g)
    gathered = 0.0 * ds
    if dinnovation_var is not None:
        sigma = load_gate(dinnovation_var, first, live, head, H, C, 0.0)
        ds += 0.5 * sigma
        gathered += sigma * spread
    given = load_gate(obs_noise, first, live, head, H, C, 1.0)
    noise = load_gate(process_noise, first, live, head, H, C, 0.0)
    least = tl.load(floor + head)
    binds = least * k_k > given
    gathered -= ds * tl.where(binds, least * k_k, given)
    power = w_k + ds * k_k
    if dvar is not None:
        nu = load_gate(dvar, first, live, head, H, C, 0.0)
        gathered += nu * load_gate(var, first, live, head, H, C, 0.0)
        power += nu * q_q
    ratio *= ratio
    d_noise = to_end * to_end * lam_trace + tl.sum(ratio * power[:, None], 0)
    gathered -= noise * d_noise
    store_gate(dlog_retention, 2.0 * tl.cumsum(gathered, 0, reverse=True), first, live, head, H, C)
    tl.store(turned + at, tl.sum(gathered, 0))
    store_gate(dprocess_noise, d_noise, first, live, head, H, C)
    store_gate(dobs_noise, tl.where(binds, 0.0, ds), first, live, head, H, C)
    tl.store(dfloor + at, tl.sum(tl.where(binds & live, ds * k_k, 0.0), 0))

    # P-_t wbar_t, and along the gain itself the 2 sbar s of the innovation variance.
    told = tl.where(below, ratio * heard, 0.0) * load_gate(innovation_var, first, live, head, H, C, 1.0)[None, :]
    told = tl.where(i[:, None] == i[None, :], (2.0 * ds * spread)[:, None], -told)
    added = tl.sum(ratio * noise[None, :], 1)  # c_t
    along = tl.where(binds, 2.0 * least * ds, 0.0)
    tl.debug_barrier()  # wbar is read where other threads wrote it
    for col in range(0, K, OUT_BLOCK):
        total = tl.zeros([C, OUT_BLOCK], tl.float32)
        for sum_col in range(0, K, SUM_BLOCK):
            w_pair = load_token_pair(wbar_high, wbar_low, first, live, head, sum_col, H, K, C, SUM_BLOCK)
            # P_0 is symmetric: its rows are read for its columns.
            cov_tile = load_matrix(checkpoints + at * (K * K), col, sum_col, K, OUT_BLOCK, SUM_BLOCK)
            total = pair_product(w_pair, transposed(split(cov_tile, PREC)), total, PREC)
        w_pair = load_token_pair(wbar_high, wbar_low, first, live, head, col, H, K, C, OUT_BLOCK)
        k_tile = load_tokens(k, first, live, key_head, col, G, K, C, OUT_BLOCK).to(tl.float32)
        total = (since * since)[:, None] * total + added[:, None] * joined(w_pair) + along[:, None] * k_tile
        g = load_token_pair(gain_high, gain_low, first, live, head, col, H, K, C, OUT_BLOCK)
        total = pair_product(split(told, PREC), g, total, PREC)
        if ADDED:
            total += load_tokens(dk, first, live, head, col, H, K, C, OUT_BLOCK).to(tl.float32)
        store_tokens(dk, total, first, live, head, col, H, K, C, OUT_BLOCK)

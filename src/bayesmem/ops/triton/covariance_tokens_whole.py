"""``covariance_tokens`` where registers hold wbar of a chunk: 16-bit streams, K at most 128.

Legend: as in ``covariance_tokens``. All channels of a token are one tile, so that wbar needs no trip through memory
and the products are as wide as the tensor cores like them. What is multiplied from the left is made transposed, which
leaves it where a product's left side has to be. Li^T S Li is symmetric, and y_t joins its own product,

    wbar = -2 W (Li^T N) + (ratio Li)^T Y + 2 (slow(ratio Li^T S Li) - direct)^T K - 2 query^T Q
"""

from typing import no_type_check

import triton
import triton.language as tl

from bayesmem.ops.triton.covariance_products import pair_product, split, transposed
from bayesmem.ops.triton.covariance_tiles import (
    load_gate,
    load_matrix,
    load_sums,
    load_token_pair,
    load_tokens,
    place_chunk,
    retention_left,
    store_gate,
    store_tokens,
)
from bayesmem.ops.triton.launched import launched
from bayesmem.ops.triton.mean_tiles import square_tile
from bayesmem.ops.triton.ratios import ratio_matrix


@triton.jit
@no_type_check
def halves(x):
    """The left and the right half ``[I, J / 2]`` of a tile ``[I, J]``."""
    return tl.split(tl.permute(tl.reshape(x, [x.shape[0], 2, x.shape[1] // 2]), [0, 2, 1]))


@launched
@triton.jit
@no_type_check
def whole_tokens_kernel(
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
    ADDED: tl.constexpr,
    PREC: tl.constexpr,
):
    """As ``tokens_kernel`` (``covariance_tokens_tiled``), BK >= K; registers hold wbar, of which nothing is stored."""
    chunk, head = tl.program_id(0), tl.program_id(1)
    at, key_head = chunk.to(tl.int64) * H + head, head // (H // G)
    first, live = place_chunk(chunk, seq_start, chunk_seq, chunk_first, C)
    if tl.max(live.to(tl.int32), 0) == 0:
        return  # a chunk made room for and not filled
    i = tl.arange(0, C)
    coarse, fine = load_sums(sums, at, C)
    to_end = retention_left(sums, coarse, fine, at, C)
    below, above = i[:, None] > i[None, :], i[:, None] < i[None, :]

    inverse = tl.load(solve + square_tile(at, C))
    met_pair = split(tl.load(met + square_tile(at, C)), PREC)
    n = load_token_pair(sent_high, sent_low, at * C, i >= 0, 0, 0, 1, K, C, BK)
    spread = load_gate(innovation_var, first, live, head, H, C, 1.0)
    y = split(load_tokens(dgain, first, live, head, 0, H, K, C, BK) * (1.0 / spread)[:, None], PREC)
    turned_inverse = tl.trans(inverse)
    left_pair = split(turned_inverse, PREC)
    toward = pair_product(left_pair, met_pair, None, PREC)
    toward = pair_product(split(toward, PREC), split(inverse, PREC), None, PREC)
    w = (-2.0 * to_end)[:, None] * pair_product(left_pair, n, None, PREC)
    # Loaded anew behind a barrier: ratios made at the top, where the compiler would move them, are spilled until here.
    tl.debug_barrier()
    coarse, fine = load_sums(sums, at, C)
    # R_s / R_t where t <= s: the ratios, transposed.
    ratio = ratio_matrix(-coarse, -fine, i[:, None] <= i[None, :])
    w = pair_product(split(ratio * turned_inverse, PREC), y, w, PREC)
    toward = 2.0 * (tl.where(above, ratio * toward, 0.0) - tl.trans(tl.load(direct + square_tile(at, C))))
    k_tile = load_tokens(k, first, live, key_head, 0, G, K, C, BK)
    w = pair_product(split(toward, PREC), split(k_tile, PREC), w, PREC)
    if dvar is not None:
        q_tile = load_tokens(q, first, live, key_head, 0, G, K, C, BK)
        asked = split(-2.0 * tl.trans(tl.load(query + square_tile(at, C))), PREC)
        w = pair_product(asked, split(q_tile, PREC), w, PREC)

    g = load_token_pair(gain_high, gain_low, first, live, head, 0, H, K, C, BK)
    heard = pair_product(split(w, PREC), transposed(g), None, PREC)  # wbar_t . g_s
    k_tile = k_tile.to(tl.float32)
    k_k = tl.sum(k_tile * k_tile, 1)
    w_k = tl.sum(w * k_tile, 1)
    channels = tl.arange(0, BK)
    lam_trace = tl.sum(tl.load(trace + at * K + channels, mask=channels < K, other=0.0), 0)

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
        q_tile = load_tokens(q, first, live, key_head, 0, G, K, C, BK).to(tl.float32)
        power += nu * tl.sum(q_tile * q_tile, 1)
    tl.debug_barrier()  # as above
    coarse, fine = load_sums(sums, at, C)
    ratio = ratio_matrix(coarse, fine, i[:, None] >= i[None, :])
    ratio *= ratio
    told = tl.where(below, ratio * heard, 0.0) * load_gate(innovation_var, first, live, head, H, C, 1.0)[None, :]
    told = tl.where(i[:, None] == i[None, :], (2.0 * ds * spread)[:, None], -told)
    d_noise = to_end * to_end * lam_trace + tl.sum(ratio * power[:, None], 0)
    added = tl.sum(ratio * noise[None, :], 1)  # c_t
    gathered -= noise * d_noise
    store_gate(dlog_retention, 2.0 * tl.cumsum(gathered, 0, reverse=True), first, live, head, H, C)
    tl.store(turned + at, tl.sum(gathered, 0))
    store_gate(dprocess_noise, d_noise, first, live, head, H, C)
    store_gate(dobs_noise, tl.where(binds, 0.0, ds), first, live, head, H, C)
    tl.store(dfloor + at, tl.sum(tl.where(binds & live, ds * k_k, 0.0), 0))

    # P-_t wbar_t, and along the gain itself the 2 sbar s of the innovation variance.
    along = tl.where(binds, 2.0 * least * ds, 0.0)
    k_tile = load_tokens(k, first, live, key_head, 0, G, K, C, BK).to(tl.float32)
    total = pair_product(split(told, PREC), g, added[:, None] * w + along[:, None] * k_tile, PREC)
    w = split(tl.exp(2.0 * (coarse + fine))[:, None] * w, PREC)
    cov = checkpoints + at * (K * K)
    if BK > 64:
        high, low = halves(w[0]), halves(w[1])
        for part in tl.static_range(2):
            cov_tile = split(load_matrix(cov, part * (BK // 2), 0, K, BK // 2, BK), PREC)
            total = pair_product((high[part], low[part]), cov_tile, total, PREC)
    else:
        total = pair_product(w, split(load_matrix(cov, 0, 0, K, BK, BK), PREC), total, PREC)
    if ADDED:
        total += load_tokens(dk, first, live, head, 0, H, K, C, BK).to(tl.float32)
    store_tokens(dk, total, first, live, head, 0, H, K, C, BK)

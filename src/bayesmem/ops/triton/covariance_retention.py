"""The gradient of the log retention, once more, for float32 streams: a sum that forgets as the memory does.

``covariance_tokens`` runs tau = <Lambda, P> backwards over the tokens. What is rounded in its terms (the last bit of an
innovation variance) is never forgotten: 2e-6 of tau after 64 tokens, of which prior mixing subtracts nearly all. Here
the same number is made of what the memory still holds of every token. Legend: as in ``covariance_tokens``; with
c_t = sum_{i<=t} (R_t / R_i)^2 n_i and u_t = wbar_t + sbar_t k_t

    P_s = R_s^2 P_0 + c_s I - sum_{j<=s} (R_s / R_j)^2 s_j g_j g_j^T
    Lambda_s = (R_C / R_s)^2 Lambda_C + sum_{t>s} (R_t / R_s)^2 (u_t k_t^T + nu_t q_t q_t^T),    symmetric part

    x_t = R_t^2 (u_t . P_0 k_t + nu_t q_t . P_0 q_t)
    m_tj = (R_t / R_j)^2 s_j ((u_t . g_j) (k_t . g_j) + nu_t (q_t . g_j)^2)
    <Lambda_s, P_s> = c_s tr Lambda_s + R_C^2 <Lambda_C, P_0> - sum_{j<=s} s_j S_jj + sum_{t>s} (x_t - sum_{j<=s} m_tj)

Where a chunk learns much, P_0 is the larger and this the worse of the two: each token takes the one that adds up less.
"""

from typing import no_type_check

import triton
import triton.language as tl
from torch import Tensor

from bayesmem.ops.triton.covariance_chain import Chained
from bayesmem.ops.triton.covariance_config import retention_config
from bayesmem.ops.triton.covariance_prepare import Prepared
from bayesmem.ops.triton.covariance_products import product
from bayesmem.ops.triton.covariance_tiles import (
    load_gate,
    load_matrix,
    load_tokens,
    place_chunk,
    retention_ratios,
    store_gate,
)
from bayesmem.ops.triton.mean_config import Tuning
from bayesmem.ops.triton.mean_tiles import square_tile
from bayesmem.ops.triton.spans import Spans


@triton.jit
@no_type_check
def onward(x, C: tl.constexpr):
    """``sum_{t >= s} x_t`` ``[C]``."""
    i = tl.arange(0, C)
    return tl.sum(tl.where(i[:, None] >= i[None, :], x[:, None], 0.0), 0)


@triton.jit
@no_type_check
def across(x, C: tl.constexpr, PREC: tl.constexpr):
    """``sum_{t >= s} sum_{j < s} x_tj`` ``[C]`` of ``[C, C]``."""
    i = tl.arange(0, C)
    earlier = product(x, tl.where(i[:, None] < i[None, :], 1.0, 0.0), None, PREC)
    return tl.sum(tl.where(i[:, None] >= i[None, :], earlier, 0.0), 0)


@triton.jit
@no_type_check
def retention_kernel(
    k,
    q,
    gain,
    innovation_var,
    log_retention,
    process_noise,
    obs_noise,
    floor,
    dinnovation_var,
    dvar,
    var,
    along_key,
    wbar,
    met,
    overlap,
    began,
    checkpoints,
    dprocess_noise,
    dlog_retention,
    seq_start,
    chunk_seq,
    chunk_first,
    H: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
    PREC: tl.constexpr,
):
    """One program a chunk and head; ``dlog_retention`` is there, and is replaced where this rounds less."""
    chunk, head = tl.program_id(0), tl.program_id(1)
    at, key_head = chunk.to(tl.int64) * H + head, head // (H // G)
    first, live = place_chunk(chunk, seq_start, chunk_seq, chunk_first, C)
    if tl.max(live.to(tl.int32), 0) == 0:
        return  # a chunk made room for and not filled
    ratio, since, _ = retention_ratios(log_retention, first, live, head, H, C)
    ratio *= ratio
    i = tl.arange(0, C)

    heard = tl.zeros([C, C], tl.float32)  # wbar_t . g_j, then u_t . g_j
    kg = tl.zeros([C, C], tl.float32)
    qg = tl.zeros([C, C], tl.float32)
    k_k = tl.zeros([C], tl.float32)
    for col in range(0, K, BK):
        g_tile = tl.trans(load_tokens(gain, first, live, head, col, H, K, C, BK))
        k_tile = load_tokens(k, first, live, key_head, col, G, K, C, BK)
        heard = product(load_tokens(wbar, first, live, head, col, H, K, C, BK), g_tile, heard, PREC)
        kg = product(k_tile, g_tile, kg, PREC)
        if dvar is not None:
            qg = product(load_tokens(q, first, live, key_head, col, G, K, C, BK), g_tile, qg, PREC)
        k_tile = k_tile.to(tl.float32)
        k_k += tl.sum(k_tile * k_tile, 1)
    ds = load_gate(along_key, first, live, head, H, C, 0.0) - tl.sum(tl.where(i[:, None] == i[None, :], heard, 0.0), 1)
    spread = load_gate(innovation_var, first, live, head, H, C, 1.0)
    least = tl.maximum(load_gate(obs_noise, first, live, head, H, C, 1.0), tl.load(floor + head) * k_k)
    noise = load_gate(process_noise, first, live, head, H, C, 0.0)
    d_noise = load_gate(dprocess_noise, first, live, head, H, C, 0.0)
    size = tl.abs(noise * d_noise)
    if dinnovation_var is not None:
        sigma = load_gate(dinnovation_var, first, live, head, H, C, 0.0)
        ds += sigma
        size += tl.abs(sigma * spread)
    ds *= 0.5  # sbar, as in tokens_kernel
    size += tl.abs(ds * least)
    told = (heard + ds[:, None] * kg) * kg
    if dvar is not None:
        nu = load_gate(dvar, first, live, head, H, C, 0.0)
        told += nu[:, None] * qg * qg
        size += tl.abs(nu * load_gate(var, first, live, head, H, C, 0.0))
    told = tl.where(i[:, None] > i[None, :], ratio * told * spread[None, :], 0.0)

    own = tl.zeros([C], tl.float32)
    for col in range(0, K, BK):
        total = tl.zeros([C, BK], tl.float32)
        asked = tl.zeros([C, BK], tl.float32)
        for sum_col in range(0, K, BK):
            # P_0 is symmetric: its rows are read for its columns.
            cov_tile = tl.trans(load_matrix(checkpoints + at * (K * K), col, sum_col, K, BK, BK))
            u_tile = ds[:, None] * load_tokens(k, first, live, key_head, sum_col, G, K, C, BK)
            u_tile += load_tokens(wbar, first, live, head, sum_col, H, K, C, BK)
            total = product(u_tile, cov_tile, total, PREC)
            if dvar is not None:
                q_tile = load_tokens(q, first, live, key_head, sum_col, G, K, C, BK)
                asked = product(q_tile, cov_tile, asked, PREC)
        own += tl.sum(total * load_tokens(k, first, live, key_head, col, G, K, C, BK), 1)
        if dvar is not None:
            own += nu * tl.sum(asked * load_tokens(q, first, live, key_head, col, G, K, C, BK), 1)
    own *= since * since
    end = tl.sum(tl.where(i == C - 1, since, 0.0), 0)  # R_C
    whole = end * end * tl.load(began + at)
    s_tile = tl.load(met + square_tile(at, C))
    kept = spread * tl.sum(tl.where(i[:, None] == i[None, :], s_tile, 0.0), 1)

    added = tl.sum(ratio * noise[None, :], 1)  # c_t, of which token t's own noise is not in P_{t-1}
    lost = tl.sum(tl.where(i[:, None] < i[None, :], kept[:, None], 0.0), 0)
    left = onward(own, C) - across(told, C, PREC) + (whole - lost) + (added - noise) * d_noise
    lost = tl.sum(tl.where(i[:, None] < i[None, :], tl.abs(kept)[:, None], 0.0), 0)
    sizes = onward(tl.abs(own), C) + across(tl.abs(told), C, PREC) + tl.abs(whole) + lost
    fewer = sizes < onward(size, C) + tl.abs(tl.load(overlap + at))
    found = load_gate(dlog_retention, first, live, head, H, C, 0.0)
    store_gate(dlog_retention, tl.where(fewer, 2.0 * left, found), first, live, head, H, C)


def retain(
    k: Tensor,
    q: Tensor | None,
    innovation_var: Tensor,
    gates: tuple[Tensor, Tensor, Tensor, Tensor],
    gradients: tuple[Tensor, Tensor | None, Tensor | None],
    var: Tensor | None,
    checkpoints: Tensor,
    prepared: Prepared,
    chained: Chained,
    dprocess_noise: Tensor,
    dlog_retention: Tensor,
    spans: Spans,
    prec: str,
    tuning: Tuning | None,
) -> None:
    """Launch ``retention_kernel``: ``dlog_retention`` is replaced where it can be had with less rounding.

    The arguments are those of ``covariance_tokens.tokens``, and what its kernels made: wbar in the place of
    ``prepared.read``. ``chained.renew`` is 1.
    """
    heads, key_dim = prepared.gain[0].shape[1:]
    retention_kernel[(spans.chunks, heads)](
        k,
        q,
        prepared.gain[0],
        innovation_var,
        *gates,
        *gradients[1:],
        var,
        prepared.along,
        prepared.read[0],
        chained.met,
        chained.overlap,
        chained.began,
        checkpoints,
        dprocess_noise,
        dlog_retention,
        spans.seq_start,
        spans.chunk_seq,
        spans.chunk_first,
        H=heads,
        G=k.shape[1],
        K=key_dim,
        C=spans.chunk_size,
        **retention_config(k, prec, tuning),
    )

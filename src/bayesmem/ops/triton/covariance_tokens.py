"""The gradients of every token from what the chain left, parallel over chunks and heads.

Legend: as in ``covariance_prepare`` and ``covariance_chain``; W_s = R_C / R_s, r the effective observation noise.

    Lambda_t g_t = W (Li^T N) + (direct - ratio slow(Li^T S Li))^T K - (ratio slow(Li))^T Y / 2 + query^T Q
    wbar_t = y_t - 2 Lambda_t g_t             sbar_t = sigma_t - y_t . g_t + g_t^T Lambda_t g_t = dr_t
    tr Lambda-_t = W_t^2 tr Lambda_C + sum_{u>=t} (R_u / R_t)^2 (wbar_u . k_u + sbar_u |k_u|^2 + nu_u |q_u|^2) = dn_t
    dk_t = P-_t wbar_t + 2 sbar_t s_t g_t     dq_t = 2 nu_t P_t q_t          (``variance``)

The gradient of the log retention needs no matrix. tau-_t = <Lambda-_t, P-_t> runs backwards from <Lambda_C, P_C> by

    tau-_t = tau_t + sigma_t s_t - sbar_t r_t + nu_t var_t,    dlog rho_t = 2 (tau-_t - n_t tr Lambda-_t) = 2 tau_{t-1}

Where the floor binds, r_t = floor |k_t|^2: then dk_t gains 2 floor sbar_t k_t, and the floor what r_t would have had.
"""

from dataclasses import dataclass
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from bayesmem.ops.triton.covariance_chain import Chained
from bayesmem.ops.triton.covariance_config import tokens_config
from bayesmem.ops.triton.covariance_prepare import Prepared
from bayesmem.ops.triton.covariance_tiles import load_columns, load_gate, retention_ratios
from bayesmem.ops.triton.mean_config import Tuning
from bayesmem.ops.triton.mean_tiles import load_rows, place, square_tile, store_rows
from bayesmem.ops.triton.spans import Spans


@dataclass(frozen=True, slots=True)
class TokenGradients:
    """Gradients of the gates, and what that of the keys is made of.

    Attributes:
        wbar: ``[N, H, K]``.
        gain_weight: 2 sbar s ``[N, H]``.
        key_weight: 2 floor sbar where the floor binds ``[N, H]``.
        log_retention: ``[N, H]``.
        process_noise: ``[N, H]``.
        obs_noise: ``[N, H]``.
        floor: by chunk ``[NC, H]``.
    """

    wbar: Float[Tensor, "N H K"]
    gain_weight: Float[Tensor, "N H"]
    key_weight: Float[Tensor, "N H"]
    log_retention: Float[Tensor, "N H"]
    process_noise: Float[Tensor, "N H"]
    obs_noise: Float[Tensor, "N H"]
    floor: Float[Tensor, "NC H"]


@triton.jit
@no_type_check
def tokens_kernel(
    k,
    q,
    gain,
    innovation_var,
    log_retention,
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
    sent,
    met,
    trace,
    overlap,
    wbar,
    gain_weight,
    key_weight,
    dlog_retention,
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
    PREC: tl.constexpr,
):
    """One program a chunk and head; ``dfloor`` is a part of the sum, ``[NC, H]``."""
    chunk, head = tl.program_id(0), tl.program_id(1)
    at, key_head = chunk.to(tl.int64) * H + head, head // (H // G)
    rows, live = place(chunk, seq_start, chunk_seq, chunk_first, C)
    if tl.max(live.to(tl.int32), 0) == 0:
        return  # a chunk made room for and not filled
    ratio, _, to_end = retention_ratios(log_retention, rows, live, head, H, C)
    i = tl.arange(0, C)
    below = i[:, None] > i[None, :]

    inverse = tl.load(solve + square_tile(at, C))
    toward = tl.dot(tl.load(met + square_tile(at, C)), inverse, input_precision=PREC)
    toward = tl.dot(tl.trans(inverse), toward, input_precision=PREC)
    toward = tl.load(direct + square_tile(at, C)) - tl.where(below, ratio * toward, 0.0)
    half = tl.where(below, -0.5 * ratio * inverse, 0.0)
    inverse *= to_end[None, :]
    spread = load_gate(innovation_var, rows, live, head, H, 1.0)

    g_lam = tl.zeros([C], tl.float32)  # g . Lambda g
    y_g = tl.zeros([C], tl.float32)
    w_k = tl.zeros([C], tl.float32)
    k_k = tl.zeros([C], tl.float32)
    q_q = tl.zeros([C], tl.float32)
    for col in range(0, K, BK):
        k_tile = load_rows(k, rows, live, key_head, col, G, K, BK).to(tl.float32)
        y_tile = load_rows(dgain, rows, live, head, col, H, K, BK) / spread[:, None]
        n_tile = tl.trans(load_columns(sent, at, col, K, C, BK))
        lam_g = tl.dot(tl.trans(inverse), n_tile, input_precision=PREC)
        lam_g = tl.dot(tl.trans(toward), k_tile, lam_g, input_precision=PREC)
        lam_g = tl.dot(tl.trans(half), y_tile, lam_g, input_precision=PREC)
        if dvar is not None:
            q_tile = load_rows(q, rows, live, key_head, col, G, K, BK).to(tl.float32)
            asked = tl.load(query + square_tile(at, C))
            lam_g = tl.dot(tl.trans(asked), q_tile, lam_g, input_precision=PREC)
            q_q += tl.sum(q_tile * q_tile, 1)
        w_tile = y_tile - 2.0 * lam_g
        store_rows(wbar, w_tile, rows, live, head, col, H, K, BK)
        g_tile = load_rows(gain, rows, live, head, col, H, K, BK)
        g_lam += tl.sum(g_tile * lam_g, 1)
        y_g += tl.sum(g_tile * y_tile, 1)
        w_k += tl.sum(w_tile * k_tile, 1)
        k_k += tl.sum(k_tile * k_tile, 1)

    ds = g_lam - y_g  # sbar
    gathered = 0.0 * ds
    if dinnovation_var is not None:
        sigma = load_gate(dinnovation_var, rows, live, head, H, 0.0)
        ds += sigma
        gathered += sigma * spread
    given = load_gate(obs_noise, rows, live, head, H, 1.0)
    least = tl.load(floor + head)
    binds = least * k_k > given
    gathered -= ds * tl.where(binds, least * k_k, given)
    power = w_k + ds * k_k
    if dvar is not None:
        nu = load_gate(dvar, rows, live, head, H, 0.0)
        gathered += nu * load_gate(var, rows, live, head, H, 0.0)
        power += nu * q_q
    d_noise = to_end * to_end * tl.load(trace + at) + tl.sum(ratio * ratio * power[:, None], 0)
    gathered -= load_gate(process_noise, rows, live, head, H, 0.0) * d_noise
    onward = tl.sum(tl.where(i[:, None] >= i[None, :], gathered[:, None], 0.0), 0)

    to = rows * H + head
    tl.store(gain_weight + to, 2.0 * ds * spread, mask=live)
    tl.store(key_weight + to, tl.where(binds, 2.0 * least * ds, 0.0), mask=live)
    tl.store(dlog_retention + to, 2.0 * (tl.load(overlap + at) + onward), mask=live)
    tl.store(dprocess_noise + to, d_noise, mask=live)
    tl.store(dobs_noise + to, tl.where(binds, 0.0, ds), mask=live)
    tl.store(dfloor + at, tl.sum(tl.where(binds & live, ds * k_k, 0.0), 0))


def tokens(
    k: Tensor,
    q: Tensor | None,
    gain: Tensor,
    innovation_var: Tensor,
    gates: tuple[Tensor, Tensor, Tensor, Tensor],
    gradients: tuple[Tensor, Tensor | None, Tensor | None],
    var: Tensor | None,
    prepared: Prepared,
    chained: Chained,
    spans: Spans,
    prec: str,
    tuning: Tuning | None,
) -> TokenGradients:
    """Launch ``tokens_kernel``; wbar takes the place of ``prepared.read``.

    ``gates`` are log_retention, process_noise, obs_noise and floor, ``gradients`` dgain, dinnovation_var and dvar, and
    ``var`` is the predictive variance, with ``dvar``; the rest as in ``covariance_backward``.
    """
    heads, key_dim = gain.shape[1:]
    wbar = prepared.read.view(-1)[: gain.numel()].view_as(gain)
    made = TokenGradients(wbar, *(torch.empty_like(innovation_var) for _ in range(5)), torch.zeros_like(chained.trace))
    tokens_kernel[(spans.chunks, heads)](
        k,
        q,
        gain,
        innovation_var,
        *gates,
        *gradients,
        var,
        prepared.solve,
        prepared.direct,
        prepared.query,
        chained.sent,
        chained.met,
        chained.trace,
        chained.overlap,
        made.wbar,
        made.gain_weight,
        made.key_weight,
        made.log_retention,
        made.process_noise,
        made.obs_noise,
        made.floor,
        spans.seq_start,
        spans.chunk_seq,
        spans.chunk_first,
        H=heads,
        G=k.shape[1],
        K=key_dim,
        C=spans.chunk_size,
        PREC=prec,
        **tokens_config(gain, tuning),
    )
    return made

"""The gradients of every token from what the chain left, parallel over chunks and heads.

Legend: as in ``covariance_prepare`` and ``covariance_chain``; W_s = R_C / R_s, r the effective observation noise.

    Lambda_t g_t = W (Li^T N) + (direct - ratio slow(Li^T S Li))^T K - (ratio slow(Li))^T Y / 2 + query^T Q
    wbar_t = y_t - 2 Lambda_t g_t             sbar_t = sigma_t - y_t . g_t + g_t^T Lambda_t g_t = dr_t
    tr Lambda-_t = W_t^2 tr Lambda_C + sum_{u>=t} (R_u / R_t)^2 (wbar_u . k_u + sbar_u |k_u|^2 + nu_u |q_u|^2) = dn_t
    dk_t = P-_t wbar_t + 2 sbar_t s_t g_t

P-_t wbar_t takes two products with P_0 and the gains, by the formula of ``variance``.

The gradient of the log retention needs no matrix. tau-_t = <Lambda-_t, P-_t> runs backwards from <Lambda_C, P_C> by

    tau-_t = tau_t + sigma_t s_t - sbar_t r_t + nu_t var_t,    dlog rho_t = 2 (tau-_t - n_t tr Lambda-_t) = 2 tau_{t-1}

Where the floor binds, r_t = floor |k_t|^2: then dk_t gains 2 floor sbar_t k_t, and the floor what r_t would have had.

A Hopper has a kernel of its own (``covariance_tokens_cuda``) for 16-bit streams without gradients of the predictive
variance.
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
from bayesmem.ops.triton.covariance_retention import retain
from bayesmem.ops.triton.covariance_tiles import (
    load_gate,
    place_chunk,
    store_gate,
)
from bayesmem.ops.triton.covariance_tokens_cuda import cuda_tokens
from bayesmem.ops.triton.covariance_tokens_tiled import tokens_kernel
from bayesmem.ops.triton.covariance_tokens_whole import whole_tokens_kernel
from bayesmem.ops.triton.cuda_launch import aligned
from bayesmem.ops.triton.launched import launched
from bayesmem.ops.triton.mean_config import Tuning
from bayesmem.ops.triton.spans import Spans


@dataclass(frozen=True, slots=True)
class TokenGradients:
    """Gradients of the keys and the gates.

    Attributes:
        k: ``[N, H, K]``, a value head each, in the dtype of the keys.
        log_retention: ``[N, H]``.
        process_noise: ``[N, H]``.
        obs_noise: ``[N, H]``.
        floor: by chunk ``[NC, H]``; where it is not asked for, only of chunks that hold tokens.
    """

    k: Float[Tensor, "N H K"]
    log_retention: Float[Tensor, "N H"]
    process_noise: Float[Tensor, "N H"]
    obs_noise: Float[Tensor, "N H"]
    floor: Float[Tensor, "NC H"]


@launched
@triton.jit
@no_type_check
def settle_kernel(
    overlap,
    turned,
    dlog_retention,
    seq_start,
    chunk_seq,
    chunk_first,
    H: tl.constexpr,
    C: tl.constexpr,
    RENEW: tl.constexpr,
):
    """One program a chunk and head: adds 2 <Lambda_C, P_C> to its log retentions, from the next chunk that has it."""
    chunk, head = tl.program_id(0), tl.program_id(1)
    first, live = place_chunk(chunk, seq_start, chunk_seq, chunk_first, C)
    if tl.max(live.to(tl.int32), 0) == 0:
        return
    known = chunk + (tl.load(chunk_first + tl.load(chunk_seq + chunk) + 1) - 1 - chunk) % RENEW
    tau = tl.load(overlap + (known * H + head))
    for later in range(chunk + 1, known + 1):
        tau += tl.load(turned + (later * H + head))
    onward = load_gate(dlog_retention, first, live, head, H, C, 0.0)
    store_gate(dlog_retention, onward + 2.0 * tau, first, live, head, H, C)


def tokens(
    k: Tensor,
    q: Tensor | None,
    innovation_var: Tensor,
    gates: tuple[Tensor, Tensor, Tensor, Tensor],
    gradients: tuple[Tensor, Tensor | None, Tensor | None],
    var: Tensor | None,
    checkpoints: Tensor,
    prepared: Prepared,
    chained: Chained,
    spans: Spans,
    prec: str,
    tuning: Tuning | None,
    dk: Tensor | None = None,
    want_floor: bool = True,
) -> TokenGradients:
    """Launch one of the three kernels and ``settle_kernel``, and for float32 streams ``covariance_retention``.

    The gradient of k is added to ``dk``, where it is given.

    wbar, as a pair laid out as the gain is, takes the place of ``prepared.read``, unless registers hold it
    (``covariance_tokens_whole``).

    ``gates`` are log_retention, process_noise, obs_noise and floor, ``gradients`` dgain, dinnovation_var and dvar,
    and ``var`` is the predictive variance, with ``dvar``; the rest as in ``covariance_backward``.
    """
    gain = prepared.gain[0]
    heads = gain.shape[1]
    made = TokenGradients(
        torch.empty_like(gain, dtype=k.dtype) if dk is None else dk,
        torch.empty_like(innovation_var),
        torch.empty_like(innovation_var),
        torch.empty_like(innovation_var),
        torch.zeros_like(chained.overlap) if want_floor else torch.empty_like(chained.overlap),
    )
    turned = torch.empty_like(chained.overlap)
    given = (k, q, innovation_var, gates, gradients, var, checkpoints, prepared, chained)
    _launch(*given, spans, prec, tuning, made, turned, dk is not None)
    settle_kernel[(spans.chunks, heads)](
        chained.overlap,
        turned,
        made.log_retention,
        spans.seq_start,
        spans.chunk_seq,
        spans.chunk_first,
        H=heads,
        C=spans.chunk_size,
        RENEW=chained.renew,
        num_warps=1,
    )
    if prec != "bf16x3":
        known = (checkpoints, prepared, chained, made.process_noise, made.log_retention)
        retain(k, q, innovation_var, gates, gradients, var, *known, spans, prec, tuning)
    return made


def _launch(
    k: Tensor,
    q: Tensor | None,
    innovation_var: Tensor,
    gates: tuple[Tensor, Tensor, Tensor, Tensor],
    gradients: tuple[Tensor, Tensor | None, Tensor | None],
    var: Tensor | None,
    checkpoints: Tensor,
    prepared: Prepared,
    chained: Chained,
    spans: Spans,
    prec: str,
    tuning: Tuning | None,
    made: TokenGradients,
    turned: Tensor,
    added: bool,
) -> None:
    """The kernel of these keys and gradients, which fills ``made`` and ``turned``."""
    heads, key_dim = made.k.shape[1:]
    kinds, in_cuda = (k.dtype, made.k.dtype, gradients[0].dtype), None
    plain = gradients[2] is None and made.k.data_ptr() % 16 == 0 and "tokens" not in (tuning or {})
    if kinds == (torch.bfloat16, torch.bfloat16, torch.float32) and plain:
        in_cuda = cuda_tokens(key_dim, spans.chunk_size, prec, k.device)
    if in_cuda is not None:
        dgain, sigma, _ = gradients
        given = (aligned(k), *prepared.gain, innovation_var, prepared.sums, *gates[1:], aligned(dgain))
        solved = (0 if sigma is None else sigma, prepared.solve, prepared.direct, prepared.along)
        after = (*chained.sent, chained.met, chained.trace, checkpoints)
        filled = (made.k, made.log_retention, turned, made.process_noise, made.obs_noise, made.floor)
        places = (spans.seq_start, spans.chunk_seq, spans.chunk_first, heads, k.shape[1], int(added))
        in_cuda(spans.chunks * heads, (*given, *solved, *after, *filled, *places))
    else:
        config = tokens_config(k, prec, tuning)
        kernel = tokens_kernel if "OUT_BLOCK" in config else whole_tokens_kernel
        kernel[(spans.chunks, heads)](
            k,
            q,
            *prepared.gain,
            innovation_var,
            prepared.sums,
            *gates[1:],
            *gradients,
            var,
            prepared.solve,
            prepared.direct,
            prepared.query,
            prepared.along,
            *chained.sent,
            chained.met,
            chained.trace,
            checkpoints,
            *prepared.read,
            made.k,
            made.log_retention,
            turned,
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
            ADDED=added,
            **config,
        )

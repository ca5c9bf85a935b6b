"""The mean pass backward: a chain over chunks from last to first, then all gradients, parallel.

Legend as in ``mean_forward``; a leading d marks the gradient of what follows, M the mean after the chunk:

    dE = scores^T dO + 2 d_energy E + (R_C / R) (g dM)      dV = solve^T dE
    dM_0 = R_C dM + Q^T (R dO) - K^T (R dV)

``mean_backward_local`` has the rest, once dV and dM of every chunk are known.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from bayesmem.ops.triton.carry import leaving
from bayesmem.ops.triton.launched import launched
from bayesmem.ops.triton.mean_backward_local import mean_backward_local
from bayesmem.ops.triton.mean_chain import mean_segments, transition_of
from bayesmem.ops.triton.mean_config import Tuning, chain_config
from bayesmem.ops.triton.mean_tiles import load_rows, square_tile, state_tile, store_rows
from bayesmem.ops.triton.sizes import block, cdiv
from bayesmem.ops.triton.spans import Spans


@launched
@triton.jit
@no_type_check
def chain_backward_kernel(
    q,
    k,
    written,
    solve,
    scores,
    factors,
    innovation,
    do,
    d_energy,
    d_final_mean,
    dv,
    d_means,
    d_initial_mean,
    seq_start,
    chunk_first,
    H: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    PREC: tl.constexpr,
):
    """One program a sequence, head and block of values; ``d_energy`` and ``d_final_mean`` may be None."""
    pid = tl.program_id(0)
    v_blocks: tl.constexpr = (V + BV - 1) // BV
    col, state = (pid % v_blocks) * BV, (pid // v_blocks).to(tl.int64)
    seq, head = state // H, state % H
    i = tl.arange(0, C)
    dtype: tl.constexpr = k.dtype.element_ty

    state_at, state_live = state_tile(state, 0, col, K, V, BK, BV)
    d_mean = tl.zeros([BK, BV], tl.float32)
    if d_final_mean is not None:
        d_mean += tl.load(d_final_mean + state_at, mask=state_live, other=0.0)
    first_row, end = tl.load(seq_start + seq).to(tl.int64), tl.load(seq_start + seq + 1)
    first, last = tl.load(chunk_first + seq), tl.load(chunk_first + seq + 1)
    for back in range(0, last - first):
        local = last - first - 1 - back
        at = (first + local).to(tl.int64) * H + head
        rows = first_row + local * C + i
        live = rows < end
        after = d_mean.to(dtype)
        offsets, mask = state_tile(at, 0, col, K, V, BK, BV)
        tl.store(d_means + offsets, after, mask=mask)
        since = tl.load(factors + at * (2 * C) + i)[:, None]
        left = tl.load(factors + at * (2 * C) + C + i)[:, None]
        whole = tl.load(factors + at * (2 * C) + C - 1)
        g = load_rows(written, rows, live, head, 0, H, K, BK)
        d_error = left * tl.dot(g, after, input_precision=PREC)
        do_tile = load_rows(do, rows, live, head, col, H, V, BV)
        seen = tl.load(scores + square_tile(at, C))
        d_error = tl.dot(tl.trans(seen), do_tile, d_error, input_precision=PREC)
        if d_energy is not None:
            error = load_rows(innovation, rows, live, head, col, H, V, BV)
            d_error += 2 * tl.load(d_energy + rows * H + head, mask=live, other=0.0)[:, None] * error
        inverse = tl.load(solve + square_tile(at, C))
        dv_tile = tl.dot(tl.trans(inverse), d_error.to(dtype), input_precision=PREC)
        store_rows(dv, dv_tile, rows, live, head, col, H, V, BV)
        q_tile = load_rows(q, rows, live, head // (H // G), 0, G, K, BK)
        k_tile = load_rows(k, rows, live, head // (H // G), 0, G, K, BK)
        d_mean = tl.dot(tl.trans(q_tile), (since * do_tile).to(dtype), whole * d_mean, input_precision=PREC)
        d_mean = tl.dot(tl.trans(k_tile), (-since * dv_tile).to(dtype), d_mean, input_precision=PREC)
    tl.store(d_initial_mean + state_at, d_mean, mask=state_live)


def mean_backward(
    q: Float[Tensor, "N G K"],
    k: Float[Tensor, "N G K"],
    v: Float[Tensor, "N H V"],
    log_decay: Float[Tensor, "N H"],
    saved: tuple[Tensor, ...],
    spans: Spans,
    do: Float[Tensor, "N H V"],
    d_energy: Float[Tensor, "N H"] | None,
    d_final_mean: Float[Tensor, "S H K V"] | None,
    prec: str,
    gain_dtype: torch.dtype,
    tuning: Tuning | None = None,
) -> tuple[
    Float[Tensor, "N H K"],
    Float[Tensor, "N H K"],
    Float[Tensor, "N H V"],
    Float[Tensor, "N H K"],
    Float[Tensor, "N H"],
    Float[Tensor, "S H K V"],
]:
    """Gradients of ``mean_forward``.

    Args:
        q: as in ``mean_forward``; so k, v, log_decay, spans, prec.
        k: keys.
        v: values.
        log_decay: log decays.
        saved: what ``mean_forward`` gave for this.
        spans: where sequences and chunks lie.
        do: gradient of the outputs, contiguous, in the dtype of v.
        d_energy: that of the energies, float32, or ``None``.
        d_final_mean: that of the final mean, float32, or ``None``.
        prec: ``input_precision`` of products of float32 streams.
        gain_dtype: of the gradient of the gains.
        tuning: as in ``mean_forward``; the kernels are chain_backward and local.

    Returns:
        Of q and k (this pass's part), one a value head, in their dtype; of v in its own, of gain in ``gain_dtype``; of
        log_decay and the initial mean in float32.
    """
    written, solve, scores, factors, innovation, means = saved
    heads, key, value = v.shape[1], k.shape[-1], v.shape[-1]
    dv, d_means = torch.empty_like(v), torch.empty_like(means)

    def chain_backward(after: Tensor | None, cuts: Spans) -> Tensor:
        config = chain_config("chain_backward", k, value, heads, cuts, 3, tuning)
        before = log_decay.new_empty(cuts.sequences, heads, key, value)
        chain_backward_kernel[(cuts.sequences * heads * cdiv(value, config["BV"]),)](
            q,
            k,
            written,
            solve,
            scores,
            factors,
            innovation,
            do,
            d_energy,
            after,
            dv,
            d_means,
            before,
            cuts.seq_start,
            cuts.chunk_first,
            H=heads,
            G=k.shape[1],
            K=key,
            V=value,
            C=spans.chunk_size,
            BK=block(key),
            PREC=prec,
            **config,
        )
        return before

    segments = mean_segments(k, heads, spans)
    if segments is None:
        d_initial_mean = chain_backward(d_final_mean, spans)
    else:  # once from zero, to learn what every segment gathers, once from what then leaves it
        transition = transition_of((k, written, solve, factors), segments, prec, tuning)
        gathered = chain_backward(None, segments.spans)
        after = leaving(gathered, transition, d_final_mean, segments, both=False)
        d_initial_mean = chain_backward(after, segments.spans)[segments.first]
    local = mean_backward_local(
        q, k, written, log_decay, factors, innovation, means, do, dv, d_means, spans, prec, tuning, gain_dtype
    )
    dq, dk, d_gain, d_log_decay = local
    return dq, dk, dv, d_gain, d_log_decay, d_initial_mean

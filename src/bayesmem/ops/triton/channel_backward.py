"""The mean pass with decays per channel, backward: a chain from last chunk to first, then the rest, parallel.

Legend as in ``channel_forward``; a leading d marks the gradient of what follows, M the mean after the chunk:

    dE = scores^T dO + 2 d_energy E + g' dM        dV = solve^T dE
    dM_0 = R_C dM + q'^T dO - k'^T dV              dA = tril(dO E^T)        dX = -stril(dV E^T)

``channel_local`` has the rest, from the gradients dA of the scores and dX of X.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from bayesmem.ops.triton.channel_local import channel_local
from bayesmem.ops.triton.channel_prepare import channel_scale
from bayesmem.ops.triton.mean_config import Tuning, chain_config
from bayesmem.ops.triton.mean_tiles import load_rows, place, square_tile, state_tile, store_rows
from bayesmem.ops.triton.sizes import block, cdiv
from bayesmem.ops.triton.spans import Spans


@triton.jit
@no_type_check
def channel_chain_backward_kernel(
    q_since,
    k_since,
    g_left,
    kept,
    solve,
    scores,
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
    i, ks = tl.arange(0, C), tl.arange(0, BK)
    dtype: tl.constexpr = k_since.dtype.element_ty

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
        g_tile = load_rows(g_left, rows, live, head, 0, H, K, BK)
        d_error = tl.dot(g_tile, after, input_precision=PREC)
        do_tile = load_rows(do, rows, live, head, col, H, V, BV)
        seen = tl.load(scores + square_tile(at, C))
        d_error = tl.dot(tl.trans(seen), do_tile, d_error, input_precision=PREC)
        if d_energy is not None:
            error = load_rows(innovation, rows, live, head, col, H, V, BV)
            d_error += 2 * tl.load(d_energy + rows * H + head, mask=live, other=0.0)[:, None] * error
        inverse = tl.load(solve + square_tile(at, C))
        dv_tile = tl.dot(tl.trans(inverse), d_error.to(dtype), input_precision=PREC)
        store_rows(dv, dv_tile, rows, live, head, col, H, V, BV)
        q_tile = load_rows(q_since, rows, live, head, 0, H, K, BK)
        k_tile = load_rows(k_since, rows, live, head, 0, H, K, BK)
        whole = tl.load(kept + at * K + ks, mask=ks < K, other=0.0)[:, None]
        d_mean = tl.dot(tl.trans(q_tile), do_tile, whole * d_mean, input_precision=PREC)
        d_mean = tl.dot(tl.trans(k_tile), (-dv_tile).to(dtype), d_mean, input_precision=PREC)
    tl.store(d_initial_mean + state_at, d_mean, mask=state_live)


@triton.jit
@no_type_check
def channel_pairs_kernel(
    innovation,
    do,
    dv,
    d_seen,
    d_reads,
    seq_start,
    chunk_seq,
    chunk_first,
    H: tl.constexpr,
    V: tl.constexpr,
    C: tl.constexpr,
    BV: tl.constexpr,
    PREC: tl.constexpr,
):
    """Gradients dA and dX: one program a chunk and head."""
    at = tl.program_id(0).to(tl.int64)
    chunk, head = at // H, at % H
    rows, live = place(chunk, seq_start, chunk_seq, chunk_first, C)
    seen = tl.zeros([C, C], tl.float32)
    reads = tl.zeros([C, C], tl.float32)
    for col in range(0, V, BV):
        error = tl.trans(load_rows(innovation, rows, live, head, col, H, V, BV))
        seen = tl.dot(load_rows(do, rows, live, head, col, H, V, BV), error, seen, input_precision=PREC)
        reads = tl.dot(load_rows(dv, rows, live, head, col, H, V, BV), error, reads, input_precision=PREC)
    i = tl.arange(0, C)
    seen = tl.where(i[:, None] >= i[None, :], seen, 0.0)
    reads = tl.where(i[:, None] > i[None, :], -reads, 0.0)
    tl.store(d_seen + square_tile(at, C), seen.to(d_seen.dtype.element_ty))
    tl.store(d_reads + square_tile(at, C), reads.to(d_reads.dtype.element_ty))


def channel_backward(
    q: Float[Tensor, "N G K"],
    k: Float[Tensor, "N G K"],
    v: Float[Tensor, "N H V"],
    gain: Float[Tensor, "N H K"],
    log_decay: Float[Tensor, "N H K"],
    saved: tuple[Tensor, ...],
    spans: Spans,
    do: Float[Tensor, "N H V"],
    d_energy: Float[Tensor, "N H"] | None,
    d_final_mean: Float[Tensor, "S H K V"] | None,
    prec: str,
    tuning: Tuning | None = None,
) -> tuple[
    Float[Tensor, "N H K"],
    Float[Tensor, "N H K"],
    Float[Tensor, "N H V"],
    Float[Tensor, "N H K"],
    Float[Tensor, "N H K"],
    Float[Tensor, "S H K V"],
]:
    """Gradients of ``channel_forward``; arguments and what comes back as of ``mean_backward``, but for the decays.

    Kernels in ``tuning``: channel_scale, chain_backward, channel_pairs, channel_local.
    """
    solve, scores, innovation, means = saved
    heads, key, value, chunk = v.shape[1], k.shape[-1], v.shape[-1], spans.chunk_size
    dv, d_means = torch.empty_like(v), torch.empty_like(means)
    config = chain_config("chain_backward", k, value, heads, spans, 3, tuning)
    d_initial_mean = log_decay.new_empty(spans.sequences, heads, key, value)
    channel_chain_backward_kernel[(spans.sequences * heads * cdiv(value, config["BV"]),)](
        *channel_scale(q, k, gain, log_decay, spans, tuning),
        solve,
        scores,
        innovation,
        do,
        d_energy,
        d_final_mean,
        dv,
        d_means,
        d_initial_mean,
        spans.seq_start,
        spans.chunk_first,
        H=heads,
        K=key,
        V=value,
        C=chunk,
        BK=block(key),
        PREC=prec,
        **config,
    )
    d_seen, d_reads = torch.empty_like(scores), torch.empty_like(scores)
    wide = k.dtype == torch.float32
    pairs = {"BV": block(value, 32 if wide else 64), "num_warps": 8 if wide else 4, "num_stages": 2}
    channel_pairs_kernel[(spans.chunks * heads,)](
        innovation,
        do,
        dv,
        d_seen,
        d_reads,
        spans.seq_start,
        spans.chunk_seq,
        spans.chunk_first,
        H=heads,
        V=value,
        C=chunk,
        PREC=prec,
        **(pairs | (tuning or {}).get("channel_pairs", {})),
    )
    known = (innovation, means, do, dv, d_means, d_seen, d_reads)
    dq, dk, d_gain, d_log_decay = channel_local(q, k, gain, log_decay, known, spans, prec, tuning)
    return dq, dk, dv, d_gain, d_log_decay, d_initial_mean

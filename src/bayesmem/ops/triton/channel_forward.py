"""The mean pass forward with decays per channel: what ``mean_forward`` is for one decay a head.

Legend as in ``channel_prepare``; M_0 and M the mean before and after a chunk ``[K, V]``, E innovations ``[C, V]``:

    E = solve (V - k' M_0)           M = R_C M_0 + g'^T E           O = q' M_0 + scores E
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from bayesmem.ops.triton.channel_prepare import channel_scale, channel_scores
from bayesmem.ops.triton.mean_config import Tuning, chain_config, readout_config
from bayesmem.ops.triton.mean_forward import readout_kernel
from bayesmem.ops.triton.mean_tiles import load_rows, square_tile, state_tile, store_rows
from bayesmem.ops.triton.sizes import block, cdiv
from bayesmem.ops.triton.spans import Spans


@triton.jit
@no_type_check
def channel_chain_kernel(
    k_since,
    v,
    g_left,
    kept,
    solve,
    initial_mean,
    innovation,
    means,
    final_mean,
    energy,
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
    """One program a sequence, head and block of values; ``energy`` is ``[N, H, V blocks]`` or None."""
    pid = tl.program_id(0)
    v_blocks: tl.constexpr = (V + BV - 1) // BV
    v_block, state = pid % v_blocks, (pid // v_blocks).to(tl.int64)
    seq, head, col = state // H, state % H, v_block * BV
    i, ks = tl.arange(0, C), tl.arange(0, BK)
    dtype: tl.constexpr = k_since.dtype.element_ty

    state_at, state_live = state_tile(state, 0, col, K, V, BK, BV)
    mean = tl.zeros([BK, BV], tl.float32)
    if initial_mean is not None:
        mean += tl.load(initial_mean + state_at, mask=state_live, other=0.0)
    first_row, end = tl.load(seq_start + seq).to(tl.int64), tl.load(seq_start + seq + 1)
    first, last = tl.load(chunk_first + seq), tl.load(chunk_first + seq + 1)
    for local in range(0, last - first):
        at = (first + local).to(tl.int64) * H + head
        rows = first_row + local * C + i
        live = rows < end
        start = mean.to(dtype)
        offsets, mask = state_tile(at, 0, col, K, V, BK, BV)
        tl.store(means + offsets, start, mask=mask)
        k_tile = load_rows(k_since, rows, live, head, 0, H, K, BK)
        surprise = load_rows(v, rows, live, head, col, H, V, BV) - tl.dot(k_tile, start, input_precision=PREC)
        error = tl.dot(tl.load(solve + square_tile(at, C)), surprise.to(dtype), input_precision=PREC)
        store_rows(innovation, error, rows, live, head, col, H, V, BV)
        if energy is not None:
            tl.store(energy + (rows * H + head) * v_blocks + v_block, tl.sum(error * error, 1), mask=live)
        g_tile = load_rows(g_left, rows, live, head, 0, H, K, BK)
        whole = tl.load(kept + at * K + ks, mask=ks < K, other=0.0)[:, None]
        mean = tl.dot(tl.trans(g_tile), error.to(dtype), whole * mean, input_precision=PREC)
    tl.store(final_mean + state_at, mean, mask=state_live)


def channel_forward(
    q: Float[Tensor, "N G K"],
    k: Float[Tensor, "N G K"],
    v: Float[Tensor, "N H V"],
    gain: Float[Tensor, "N H K"],
    log_decay: Float[Tensor, "N H K"],
    initial_mean: Float[Tensor, "S H K V"] | None,
    spans: Spans,
    want_energy: bool,
    prec: str,
    tuning: Tuning | None = None,
) -> tuple[Float[Tensor, "N H V"], Float[Tensor, "N H"] | None, Float[Tensor, "S H K V"], tuple[Tensor, ...]]:
    """Write every innovation along its gain and read out after each write; arguments as of ``mean_forward``.

    ``log_decay`` is per channel, float32, at most 0, finite. Kernels in ``tuning``: channel_scale, channel_scores,
    chain, readout.

    Returns:
        Outputs in the dtype of the streams; energies and the final mean in float32; and what ``channel_backward``
        needs: solve, scores, innovations, the means before every chunk.
    """
    heads, key, value, chunk = v.shape[1], k.shape[-1], v.shape[-1], spans.chunk_size
    q_since, k_since, g_left, kept = channel_scale(q, k, gain, log_decay, spans, tuning)
    solve, scores = channel_scores(q, k, gain, log_decay, spans, prec, tuning)
    innovation, o = torch.empty_like(v), torch.empty_like(v)
    means = v.new_empty(spans.chunks, heads, key, value)
    config = chain_config("chain", k, value, heads, spans, 2, tuning)
    v_blocks = cdiv(value, config["BV"])
    final_mean = log_decay.new_empty(spans.sequences, heads, key, value)
    energy = log_decay.new_empty(len(v), heads, v_blocks) if want_energy else None
    channel_chain_kernel[(spans.sequences * heads * v_blocks,)](
        k_since,
        v,
        g_left,
        kept,
        solve,
        initial_mean,
        innovation,
        means,
        final_mean,
        energy,
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
    readout = readout_config(k, value, tuning)
    readout_kernel[(spans.chunks * heads * cdiv(value, readout["BV"]),)](
        q_since,
        scores,
        None,
        innovation,
        means,
        o,
        spans.seq_start,
        spans.chunk_seq,
        spans.chunk_first,
        H=heads,
        G=heads,
        K=key,
        V=value,
        C=chunk,
        PREC=prec,
        **readout,
    )
    return o, None if energy is None else energy.sum(-1), final_mean, (solve, scores, innovation, means)

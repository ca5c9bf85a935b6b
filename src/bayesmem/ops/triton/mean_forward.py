"""The mean pass forward: a chain over the chunks of every sequence, then the read-out, parallel.

Legend as in ``mean_prepare``; M_0 and M the mean before and after a chunk ``[K, V]``, E innovations ``[C, V]``:

    E = solve (V - (R K) M_0)        M = R_C M_0 + g^T ((R_C / R) E)        O = (R Q) M_0 + scores E

All decays scale rows of C x V tiles, so that q, k and g enter the products as they lie in memory. The chain
works on one block of value channels a program, which never meet.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from bayesmem.ops.triton.launched import launched
from bayesmem.ops.triton.mean_chain import chain, mean_entering, mean_segments
from bayesmem.ops.triton.mean_config import Tuning, readout_config
from bayesmem.ops.triton.mean_prepare import prepare, prepared_tensors
from bayesmem.ops.triton.mean_tiles import load_rows, place, square_tile, state_tile, store_rows
from bayesmem.ops.triton.sizes import cdiv
from bayesmem.ops.triton.spans import Spans


@launched
@triton.jit
@no_type_check
def readout_kernel(
    q,
    scores,
    factors,
    innovation,
    means,
    o,
    seq_start,
    chunk_seq,
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
    """One program a chunk, head and block of values; without ``factors``, q holds its decays already."""
    pid = tl.program_id(0)
    v_blocks: tl.constexpr = (V + BV - 1) // BV
    col, at = (pid % v_blocks) * BV, (pid // v_blocks).to(tl.int64)
    chunk, head = at // H, at % H
    rows, live = place(chunk, seq_start, chunk_seq, chunk_first, C)
    kept = tl.zeros([C, BV], tl.float32)
    for k_col in range(0, K, BK):
        q_tile = load_rows(q, rows, live, head // (H // G), k_col, G, K, BK)
        offsets, mask = state_tile(at, k_col, col, K, V, BK, BV)
        kept = tl.dot(q_tile, tl.load(means + offsets, mask=mask, other=0.0), kept, input_precision=PREC)
    if factors is not None:
        kept *= tl.load(factors + at * (2 * C) + tl.arange(0, C))[:, None]
    error = load_rows(innovation, rows, live, head, col, H, V, BV)
    seen = tl.load(scores + square_tile(at, C))
    store_rows(o, tl.dot(seen, error, kept, input_precision=PREC), rows, live, head, col, H, V, BV)


def mean_forward(
    q: Float[Tensor, "N G K"],
    k: Float[Tensor, "N G K"],
    v: Float[Tensor, "N H V"],
    gain: Float[Tensor, "N H K"],
    log_decay: Float[Tensor, "N H"],
    initial_mean: Float[Tensor, "S H K V"] | None,
    spans: Spans,
    want_energy: bool,
    prec: str,
    tuning: Tuning | None = None,
) -> tuple[Float[Tensor, "N H V"], Float[Tensor, "N H"] | None, Float[Tensor, "S H K V"], tuple[Tensor, ...]]:
    """Write every innovation along its gain and read out after each write.

    Args:
        q: queries, contiguous (as all that follow), of one dtype with k and v: the streams'.
        k: keys.
        v: values, H a multiple of G.
        gain: float32 or the dtype of the streams, to which it is rounded.
        log_decay: float32, at most 0.
        initial_mean: float32; ``None`` is zero.
        spans: where sequences and chunks lie.
        want_energy: whether the squared length of every innovation is asked for.
        prec: ``input_precision`` of products of float32 streams.
        tuning: block sizes, warps and stages put over the defaults, by kernel: prepare, chain, readout.

    Returns:
        Outputs in the dtype of the streams; energies and the final mean in float32; and what ``mean_backward``
        needs: the gains in the dtype of the streams (``gain`` itself where it has it), solve, scores, factors,
        innovations, the means before every chunk.
    """
    key, value = k.shape[-1], v.shape[-1]
    written, solve, scores, factors = made = prepared_tensors(k, gain, log_decay, spans)
    innovation, o = torch.empty_like(v), torch.empty_like(v)
    means = v.new_empty(spans.chunks, v.shape[1], key, value)
    prepared = (k, written, solve, factors)
    segments = mean_segments(k, v.shape[1], spans)
    ends = spans if segments is None else segments.spans
    prepare(q, k, gain, log_decay, made, spans, prec, tuning)
    if segments is not None:
        initial_mean = mean_entering(prepared, v, initial_mean, segments, prec, tuning)
    final_mean, energy = chain(prepared, v, initial_mean, ends, prec, tuning, innovation, means, want_energy)
    _read_out(q, scores, factors, innovation, means, o, spans, prec, tuning)
    if segments is not None:
        final_mean = final_mean[segments.last]
    return o, energy, final_mean, (written, solve, scores, factors, innovation, means)


def _read_out(
    q: Tensor,
    scores: Tensor,
    factors: Tensor,
    innovation: Tensor,
    means: Tensor,
    o: Tensor,
    spans: Spans,
    prec: str,
    tuning: Tuning | None,
) -> None:
    (heads, value), (groups, key) = o.shape[1:], q.shape[1:]
    config = readout_config(q, value, tuning)
    readout_kernel[(spans.chunks * heads * cdiv(value, config["BV"]),)](
        q,
        scores,
        factors,
        innovation,
        means,
        o,
        spans.seq_start,
        spans.chunk_seq,
        spans.chunk_first,
        H=heads,
        G=groups,
        K=key,
        V=value,
        C=spans.chunk_size,
        PREC=prec,
        **config,
    )

"""The forward chain of the mean pass, over the chunks of every sequence, or of segments of it side by side.

Legend as in ``mean_forward``. Where few heads go through long sequences, a segment is first learned as M' = Phi M + b
(docs/math.md 5.4): Phi from the mean I without values, b from no mean; then run from the mean that reaches it.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from bayesmem.ops.triton.carry import entering
from bayesmem.ops.triton.device import limits
from bayesmem.ops.triton.launched import launched
from bayesmem.ops.triton.mean_config import Tuning, chain_config
from bayesmem.ops.triton.mean_tiles import load_rows, square_tile, state_tile, store_rows
from bayesmem.ops.triton.segments import Segments, cut
from bayesmem.ops.triton.sizes import block, cdiv
from bayesmem.ops.triton.spans import Spans

# Least tokens a segment, and least segments of the longest sequence, as measured (docs/notes/003-kernels.md).
CUTS = (4096, 12)
MAX_KEY_DIM = 128


@launched
@triton.jit
@no_type_check
def chain_kernel(
    k,
    v,
    written,
    solve,
    factors,
    initial_mean,
    innovation,
    means,
    final_mean,
    energy,
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
    """One program a sequence, head and block of values.

    ``energy`` is ``[N, H, V blocks]`` or None. None for ``v`` is zero, and for ``innovation`` and ``means`` that they
    are not asked for.
    """
    pid = tl.program_id(0)
    v_blocks: tl.constexpr = (V + BV - 1) // BV
    v_block, state = pid % v_blocks, (pid // v_blocks).to(tl.int64)
    seq, head, col = state // H, state % H, v_block * BV
    i = tl.arange(0, C)
    dtype: tl.constexpr = k.dtype.element_ty

    state_at, state_live = state_tile(state, 0, col, K, V, BK, BV)
    mean = tl.zeros([BK, BV], tl.float32)
    if initial_mean is not None:
        mean += tl.load(initial_mean + state_at, mask=state_live, other=0.0)
    first_row, end = tl.load(seq_start + seq).to(tl.int64), tl.load(seq_start + seq + 1)
    first, last = tl.load(chunk_first + seq), tl.load(chunk_first + seq + 1)
    for local in range(last - first):
        at = (first + local).to(tl.int64) * H + head
        rows = first_row + local * C + i
        live = rows < end
        start = mean.to(dtype)
        if means is not None:
            offsets, mask = state_tile(at, 0, col, K, V, BK, BV)
            tl.store(means + offsets, start, mask=mask)
        since = tl.load(factors + at * (2 * C) + i)
        left = tl.load(factors + at * (2 * C) + C + i)
        whole = tl.load(factors + at * (2 * C) + C - 1)
        k_tile = load_rows(k, rows, live, head // (H // G), 0, G, K, BK)
        surprise = -since[:, None] * tl.dot(k_tile, start, input_precision=PREC)
        if v is not None:
            surprise += load_rows(v, rows, live, head, col, H, V, BV)
        inverse = tl.load(solve + square_tile(at, C))
        error = tl.dot(inverse, surprise.to(dtype), input_precision=PREC)
        if innovation is not None:
            store_rows(innovation, error, rows, live, head, col, H, V, BV)
        if energy is not None:
            tl.store(energy + (rows * H + head) * v_blocks + v_block, tl.sum(error * error, 1), mask=live)
        g = load_rows(written, rows, live, head, 0, H, K, BK)
        mean = tl.dot(tl.trans(g), (left[:, None] * error).to(dtype), whole * mean, input_precision=PREC)
    tl.store(final_mean + state_at, mean, mask=state_live)


def chain(
    prepared: tuple[Tensor, Tensor, Tensor, Tensor],
    v: Float[Tensor, "N H V"] | None,
    initial_mean: Float[Tensor, "S H K V"] | None,
    spans: Spans,
    prec: str,
    tuning: Tuning | None,
    innovation: Float[Tensor, "N H V"] | None = None,
    means: Float[Tensor, "NC H K V"] | None = None,
    want_energy: bool = False,
) -> tuple[Float[Tensor, "S H K V"], Float[Tensor, "N H"] | None]:
    """Launch ``chain_kernel``: the mean after every sequence, and the squared innovations where asked for.

    Args:
        prepared: k, and what ``mean_prepare`` made of it: gains in its dtype, solve, factors.
        v: values; ``None`` is zero, of as many channels as the initial mean.
        initial_mean: ``None`` is zero.
        spans: where sequences and chunks lie.
        prec: of the products.
        tuning: overrides, under ``chain``.
        innovation: filled where given.
        means: likewise.
        want_energy: whether the squared length of every innovation is asked for.
    """
    k, written, solve, factors = prepared
    like = v if v is not None else initial_mean
    assert like is not None
    heads, key, value = written.shape[1], k.shape[-1], like.shape[-1]
    config = chain_config("chain", k, value, heads, spans, 2, tuning)
    v_blocks = cdiv(value, config["BV"])
    final_mean = factors.new_empty(spans.sequences, heads, key, value)
    energy = factors.new_empty(len(written), heads, v_blocks) if want_energy else None
    chain_kernel[(spans.sequences * heads * v_blocks,)](
        k,
        v,
        written,
        solve,
        factors,
        initial_mean,
        innovation,
        means,
        final_mean,
        energy,
        spans.seq_start,
        spans.chunk_first,
        H=heads,
        G=k.shape[1],
        K=key,
        V=value,
        C=spans.chunk_size,
        BK=block(key),
        PREC=prec,
        **config,
    )
    return final_mean, None if energy is None else energy.sum(-1)


def mean_segments(k: Tensor, heads: int, spans: Spans) -> Segments | None:
    """How the chains of the mean are cut, or ``None`` where going through whole sequences is at least as fast."""
    return None if k.shape[-1] > MAX_KEY_DIM else cut(spans, heads, limits(k.device).processors, *CUTS)


def transition_of(
    prepared: tuple[Tensor, Tensor, Tensor, Tensor], segments: Segments, prec: str, tuning: Tuning | None
) -> Float[Tensor, "S H K K"]:
    """Phi of every segment, M' = Phi M + b: what becomes of the mean I without values (docs/math.md 5.4)."""
    k, written, _, factors = prepared
    eye = torch.eye(k.shape[-1], dtype=factors.dtype, device=k.device)
    eye = eye.expand(segments.spans.sequences, written.shape[1], -1, -1).contiguous()
    return chain(prepared, None, eye, segments.spans, prec, tuning)[0]


def mean_entering(
    prepared: tuple[Tensor, Tensor, Tensor, Tensor],
    v: Float[Tensor, "N H V"],
    initial_mean: Float[Tensor, "S H K V"] | None,
    segments: Segments,
    prec: str,
    tuning: Tuning | None,
) -> Float[Tensor, "R H K V"]:
    """The mean that enters every segment: all from zero, but the first ones, then carried from each to the next."""
    transition = transition_of(prepared, segments, prec, tuning)
    if initial_mean is None:
        return entering(chain(prepared, v, None, segments.spans, prec, tuning)[0], transition, segments)
    start = initial_mean.new_zeros(segments.spans.sequences, *initial_mean.shape[1:])
    start[segments.first] = initial_mean
    left = chain(prepared, v, start, segments.spans, prec, tuning)[0]
    return start + entering(left, transition, segments)

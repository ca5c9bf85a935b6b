"""What a chunk of the mean pass with decays per channel knows before any state reaches it.

Legend (docs/math.md section 4): q, k, g the queries, keys and gains of a chunk ``[C, K]``, R_t the product of its
decays up to t, now a number a channel. Products over channels therefore take decayed factors:

    X_ts = k_t^T (R_t / R_s) g_s,  s < t       solve = (I + X)^{-1}
    scores_ts = q_t^T (R_t / R_s) g_s, s <= t
    q' = R q    k' = R k    g' = (R_C / R) g   kept = R_C

q', k', g' take the places of q, k and g in a chain; they are rounded to the dtype of the streams, as the chain reads
them, and the backward pass makes them anew. ``channel_tiles`` says how ratios are kept from overflow.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from bayesmem.ops.triton.channel_tiles import (
    BLOCK,
    channel_config,
    channel_row,
    channels,
    decays_after,
    decays_up_to,
    span,
)
from bayesmem.ops.triton.mean_config import Tuning
from bayesmem.ops.triton.mean_prepare import unit_inverse
from bayesmem.ops.triton.mean_tiles import square_tile, store_rows
from bayesmem.ops.triton.sizes import cdiv
from bayesmem.ops.triton.spans import Spans


@triton.jit
@no_type_check
def channel_scale_kernel(
    q,
    k,
    gain,
    log_decay,
    q_since,
    k_since,
    g_left,
    kept,
    seq_start,
    chunk_seq,
    chunk_first,
    H: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
):
    """q', k', g' and R_C: one program a chunk, head and block of channels."""
    pid = tl.program_id(0)
    k_blocks: tl.constexpr = (K + BK - 1) // BK
    col, at = (pid % k_blocks) * BK, (pid // k_blocks).to(tl.int64)
    chunk, head = at // H, at % H
    group = head // (H // G)
    first, end = span(chunk, seq_start, chunk_seq, chunk_first, C)
    i, cols = tl.arange(0, C), col + tl.arange(0, BK)
    rows = first + i
    live = rows < end
    # Tokens past the end have log decay 0, so that the last row is that of the last token.
    since = tl.exp(decays_up_to(log_decay, rows, live, head, cols, H, K))
    store_rows(q_since, since * channels(q, rows, live, group, cols, G, K), rows, live, head, col, H, K, BK)
    store_rows(k_since, since * channels(k, rows, live, group, cols, G, K), rows, live, head, col, H, K, BK)
    whole = tl.sum(tl.where((i == C - 1)[:, None], since, 0.0), 0)
    tl.store(kept + at * K + cols, whole, mask=cols < K)
    left = tl.exp(decays_after(log_decay, rows, (i + 1 < C) & (rows + 1 < end), head, cols, H, K))
    store_rows(g_left, left * channels(gain, rows, live, head, cols, H, K), rows, live, head, col, H, K, BK)


@triton.jit
@no_type_check
def channel_scores_kernel(
    q,
    k,
    gain,
    log_decay,
    reads,
    scores,
    seq_start,
    chunk_seq,
    chunk_first,
    H: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    N: tl.constexpr,
    BK: tl.constexpr,
    PREC: tl.constexpr,
):
    """X and the scores of the N tokens of a block with all before them: one program a chunk, head and block."""
    pid = tl.program_id(0)
    blocks: tl.constexpr = C // N
    begin, at = (pid % blocks) * N, (pid // blocks).to(tl.int64)
    chunk, head = at // H, at % H
    group = head // (H // G)
    first, end = span(chunk, seq_start, chunk_seq, chunk_first, C)
    n, c = tl.arange(0, N), tl.arange(0, C)
    own, every = first + begin + n, first + c
    live = own < end
    earlier = (c < begin) & (every < end)

    far_reads = tl.zeros([N, C], tl.float32)
    far_seen = tl.zeros([N, C], tl.float32)
    near_reads = tl.zeros([N, N], tl.float32)
    near_seen = tl.zeros([N, N], tl.float32)
    for col in range(0, K, BK):
        cols = col + tl.arange(0, BK)
        k_tile = channels(k, own, live, group, cols, G, K)
        q_tile = channels(q, own, live, group, cols, G, K)
        if begin > 0:
            since = tl.exp(decays_up_to(log_decay, own, live, head, cols, H, K))
            left = tl.exp(decays_after(log_decay, every, (c + 1 < begin) & (every + 1 < end), head, cols, H, K))
            written = tl.trans(left * channels(gain, every, earlier, head, cols, H, K))
            far_reads = tl.dot(since * k_tile, written, far_reads, input_precision=PREC)
            far_seen = tl.dot(since * q_tile, written, far_seen, input_precision=PREC)
        log_ratio = tl.zeros([N, BK], tl.float32)  # of token t to token s
        for back in tl.static_range(N):
            s = N - 1 - back
            token = first + begin + s
            if back > 0:
                passed = channel_row(log_decay, token + 1, end, head, cols, H, K)
                log_ratio += tl.where((n > s)[:, None], passed[None, :], 0.0)
            g = tl.exp(log_ratio) * channel_row(gain, token, end, head, cols, H, K)[None, :]
            here = (n == s)[None, :]
            near_reads += tl.where(here & (n > s)[:, None], tl.sum(k_tile * g, 1)[:, None], 0.0)
            near_seen += tl.where(here & (n >= s)[:, None], tl.sum(q_tile * g, 1)[:, None], 0.0)

    far = at * (C * C) + (begin + n)[:, None] * C + c[None, :]
    outside = ((c < begin) | (c >= begin + N))[None, :] & (n >= 0)[:, None]
    tl.store(reads + far, far_reads, mask=outside)
    tl.store(scores + far, far_seen.to(scores.dtype.element_ty), mask=outside)
    near = at * (C * C) + (begin + n)[:, None] * C + begin + n[None, :]
    tl.store(reads + near, near_reads)
    tl.store(scores + near, near_seen.to(scores.dtype.element_ty))


@triton.jit
@no_type_check
def channel_solve_kernel(reads, solve, C: tl.constexpr, LEVELS: tl.constexpr, PREC: tl.constexpr):
    """One program a chunk and head."""
    tile = square_tile(tl.program_id(0).to(tl.int64), C)
    inverse = unit_inverse(tl.load(reads + tile), C, LEVELS, PREC)
    tl.store(solve + tile, inverse.to(solve.dtype.element_ty))


def channel_scale(
    q: Float[Tensor, "N G K"],
    k: Float[Tensor, "N G K"],
    gain: Float[Tensor, "N H K"],
    log_decay: Float[Tensor, "N H K"],
    spans: Spans,
    tuning: Tuning | None,
) -> tuple[Float[Tensor, "N H K"], Float[Tensor, "N H K"], Float[Tensor, "N H K"], Float[Tensor, "NC H K"]]:
    """q', k', g' in the dtype of the streams, and R_C of every chunk in float32."""
    heads, key = gain.shape[1:]
    config = channel_config("channel_scale", k, tuning)
    q_since, k_since, g_left = (torch.empty_like(gain, dtype=k.dtype) for _ in range(3))
    kept = log_decay.new_empty(spans.chunks, heads, key)
    channel_scale_kernel[(spans.chunks * heads * cdiv(key, config["BK"]),)](
        q,
        k,
        gain,
        log_decay,
        q_since,
        k_since,
        g_left,
        kept,
        spans.seq_start,
        spans.chunk_seq,
        spans.chunk_first,
        H=heads,
        G=k.shape[1],
        K=key,
        C=spans.chunk_size,
        **config,
    )
    return q_since, k_since, g_left, kept


def channel_scores(
    q: Float[Tensor, "N G K"],
    k: Float[Tensor, "N G K"],
    gain: Float[Tensor, "N H K"],
    log_decay: Float[Tensor, "N H K"],
    spans: Spans,
    prec: str,
    tuning: Tuning | None,
) -> tuple[Float[Tensor, "NC H C C"], Float[Tensor, "NC H C C"]]:
    """``solve`` and ``scores`` in the dtype of the streams."""
    heads, key, chunk = gain.shape[1], gain.shape[2], spans.chunk_size
    reads = log_decay.new_empty(spans.chunks, heads, chunk, chunk)
    solve, scores = (torch.empty_like(reads, dtype=k.dtype) for _ in range(2))
    channel_scores_kernel[(spans.chunks * heads * (chunk // BLOCK),)](
        q,
        k,
        gain,
        log_decay,
        reads,
        scores,
        spans.seq_start,
        spans.chunk_seq,
        spans.chunk_first,
        H=heads,
        G=k.shape[1],
        K=key,
        C=chunk,
        N=BLOCK,
        PREC=prec,
        **channel_config("channel_scores", k, tuning),
    )
    wide = k.dtype == torch.float32
    levels, warps = chunk.bit_length() - 1, 8 if wide else 4
    channel_solve_kernel[(spans.chunks * heads,)](reads, solve, C=chunk, LEVELS=levels, PREC=prec, num_warps=warps)
    return solve, scores

"""Gradients of the mean pass with decays per channel inside a chunk, parallel over blocks of tokens and of channels.

Legend as in ``channel_backward``; r_ts the ratios R_t / R_s, a number a channel; all products below are by channel:

    dq_t = R_t (dO M_0^T)_t + sum_{s <= t} dA_ts r_ts g_s        dk_t = -R_t (dV M_0^T)_t + sum_{s < t} dX_ts r_ts g_s
    dg_s = c_s + sum_{t >= s} r_ts (dA_ts q_t + dX_ts k_t)       c_s = (R_C / R_s) (E dM^T)_s

Every pair s < t is decayed by the a_i between them, what is read from M_0 by all up to t, what is written to M by all
after s. Without the pairs s = t, which nothing decays, and with the writes c kept apart:

    db_t = q_t dq_t + k_t dk_t - g_t (dg_t - c_t)
    d log_decay_i = sum_{t >= i} db_t + sum_{s < i} g_s c_s + R_C sum_V M_0 dM

so that under strong decay every term is small, and not the difference of large ones. A block of tokens sums its own;
``channel_decay_kernel`` adds the blocks after it and before it.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
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
from bayesmem.ops.triton.mean_tiles import load_rows, state_tile, store_rows
from bayesmem.ops.triton.sizes import block, cdiv
from bayesmem.ops.triton.spans import Spans


@triton.jit
@no_type_check
def _through_means(
    innovation, means, do, dv, d_means, own, live, at, head, col,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, N: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    PREC: tl.constexpr,
):  # fmt: skip
    """``dO M_0^T``, ``-dV M_0^T``, ``E dM^T`` of a block of tokens, and ``sum_V M_0 dM``."""
    dq = tl.zeros([N, BK], tl.float32)
    dk = tl.zeros([N, BK], tl.float32)
    written = tl.zeros([N, BK], tl.float32)
    both = tl.zeros([BK], tl.float32)
    for v_col in range(0, V, BV):
        offsets, mask = state_tile(at, col, v_col, K, V, BK, BV)
        mean = tl.load(means + offsets, mask=mask, other=0.0)
        d_mean = tl.load(d_means + offsets, mask=mask, other=0.0)
        both += tl.sum(mean.to(tl.float32) * d_mean.to(tl.float32), 1)
        dq = tl.dot(load_rows(do, own, live, head, v_col, H, V, BV), tl.trans(mean), dq, input_precision=PREC)
        dk = tl.dot(load_rows(dv, own, live, head, v_col, H, V, BV), tl.trans(mean), dk, input_precision=PREC)
        error = load_rows(innovation, own, live, head, v_col, H, V, BV)
        written = tl.dot(error, tl.trans(d_mean), written, input_precision=PREC)
    return dq, -dk, written, both


@triton.jit
@no_type_check
def channel_local_kernel(
    q, k, gain, log_decay, innovation, means, do, dv, d_means, d_seen, d_reads,
    dq, dk, d_gain, d_log_decay, totals,
    seq_start, chunk_seq, chunk_first,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, N: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """One program a chunk, head, block of N tokens and block of channels; ``totals`` is ``[NC, H, C / N, 2, K]``."""
    pid = tl.program_id(0)
    k_blocks: tl.constexpr = (K + BK - 1) // BK
    blocks: tl.constexpr = C // N
    col, part = (pid % k_blocks) * BK, (pid // k_blocks).to(tl.int64)
    begin, at = (part % blocks) * N, part // blocks
    chunk, head = at // H, at % H
    group = head // (H // G)
    first, end = span(chunk, seq_start, chunk_seq, chunk_first, C)
    n, c, cols = tl.arange(0, N), tl.arange(0, C), col + tl.arange(0, BK)
    own, every = first + begin + n, first + c
    live = own < end

    dq_tile, dk_tile, written, both = _through_means(
        innovation, means, do, dv, d_means, own, live, at, head, col, H, K, V, N, BK, BV, PREC
    )  # fmt: skip
    logs = channels(log_decay, every, every < end, head, cols, H, K)
    up_to = decays_up_to(log_decay, own, live, head, cols, H, K)  # inside the block
    after = decays_after(log_decay, own, (n + 1 < N) & (own + 1 < end), head, cols, H, K)
    since = tl.exp(up_to + tl.sum(tl.where((c < begin)[:, None], logs, 0.0), 0)[None, :])
    left = tl.exp(after + tl.sum(tl.where((c >= begin + N)[:, None], logs, 0.0), 0)[None, :])
    dq_tile *= since
    dk_tile *= since
    written *= left
    dg_tile = tl.zeros([N, BK], tl.float32)
    square = at * (C * C)

    if begin > 0:  # pairs with the tokens of earlier blocks
        earlier = c < begin
        between = decays_after(log_decay, every, (c + 1 < begin) & (every + 1 < end), head, cols, H, K)
        g_far = tl.exp(between) * channels(gain, every, earlier & (every < end), head, cols, H, K)
        places = square + (begin + n)[:, None] * C + c[None, :]
        mask = earlier[None, :] & (n >= 0)[:, None]
        seen = tl.load(d_seen + places, mask=mask, other=0.0).to(tl.float32)
        reads = tl.load(d_reads + places, mask=mask, other=0.0).to(tl.float32)
        passed = tl.exp(up_to)
        dq_tile += passed * tl.dot(seen, g_far, input_precision=PREC)
        dk_tile += passed * tl.dot(reads, g_far, input_precision=PREC)
    if begin + N < C:  # and of later ones
        later = (c >= begin + N) & (every < end)
        passed = tl.exp(decays_up_to(log_decay, every, later, head, cols, H, K))
        places = square + c[None, :] * C + (begin + n)[:, None]
        mask = (c >= begin + N)[None, :] & (n >= 0)[:, None]
        seen = tl.load(d_seen + places, mask=mask, other=0.0).to(tl.float32)
        reads = tl.load(d_reads + places, mask=mask, other=0.0).to(tl.float32)
        far = tl.dot(seen, passed * channels(q, every, later, group, cols, G, K), input_precision=PREC)
        far = tl.dot(reads, passed * channels(k, every, later, group, cols, G, K), far, input_precision=PREC)
        dg_tile += tl.exp(after) * far

    diagonal = square + begin * C + begin
    log_ratio = tl.zeros([N, BK], tl.float32)  # of token t to token s, s falling
    for back in tl.static_range(1, N):
        s = N - 1 - back
        token = first + begin + s
        below = n > s
        log_ratio += tl.where(below[:, None], channel_row(log_decay, token + 1, end, head, cols, H, K)[None, :], 0.0)
        g = tl.where(below[:, None], tl.exp(log_ratio), 0.0) * channel_row(gain, token, end, head, cols, H, K)[None, :]
        dq_tile += tl.load(d_seen + diagonal + n * C + s).to(tl.float32)[:, None] * g
        dk_tile += tl.load(d_reads + diagonal + n * C + s).to(tl.float32)[:, None] * g
    log_ratio = tl.zeros([N, BK], tl.float32)  # of token t to token s, t rising
    for t in tl.static_range(1, N):
        token = first + begin + t
        below = n < t
        log_ratio += tl.where(below[:, None], channel_row(log_decay, token, end, head, cols, H, K)[None, :], 0.0)
        ratio = tl.where(below[:, None], tl.exp(log_ratio), 0.0)
        seen = tl.load(d_seen + diagonal + t * C + n).to(tl.float32)[:, None]
        reads = tl.load(d_reads + diagonal + t * C + n).to(tl.float32)[:, None]
        q_row, k_row = channel_row(q, token, end, group, cols, G, K), channel_row(k, token, end, group, cols, G, K)
        dg_tile += ratio * (seen * q_row[None, :] + reads * k_row[None, :])

    q_tile, k_tile = channels(q, own, live, group, cols, G, K), channels(k, own, live, group, cols, G, K)
    g_tile = channels(gain, own, live, head, cols, H, K)
    db = q_tile * dq_tile + k_tile * dk_tile - g_tile * dg_tile
    sent = g_tile * written
    whole = tl.exp(tl.sum(logs, 0)) * both
    # A product with zeros and ones, not a difference of sums: what a token sends is not to come back as rounding.
    strict = tl.where(n[:, None] > n[None, :], 1.0, 0.0)
    inside = tl.dot(strict, sent, tl.cumsum(db, 0, reverse=True) + whole[None, :], input_precision="tf32x3")
    store_rows(d_log_decay, inside, own, live, head, col, H, K, BK)
    total = totals + part * (2 * K) + cols
    tl.store(total, tl.sum(db, 0), mask=cols < K)
    tl.store(total + K, tl.sum(sent, 0), mask=cols < K)

    itself = tl.load(d_seen + diagonal + n * (C + 1)).to(tl.float32)[:, None]
    store_rows(dq, dq_tile + itself * g_tile, own, live, head, col, H, K, BK)
    store_rows(dk, dk_tile, own, live, head, col, H, K, BK)
    store_rows(d_gain, dg_tile + itself * q_tile + written, own, live, head, col, H, K, BK)


@triton.jit
@no_type_check
def channel_decay_kernel(
    d_log_decay, totals, seq_start, chunk_seq, chunk_first,
    H: tl.constexpr, K: tl.constexpr, C: tl.constexpr, N: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Adds, to what a block of tokens has, what its chunk's other blocks know: one program a chunk, head and block."""
    pid = tl.program_id(0).to(tl.int64)
    blocks: tl.constexpr = C // N
    begin, at = (pid % blocks) * N, pid // blocks
    chunk, head = at // H, at % H
    first, end = span(chunk, seq_start, chunk_seq, chunk_first, C)
    own, cols = first + begin + tl.arange(0, N), tl.arange(0, BK)
    others = tl.zeros([BK], tl.float32)
    for other in tl.static_range(blocks):
        total = totals + (at * blocks + other) * (2 * K) + cols
        others += tl.load(total, mask=cols < tl.where(begin < other * N, K, 0), other=0.0)
        others += tl.load(total + K, mask=cols < tl.where(begin > other * N, K, 0), other=0.0)
    tile = load_rows(d_log_decay, own, own < end, head, 0, H, K, BK)
    store_rows(d_log_decay, tile + others[None, :], own, own < end, head, 0, H, K, BK)


def channel_local(
    q: Tensor,
    k: Tensor,
    gain: Tensor,
    log_decay: Tensor,
    known: tuple[Tensor, ...],
    spans: Spans,
    prec: str,
    tuning: Tuning | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch both kernels; ``known``: innovations, means, do, dv, d_means, dA, dX.

    Returns:
        Gradients of q and k ``[N, H, K]`` in their dtype, of gain in its own, of log_decay in float32.
    """
    heads, key, value, chunk = gain.shape[1], k.shape[-1], known[2].shape[-1], spans.chunk_size
    config = channel_config("channel_local", k, tuning)
    config = {"BV": block(value, 32 if k.dtype == torch.float32 else 64)} | config
    blocks = chunk // BLOCK
    dq, dk = torch.empty_like(gain, dtype=k.dtype), torch.empty_like(gain, dtype=k.dtype)
    d_gain, d_log_decay = torch.empty_like(gain), torch.empty_like(log_decay)
    totals = log_decay.new_empty(spans.chunks, heads, blocks, 2, key)
    where = (spans.seq_start, spans.chunk_seq, spans.chunk_first)
    channel_local_kernel[(spans.chunks * heads * blocks * cdiv(key, config["BK"]),)](
        q, k, gain, log_decay, *known, dq, dk, d_gain, d_log_decay, totals, *where,
        H=heads, G=k.shape[1], K=key, V=value, C=chunk, N=BLOCK, PREC=prec, **config,
    )  # fmt: skip
    channel_decay_kernel[(spans.chunks * heads * blocks,)](
        d_log_decay, totals, *where, H=heads, K=key, C=chunk, N=BLOCK, BK=block(key), num_warps=4
    )  # fmt: skip
    return dq, dk, d_gain, d_log_decay

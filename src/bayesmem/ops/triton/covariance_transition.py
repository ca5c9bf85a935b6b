"""How the memory goes through a segment whose gains are known: the transition A, and what the tokens see through it.

Legend: k keys, g gains, R_t product of retentions since the chunk began, e_s = R_C / R_s; Kbar = Li (R K) the keys seen
from the start of their chunk (``covariance_prepare``), A the transition from the segment's start to the chunk's.

    A <- R_C A - (e G)^T (Kbar A)        seen_t = (Kbar A)_t / sqrt(s_t)

A carries the covariance's adjoint backwards, Lambda_0 = A^T Lambda A, and with gains that start from no covariance it
is the element's (docs/math.md 5.4), of which sum_t seen_t seen_t^T is the information J.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from bayesmem.ops.triton.covariance_config import transition_config
from bayesmem.ops.triton.covariance_products import pair_product, product, split, transposed, unit_inverse
from bayesmem.ops.triton.covariance_tiles import (
    load_column_pair,
    load_gate,
    load_token_pair,
    load_tokens,
    place_chunk,
    retention_ratios,
    store_columns,
    store_gate,
)
from bayesmem.ops.triton.mean_config import Tuning
from bayesmem.ops.triton.sizes import block, cdiv
from bayesmem.ops.triton.spans import Spans


@triton.jit
@no_type_check
def read_kernel(
    k,
    gain,
    log_retention,
    read,
    to_end,
    seq_start,
    chunk_seq,
    chunk_first,
    H: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    LEVELS: tl.constexpr,
    BK: tl.constexpr,
    PREC: tl.constexpr,
):
    """One program a chunk and head: Kbar, tokens last, and e."""
    chunk, head = tl.program_id(0), tl.program_id(1)
    at, key_head = chunk.to(tl.int64) * H + head, head // (H // G)
    first, live = place_chunk(chunk, seq_start, chunk_seq, chunk_first, C)
    kg = tl.zeros([C, C], tl.float32)
    for col in range(0, K, BK):
        k_tile = load_tokens(k, first, live, key_head, col, G, K, C, BK)
        kg = product(k_tile, tl.trans(load_tokens(gain, first, live, head, col, H, K, C, BK)), kg, PREC)
    ratio, since, after = retention_ratios(log_retention, first, live, head, H, C)
    store_gate(to_end, after, first, live, head, H, C)
    i = tl.arange(0, C)
    inverse = unit_inverse(tl.where(i[:, None] > i[None, :], ratio * kg, 0.0), C, LEVELS, PREC)
    inverse = tl.trans(inverse * since[None, :])
    for col in range(0, K, BK):
        k_tile = tl.trans(load_tokens(k, first, live, key_head, col, G, K, C, BK))
        store_columns(read, product(k_tile, inverse, None, PREC), at, col, K, C, BK)


@triton.jit
@no_type_check
def transition_kernel(
    gain,
    gain_low,
    read,
    read_low,
    log_retention,
    to_end,
    innovation_var,
    seen,
    transition,
    seq_start,
    chunk_first,
    length,
    H: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    BH: tl.constexpr,
    BA: tl.constexpr,
    PREC: tl.constexpr,
):
    """One program a segment, head and block of A's columns; gains and Kbar are float32, or pairs.

    A's rows stand in ``upper`` and, where K > BH, in ``lower``, so that products take half the registers. ``seen`` is
    ``[S, H, length, K]``, zero where a segment is shorter, or None.
    """
    segment, head, col = tl.program_id(0), tl.program_id(1), tl.program_id(2) * BA
    begin, end = tl.load(seq_start + segment).to(tl.int64), tl.load(seq_start + segment + 1)
    chunk_begin = tl.load(chunk_first + segment)
    own = segment.to(tl.int64) * H + head
    i, j, token = tl.arange(0, BH), col + tl.arange(0, BA), tl.arange(0, C)
    upper = tl.where(i[:, None] == j[None, :], 1.0, 0.0)
    lower = tl.where(BH + i[:, None] == j[None, :], 1.0, 0.0)
    for now in range(tl.load(chunk_first + segment + 1) - chunk_begin):
        at = (chunk_begin + now).to(tl.int64) * H + head
        first = begin + now * C
        live = first + token < end
        k = load_column_pair(read, read_low, at, 0, K, C, BH)
        u = pair_product(transposed(k), split(upper, PREC), None, PREC)
        if K > BH:
            k = load_column_pair(read, read_low, at, BH, K, C, BH)
            u = pair_product(transposed(k), split(lower, PREC), u, PREC)
        if seen is not None:
            scale = tl.where(live, tl.rsqrt(load_gate(innovation_var, first, live, head, H, C, 1.0)), 0.0)
            rows = seen + ((own * length + now * C) * K + token[:, None] * K + j[None, :])
            tl.store(rows, (scale[:, None] * u).to(tl.float64), mask=(j < K)[None, :])
        kept = tl.exp(tl.load(log_retention + first * H + head)) * tl.load(to_end + first * H + head)
        u = split(-load_gate(to_end, first, live, head, H, C, 1.0)[:, None] * u, PREC)
        g = load_token_pair(gain, gain_low, first, live, head, 0, H, K, C, BH)
        upper = pair_product(transposed(g), u, kept * upper, PREC)
        if K > BH:
            g = load_token_pair(gain, gain_low, first, live, head, BH, H, K, C, BH)
            lower = pair_product(transposed(g), u, kept * lower, PREC)
    to = transition + own * (K * K) + (i[:, None] * K + j[None, :])
    tl.store(to, upper, mask=(i < K)[:, None] & (j < K)[None, :])
    if K > BH:
        tl.store(to + BH * K, lower, mask=(BH + i < K)[:, None] & (j < K)[None, :])


def transitions(
    gain: tuple[Tensor, Tensor | None],
    read: tuple[Tensor, Tensor | None],
    log_retention: Float[Tensor, "N H"],
    to_end: Float[Tensor, "N H"],
    innovation_var: Float[Tensor, "N H"] | None,
    length: int,
    spans: Spans,
    prec: str,
    tuning: Tuning | None = None,
) -> tuple[Float[Tensor, "S H K K"], Float[Tensor, "S H L K"] | None]:
    """The transition of every segment, and what its tokens see of the state that enters it.

    Args:
        gain: ``[N, H, K]`` as a pair, or float32 and ``None``.
        read: Kbar ``[NC, H, K, C]`` likewise.
        log_retention: at most 0.
        to_end: R_C / R_t.
        innovation_var: where what is seen is asked for.
        length: rows to give every segment in that, whole chunks.
        spans: the segments as sequences.
        prec: of the products.
        tuning: overrides, under ``transition``.

    Returns:
        A, and float64 rows ``(Kbar A)_t / sqrt(s_t)``, zero beyond a segment's end.
    """
    heads, key_dim = gain[0].shape[1:]
    made = log_retention.new_empty(spans.sequences, heads, key_dim, key_dim)
    seen = None
    if innovation_var is not None:
        seen = made.new_zeros(spans.sequences, heads, length, key_dim, dtype=torch.float64)
    config = transition_config(gain[0], prec, tuning)
    transition_kernel[(spans.sequences, heads, cdiv(key_dim, config["BA"]))](
        *gain,
        *read,
        log_retention,
        to_end,
        innovation_var,
        seen,
        made,
        spans.seq_start,
        spans.chunk_first,
        length,
        H=heads,
        K=key_dim,
        C=spans.chunk_size,
        **config,
    )
    return made, seen


def keys_from_start(
    k: Float[Tensor, "N G K"],
    gain: Float[Tensor, "N H K"],
    log_retention: Float[Tensor, "N H"],
    spans: Spans,
    prec: str,
    tuning: Tuning | None = None,
) -> tuple[Float[Tensor, "NC H K C"], Float[Tensor, "N H"]]:
    """Kbar of every chunk, float32 with tokens last, and R_C / R_t."""
    heads, key_dim = gain.shape[1:]
    chunk = spans.chunk_size
    read, to_end = gain.new_empty(spans.chunks, heads, key_dim, chunk), torch.empty_like(log_retention)
    config = {"BK": block(key_dim, 32), "num_warps": 4, "num_stages": 2} | (tuning or {}).get("read", {})
    read_kernel[(spans.chunks, heads)](
        k,
        gain,
        log_retention,
        read,
        to_end,
        spans.seq_start,
        spans.chunk_seq,
        spans.chunk_first,
        H=heads,
        G=k.shape[1],
        K=key_dim,
        C=chunk,
        LEVELS=chunk.bit_length() - 1,
        PREC=prec,
        **config,
    )
    return read, to_end

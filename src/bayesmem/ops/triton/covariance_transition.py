"""How the memory goes through a segment whose gains are known: the transition A.

Legend: g gains, R_t product of retentions since the chunk began, e_s = R_C / R_s; Kbar = Li (R K) the keys seen from
the start of their chunk (``covariance_prepare``), A the transition from the segment's start to the chunk's.

    A <- R_C A - (e G)^T (Kbar A)

A carries the covariance's adjoint backwards: Lambda_0 = A^T Lambda A and what the segment gathers.
"""

from typing import no_type_check

import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from bayesmem.ops.triton.covariance_config import transition_config
from bayesmem.ops.triton.covariance_products import pair_product, split, transposed
from bayesmem.ops.triton.covariance_tiles import (
    load_column_pair,
    load_gate,
    load_token_pair,
)
from bayesmem.ops.triton.mean_config import Tuning
from bayesmem.ops.triton.sizes import cdiv
from bayesmem.ops.triton.spans import Spans


@triton.jit
@no_type_check
def transition_kernel(
    gain,
    gain_low,
    read,
    read_low,
    log_retention,
    to_end,
    transition,
    seq_start,
    chunk_first,
    H: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    BH: tl.constexpr,
    BA: tl.constexpr,
    PREC: tl.constexpr,
):
    """One program a segment, head and block of A's columns; gains and Kbar are float32, or pairs.

    A's rows stand in ``upper`` and, where K > BH, in ``lower``, so that products take half the registers.
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
    spans: Spans,
    prec: str,
    tuning: Tuning | None = None,
) -> Float[Tensor, "S H K K"]:
    """A of every segment.

    Args:
        gain: ``[N, H, K]`` as a pair, or float32 and ``None``.
        read: Kbar ``[NC, H, K, C]`` likewise.
        log_retention: at most 0.
        to_end: R_C / R_t.
        spans: the segments as sequences.
        prec: of the products.
        tuning: overrides, under ``transition``.
    """
    heads, key_dim = gain[0].shape[1:]
    made = log_retention.new_empty(spans.sequences, heads, key_dim, key_dim)
    config = transition_config(gain[0], prec, tuning)
    transition_kernel[(spans.sequences, heads, cdiv(key_dim, config["BA"]))](
        *gain,
        *read,
        log_retention,
        to_end,
        made,
        spans.seq_start,
        spans.chunk_first,
        H=heads,
        K=key_dim,
        C=spans.chunk_size,
        **config,
    )
    return made

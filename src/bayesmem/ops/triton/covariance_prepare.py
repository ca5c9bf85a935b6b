"""What a chunk of the covariance's backward knows before Lambda reaches it: parallel over chunks and heads.

Legend: k keys, q queries, g gains, s innovation variances, R_t product of retentions since the chunk began; gamma,
sigma, nu the gradients of the gains, the innovation variances and the predictive variances; slow() strictly lower
part, tril() lower part, ratio_ts = R_t / R_s for s <= t. With a_t = y_t + c_t k_t, y_t = gamma_t / s_t and
c_t = sigma_t - y_t . g_t, one step of the recursion of ``covariance_backward`` is

    Lambda-_t = (I - k_t g_t^T) Lambda_t (I - g_t k_t^T) + (a_t k_t^T + k_t a_t^T) / 2

whose products over a chunk are written by one inverse, Li = (I + slow(ratio K G^T))^-1:

    Kbar = Li (R K)     Ag = slow(ratio A G^T)     alpha = R A - Ag Kbar
    Qg = tril(ratio Q G^T)     qbar = R Q - Qg Kbar

and what needs no Lambda of Lambda_t g_t = ... + direct^T K - (slow(Li) ratio)^T Y / 2 + query^T Q is

    direct = ratio (slow(Li^T (Ag Li + slow(Ag^T Li)) / 2 - Li^T slow(Qg^T nu Qg Li)) - c slow(Li) / 2)
    query = ratio tril(nu Qg Li)

A Hopper has a kernel of its own (``covariance_prepare_cuda``) for gains that are a pair, without gradients of the
predictive variance.
"""

from dataclasses import dataclass
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from bayesmem.ops.triton.covariance_config import prepare_config
from bayesmem.ops.triton.covariance_prepare_cuda import cuda_prepare
from bayesmem.ops.triton.covariance_products import (
    Pair,
    pair_product,
    product,
    split,
    transposed,
    unit_inverse,
)
from bayesmem.ops.triton.covariance_tiles import (
    load_gate,
    load_token_pair,
    load_tokens,
    place_chunk,
    retention_ratios,
    store_column_pair,
    store_columns,
    store_gate,
    store_sums,
    store_token_pair,
)
from bayesmem.ops.triton.cuda_launch import aligned
from bayesmem.ops.triton.launched import launched
from bayesmem.ops.triton.mean_config import Tuning
from bayesmem.ops.triton.mean_tiles import square_tile
from bayesmem.ops.triton.spans import Spans


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the chain and the tokens read; those of q are None without a gradient of the variances.

    Attributes:
        gain: as a pair ``[N, H, K]`` (``covariance_products``), as the next two pairs: bfloat16, or float32 and None.
        solve: Li ``[NC, H, C, C]``.
        direct: the part of Lambda_t g_t along the keys that needs no Lambda ``[NC, H, C, C]``.
        query: that along the queries ``[NC, H, C, C]``.
        alpha: with tokens last, as the tensor cores want it ``[NC, H, K, C]``.
        read: Kbar as a pair, likewise.
        heard: qbar, likewise.
        to_end: R_C / R_t ``[N, H]``.
        along: c ``[N, H]``.
        sums: the log of R_t, in two sums that add up to it (``ratios``) ``[NC, H, 2, C]``.
    """

    gain: Pair
    solve: Float[Tensor, "NC H C C"]
    direct: Float[Tensor, "NC H C C"]
    query: Float[Tensor, "NC H C C"] | None
    alpha: Float[Tensor, "NC H K C"]
    read: Pair
    heard: Float[Tensor, "NC H K C"] | None
    to_end: Float[Tensor, "N H"]
    along: Float[Tensor, "N H"]
    sums: Float[Tensor, "NC H 2 C"]


@launched
@triton.jit
@no_type_check
def prepare_kernel(
    k,
    q,
    gain,
    gain_low,
    innovation_var,
    log_retention,
    dgain,
    dinnovation_var,
    dvar,
    made_high,
    made_low,
    solve,
    direct,
    query,
    alpha,
    read_high,
    read_low,
    heard,
    to_end,
    along_key,
    sums,
    seq_start,
    chunk_seq,
    chunk_first,
    H: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    LEVELS: tl.constexpr,
    BK: tl.constexpr,
    OUT_BLOCK: tl.constexpr,
    PREC: tl.constexpr,
):
    """One program a chunk and head; the gain is made a pair unless ``made_high`` and ``made_low`` are None."""
    chunk, head = tl.program_id(0), tl.program_id(1)
    at, key_head = chunk.to(tl.int64) * H + head, head // (H // G)
    first, live = place_chunk(chunk, seq_start, chunk_seq, chunk_first, C)
    kg = tl.zeros([C, C], tl.float32)
    yg = tl.zeros([C, C], tl.float32)
    qg = tl.zeros([C, C], tl.float32)
    for col in range(0, K, BK):
        g = load_token_pair(gain, gain_low, first, live, head, col, H, K, C, BK)
        if made_high is not None:
            g = split(g[0], PREC)
            store_token_pair(made_high, made_low, g, first, live, head, col, H, K, C, BK)
        g = transposed(g)
        kg = pair_product(split(load_tokens(k, first, live, key_head, col, G, K, C, BK), PREC), g, kg, PREC)
        yg = pair_product(split(load_tokens(dgain, first, live, head, col, H, K, C, BK), PREC), g, yg, PREC)
        if dvar is not None:
            qg = pair_product(split(load_tokens(q, first, live, key_head, col, G, K, C, BK), PREC), g, qg, PREC)

    ratio, since, after = retention_ratios(log_retention, first, live, head, H, C)
    store_sums(sums, log_retention, first, live, head, at, H, C)
    store_gate(to_end, after, first, live, head, H, C)
    i = tl.arange(0, C)
    below = i[:, None] > i[None, :]
    kg = tl.where(below, ratio * kg, 0.0)
    per_var = 1.0 / load_gate(innovation_var, first, live, head, H, C, 1.0)
    yg *= per_var[:, None]
    along = -tl.sum(tl.where(i[:, None] == i[None, :], yg, 0.0), 1)  # c
    if dinnovation_var is not None:
        along += load_gate(dinnovation_var, first, live, head, H, C, 0.0)
    store_gate(along_key, along, first, live, head, H, C)
    ag = tl.where(below, ratio * yg, 0.0) + along[:, None] * kg
    inverse = unit_inverse(kg, C, LEVELS, PREC)
    tl.store(solve + square_tile(at, C), inverse)

    drive = product(ag, inverse, None, PREC)
    mixed = 0.5 * (drive + tl.where(below, product(tl.trans(ag), inverse, None, PREC), 0.0))
    if dvar is not None:
        query_drive = product(ratio * qg, inverse, None, PREC)
        asked = load_gate(dvar, first, live, head, H, C, 0.0)[:, None] * query_drive
        tl.store(query + square_tile(at, C), ratio * asked)
        mixed -= tl.where(below, product(tl.trans(ratio * qg), asked, None, PREC), 0.0)
        query_drive *= -since[None, :]
    mixed = product(tl.trans(inverse), mixed, -0.5 * along[:, None] * inverse, PREC)
    tl.store(direct + square_tile(at, C), tl.where(below, ratio * mixed, 0.0))

    # From here on transposed: channels are the rows, tokens the columns.
    inverse = tl.trans(inverse * since[None, :])
    drive = tl.trans(tl.where(i[:, None] == i[None, :], along[:, None], -drive) * since[None, :])
    for col in range(0, K, OUT_BLOCK):
        k_tile = tl.trans(load_tokens(k, first, live, key_head, col, G, K, C, OUT_BLOCK))
        read = split(product(k_tile, inverse, None, PREC), PREC)
        store_column_pair(read_high, read_low, read, at, col, K, C, OUT_BLOCK)
        alpha_tile = (
            tl.trans(load_tokens(dgain, first, live, head, col, H, K, C, OUT_BLOCK)) * (since * per_var)[None, :]
        )
        store_columns(alpha, product(k_tile, drive, alpha_tile, PREC), at, col, K, C, OUT_BLOCK)
        if dvar is not None:
            q_tile = tl.trans(load_tokens(q, first, live, key_head, col, G, K, C, OUT_BLOCK))
            heard_tile = q_tile.to(tl.float32) * since[None, :]
            heard_tile = product(k_tile, tl.trans(query_drive), heard_tile, PREC)
            store_columns(heard, heard_tile, at, col, K, C, OUT_BLOCK)


def empty_pair(x: Tensor) -> Pair:
    """Room for the two halves of ``x``."""
    return torch.empty_like(x, dtype=torch.bfloat16), torch.empty_like(x, dtype=torch.bfloat16)


def prepare(
    k: Tensor,
    q: Tensor | None,
    gain: Pair,
    innovation_var: Tensor,
    log_retention: Tensor,
    dgain: Tensor,
    dinnovation_var: Tensor | None,
    dvar: Tensor | None,
    spans: Spans,
    prec: str,
    tuning: Tuning | None,
) -> Prepared:
    """Launch one of the two kernels; the arguments are those of ``covariance_backward``."""
    heads, key_dim = dgain.shape[1:]
    chunk, asked = spans.chunk_size, dvar is not None
    solve = innovation_var.new_empty(spans.chunks, heads, chunk, chunk)
    alpha = innovation_var.new_empty(spans.chunks, heads, key_dim, chunk)
    query, heard = (torch.empty_like(x) if asked else None for x in (solve, alpha))
    halved = prec == "bf16x3"
    made = empty_pair(gain[0]) if halved and gain[1] is None else None
    prepared = Prepared(
        gain if made is None else made,
        solve,
        torch.empty_like(solve),
        query,
        alpha,
        empty_pair(alpha) if halved else (torch.empty_like(alpha), None),
        heard,
        torch.empty_like(log_retention),
        torch.empty_like(log_retention),
        innovation_var.new_empty(spans.chunks, heads, 2, chunk),
    )
    in_cuda = None
    kinds = k.dtype == torch.bfloat16 and dgain.dtype == torch.float32
    if kinds and made is None and not asked and "prepare" not in (tuning or {}):
        in_cuda = cuda_prepare(key_dim, chunk, prec, k.device)
    if in_cuda is not None:
        given = (aligned(k), *gain, innovation_var, log_retention, aligned(dgain))
        filled = (solve, prepared.direct, alpha, *prepared.read, prepared.to_end, prepared.along, prepared.sums)
        places = (spans.seq_start, spans.chunk_seq, spans.chunk_first, heads, k.shape[1])
        in_cuda(spans.chunks * heads, (*given, 0 if dinnovation_var is None else dinnovation_var, *filled, *places))
        return prepared
    prepare_kernel[(spans.chunks, heads)](
        k,
        q,
        *gain,
        innovation_var,
        log_retention,
        dgain,
        dinnovation_var,
        dvar,
        *((None, None) if made is None else made),
        prepared.solve,
        prepared.direct,
        prepared.query,
        prepared.alpha,
        *prepared.read,
        prepared.heard,
        prepared.to_end,
        prepared.along,
        prepared.sums,
        spans.seq_start,
        spans.chunk_seq,
        spans.chunk_first,
        H=heads,
        G=k.shape[1],
        K=key_dim,
        C=chunk,
        LEVELS=chunk.bit_length() - 1,
        **prepare_config(dgain, prec, tuning),
    )
    return prepared

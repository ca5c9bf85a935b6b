"""The reverse chain of the covariance's backward: Lambda = dLoss / dP from chunk to chunk.

Legend: as in ``covariance_prepare``; Lambda_C and Lambda_0 belong to the end and the start of a chunk, e_s = R_C / R_s.

    N = e (G Lambda_C)     S = N (e G)^T = S^T     Z = alpha / 2 - R_C N + S Kbar / 2
    Lambda_0 = R_C^2 Lambda_C + Kbar^T Z + Z^T Kbar + qbar^T nu qbar

N and S are all that the tokens need of Lambda_C, with its trace and, now and then, <Lambda_C, P_C>. They are kept and
Lambda is not: it stays in registers where it fits there, otherwise in global memory (``covariance_chain_tiled``).
Channels are the rows of all tiles, so that there is a row for every thread, where a chunk has fewer tokens. Hopper has
a kernel of its own (``covariance_chain_cuda``) for 16-bit streams without gradients of the predictive variance.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from bayesmem.ops.step import symmetric
from bayesmem.ops.triton.covariance_chain_cuda import cuda_chain
from bayesmem.ops.triton.covariance_chain_tiled import tiled_chain_kernel
from bayesmem.ops.triton.covariance_config import chain_config
from bayesmem.ops.triton.covariance_cuts import cut_room, side_by_side
from bayesmem.ops.triton.covariance_prepare import Prepared
from bayesmem.ops.triton.covariance_products import Pair, pair_product, product, split, transposed
from bayesmem.ops.triton.covariance_tiles import (
    cov_after,
    load_column_pair,
    load_columns,
    load_gate,
    load_matrix,
    load_token_pair,
    store_matrix,
    store_token_pair,
)
from bayesmem.ops.triton.cuda_launch import aligned
from bayesmem.ops.triton.device import limits
from bayesmem.ops.triton.launched import launched
from bayesmem.ops.triton.mean_config import Tuning
from bayesmem.ops.triton.mean_tiles import square_tile
from bayesmem.ops.triton.spans import Spans


@dataclass(frozen=True, slots=True)
class Chained:
    """What the tokens need of Lambda_C.

    Attributes:
        sent: the transpose of N as a pair ``[NC, H, C, K]``.
        met: S ``[NC, H, C, C]``.
        trace: the diagonal of Lambda_C ``[NC, H, K]``.
        overlap: ``<Lambda_C, P_C>`` ``[NC, H]`` of every chunk so many before its sequence's last as ``renew`` divides.
        renew: how many chunks share an overlap.
        began: ``<Lambda_C, P_0>`` of every chunk ``[NC, H]``, for ``covariance_retention``.
    """

    sent: Pair
    met: Float[Tensor, "NC H C C"]
    trace: Float[Tensor, "NC H K"]
    overlap: Float[Tensor, "NC H"]
    renew: int
    began: Float[Tensor, "NC H"] | None


@launched
@triton.jit
@no_type_check
def chain_kernel(
    gain_high,
    gain_low,
    alpha,
    read_high,
    read_low,
    heard,
    dvar,
    log_retention,
    to_end,
    checkpoints,
    final_cov,
    sent_high,
    sent_low,
    met,
    trace,
    overlap,
    began,
    d_initial_cov,
    seq_start,
    chunk_first,
    H: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
    RENEW: tl.constexpr,
    PREC: tl.constexpr,
):
    """One program a sequence and head, BK >= K; Lambda starts and ends in ``d_initial_cov``."""
    sequence, head = tl.program_id(0), tl.program_id(1)
    chunk_begin, last = tl.load(chunk_first + sequence), tl.load(chunk_first + sequence + 1) - 1
    own = d_initial_cov + (sequence.to(tl.int64) * H + head) * (K * K)
    i, every = tl.arange(0, BK), tl.arange(0, C) >= 0
    begin, end = tl.load(seq_start + sequence).to(tl.int64), tl.load(seq_start + sequence + 1)
    lam = load_matrix(own, 0, 0, K, BK, BK)
    for back in range(last - chunk_begin + 1):
        chunk = last - back
        at = chunk.to(tl.int64) * H + head
        first = begin + (chunk - chunk_begin) * C
        live = first + tl.arange(0, C) < end
        g = load_token_pair(gain_high, gain_low, first, live, head, 0, H, K, C, BK)
        after = load_gate(to_end, first, live, head, H, C, 1.0)
        kept = tl.exp(tl.load(log_retention + first * H + head)) * tl.load(to_end + first * H + head)
        diagonal = tl.sum(tl.where(i[:, None] == i[None, :], lam, 0.0), 1)
        tl.store(trace + at * K + i, diagonal, mask=i < K)
        if back % RENEW == 0:
            cov = cov_after(checkpoints, final_cov, chunk, last, sequence, head, H, K)
            tl.store(overlap + at, tl.sum(tl.sum(lam * load_matrix(cov, 0, 0, K, BK, BK), 1), 0))
        if began is not None:
            cov = load_matrix(checkpoints + at * (K * K), 0, 0, K, BK, BK)
            tl.store(began + at, tl.sum(tl.sum(lam * cov, 1), 0))

        n = pair_product(split(lam, PREC), transposed(g), None, PREC) * after[None, :]
        n_pair = split(n, PREC)
        k_bar = load_column_pair(read_high, read_low, at, 0, K, C, BK)
        store_token_pair(sent_high, sent_low, transposed(n_pair), at * C, every, 0, 0, 1, K, C, BK)
        s = pair_product(g, n_pair, None, PREC) * after[:, None]
        tl.store(met + square_tile(at, C), s)
        s_pair = split(0.5 * s, PREC)
        z = 0.5 * load_columns(alpha, at, 0, K, C, BK) - kept * n
        z_pair = split(pair_product(k_bar, s_pair, z, PREC), PREC)
        # Both of two transposes: the tensor cores make the second one sooner than shared memory turns the first.
        lam = pair_product(k_bar, transposed(z_pair), (kept * kept) * lam, PREC)
        lam = pair_product(z_pair, transposed(k_bar), lam, PREC)
        if dvar is not None:
            q_bar = load_columns(heard, at, 0, K, C, BK)
            q_nu = q_bar * load_gate(dvar, first, live, head, H, C, 0.0)[None, :]
            lam = product(q_bar, tl.trans(q_nu), lam, PREC)
    store_matrix(own, 0.5 * (lam + tl.trans(lam)), 0, 0, K, BK, BK)


def chain_in_cuda(
    final_cov: Tensor, keys: torch.dtype, dvar: Tensor | None, spans: Spans, prec: str, tuning: Tuning | None
) -> Callable[..., None] | None:
    """What launches the CUDA kernel, or ``None`` where a Triton one is to do it."""
    if dvar is not None or "chain" in (tuning or {}):
        return None
    return cuda_chain(final_cov.shape[-1], keys, spans.chunk_size, prec, final_cov.device)


def chain(
    prepared: Prepared,
    dvar: Float[Tensor, "N H"] | None,
    k: Float[Tensor, "N G K"],
    gates: tuple[Tensor, Tensor, Tensor, Tensor],
    checkpoints: Float[Tensor, "NC H K K"],
    final_cov: Float[Tensor, "S H K K"],
    d_final_cov: Float[Tensor, "S H K K"] | None,
    spans: Spans,
    prec: str,
    tuning: Tuning | None,
) -> tuple[Chained, Float[Tensor, "S H K K"]]:
    """Launch one of the three kernels: what is left for the tokens, and the gradient of the initial covariance.

    ``prepared.alpha`` may be overwritten. ``gates`` are log_retention, process_noise, obs_noise and floor, of which all
    but the first, and k, only tell how soon a chain forgets, and so whether it is cut (covariance_cuts.cu).
    """
    heads, key_dim = final_cov.shape[1], final_cov.shape[-1]
    config = chain_config(final_cov, prec, tuning)
    start = None if d_final_cov is None else symmetric(d_final_cov).contiguous()
    high, low = prepared.read
    sent = (high.new_empty(high.mT.shape), None if low is None else low.new_empty(low.mT.shape))
    trace, overlap = final_cov.new_empty(spans.chunks, heads, key_dim), final_cov.new_empty(spans.chunks, heads)
    began = None if prec == "bf16x3" else torch.empty_like(overlap)
    chained = Chained(sent, torch.empty_like(prepared.solve), trace, overlap, config["RENEW"], began)
    if in_cuda := chain_in_cuda(final_cov, k.dtype, dvar, spans, prec, tuning):
        made, chains = torch.empty_like(final_cov), spans.sequences * heads
        segments = side_by_side(spans, heads, limits(k.device).processors)
        room = cut_room(k, chains, segments)
        known = (*prepared.gain, prepared.alpha, *prepared.read, gates[0], prepared.to_end, checkpoints, final_cov)
        given = (*known, aligned(k), *gates[1:], trace.new_empty(0) if start is None else start)
        places = (spans.seq_start, spans.chunk_first, heads, k.shape[1])
        in_cuda(chains, segments, (*given, *sent, chained.met, trace, overlap, made, *room, *places))
        return chained, made
    d_initial_cov = torch.zeros_like(final_cov) if start is None else start
    kernel = chain_kernel if config["BK"] >= key_dim else tiled_chain_kernel
    kernel[(spans.sequences, heads)](
        *prepared.gain,
        prepared.alpha,
        *prepared.read,
        prepared.heard,
        dvar,
        gates[0],
        prepared.to_end,
        checkpoints,
        final_cov,
        *chained.sent,
        chained.met,
        chained.trace,
        chained.overlap,
        chained.began,
        d_initial_cov,
        spans.seq_start,
        spans.chunk_first,
        H=heads,
        K=key_dim,
        C=spans.chunk_size,
        **config,
    )
    return chained, d_initial_cov

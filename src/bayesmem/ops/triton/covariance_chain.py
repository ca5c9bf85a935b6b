"""The reverse chain of the covariance's backward: Lambda = dLoss / dP from chunk to chunk.

Legend: as in ``covariance_prepare``; Lambda_C and Lambda_0 belong to the end and the start of a chunk, e_s = R_C / R_s.

    N = e (G Lambda_C)     S = N (e G)^T = S^T     Z = alpha / 2 - R_C N + S Kbar / 2
    Lambda_0 = R_C^2 Lambda_C + Kbar^T Z + Z^T Kbar + qbar^T nu qbar

N and S are all that the tokens need of Lambda_C, with its trace and <Lambda_C, P_C>. They are kept and Lambda is not:
it stays in registers where it fits there, otherwise in global memory (``covariance_chain_tiled``). Channels are the
rows of all tiles, so that there is a row for every thread, where a chunk has fewer tokens.
"""

from dataclasses import dataclass
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from bayesmem.ops.triton.covariance_chain_tiled import tiled_chain_kernel
from bayesmem.ops.triton.covariance_config import chain_config
from bayesmem.ops.triton.covariance_prepare import Prepared
from bayesmem.ops.triton.covariance_tiles import cov_after, load_columns, load_gate, matrix_tile, store_columns
from bayesmem.ops.triton.mean_config import Tuning
from bayesmem.ops.triton.mean_tiles import load_rows, place, square_tile
from bayesmem.ops.triton.spans import Spans


@dataclass(frozen=True, slots=True)
class Chained:
    """What the tokens need of Lambda_C.

    Attributes:
        sent: N with tokens last ``[NC, H, K, C]``.
        met: S ``[NC, H, C, C]``.
        trace: of Lambda_C ``[NC, H]``.
        overlap: ``<Lambda_C, P_C>`` ``[NC, H]``.
    """

    sent: Float[Tensor, "NC H K C"]
    met: Float[Tensor, "NC H C C"]
    trace: Float[Tensor, "NC H"]
    overlap: Float[Tensor, "NC H"]


@triton.jit
@no_type_check
def chain_kernel(
    gain,
    alpha,
    read,
    heard,
    dvar,
    log_retention,
    to_end,
    checkpoints,
    final_cov,
    sent,
    met,
    trace,
    overlap,
    d_initial_cov,
    seq_start,
    chunk_seq,
    chunk_first,
    H: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
    PREC: tl.constexpr,
):
    """One program a sequence and head, BK >= K; Lambda starts and ends in ``d_initial_cov``.

    ``sent`` (N) may be ``alpha`` itself, which is read before.
    """
    sequence, head = tl.program_id(0), tl.program_id(1)
    first, last = tl.load(chunk_first + sequence), tl.load(chunk_first + sequence + 1) - 1
    tile, inside = matrix_tile(0, 0, K, BK)
    own = (sequence.to(tl.int64) * H + head) * (K * K)
    i = tl.arange(0, BK)
    lam = tl.load(d_initial_cov + own + tile, mask=inside, other=0.0)
    for back in range(last - first + 1):
        chunk = last - back
        at = chunk.to(tl.int64) * H + head
        rows, live = place(chunk, seq_start, chunk_seq, chunk_first, C)
        g = load_rows(gain, rows, live, head, 0, H, K, BK)
        k_bar = load_columns(read, at, 0, K, C, BK)
        after = load_gate(to_end, rows, live, head, H, 1.0)
        kept = tl.exp(tl.sum(load_gate(log_retention, rows, live, head, H, 0.0), 0))
        cov = cov_after(checkpoints, final_cov, chunk, last, sequence, head, H, K)
        p = tl.load(cov + tile, mask=inside, other=0.0)
        n = tl.dot(lam, tl.trans(g), input_precision=PREC) * after[None, :]
        tl.store(overlap + at, tl.sum(tl.sum(lam * p, 1), 0))
        tl.store(trace + at, tl.sum(tl.sum(tl.where(i[:, None] == i[None, :], lam, 0.0), 1), 0))
        a = load_columns(alpha, at, 0, K, C, BK)
        s = tl.dot(g, n, input_precision=PREC) * after[:, None]
        z = 0.5 * a - kept * n + 0.5 * tl.dot(k_bar, s, input_precision=PREC)
        store_columns(sent, n, at, 0, K, C, BK)
        tl.store(met + square_tile(at, C), s)
        # Half of Lambda_0, whose other half is its transpose: exactly symmetric, and summed where Lambda is.
        lam = tl.dot(k_bar, tl.trans(z), (0.5 * kept * kept) * lam, input_precision=PREC)
        if dvar is not None:
            q_bar = load_columns(heard, at, 0, K, C, BK)
            nu = load_gate(dvar, rows, live, head, H, 0.0)
            lam = tl.dot(q_bar, tl.trans(0.5 * q_bar * nu[None, :]), lam, input_precision=PREC)
        lam += tl.trans(lam)
    tl.store(d_initial_cov + own + tile, lam, mask=inside)


def chain(
    gain: Float[Tensor, "N H K"],
    prepared: Prepared,
    dvar: Float[Tensor, "N H"] | None,
    log_retention: Float[Tensor, "N H"],
    checkpoints: Float[Tensor, "NC H K K"],
    final_cov: Float[Tensor, "S H K K"],
    d_final_cov: Float[Tensor, "S H K K"] | None,
    spans: Spans,
    prec: str,
    tuning: Tuning | None,
) -> tuple[Chained, Float[Tensor, "S H K K"]]:
    """Launch one of the two kernels: what is left for the tokens, and the gradient of the initial covariance.

    ``prepared.alpha`` is overwritten.
    """
    heads, key_dim = gain.shape[1:]
    config = chain_config(gain, prec, tuning)
    whole = config["BK"] >= key_dim
    start = torch.zeros_like(final_cov) if d_final_cov is None else d_final_cov
    d_initial_cov = 0.5 * (start + start.mT)
    sent = prepared.alpha if whole else torch.empty_like(prepared.alpha)
    trace = gain.new_empty(spans.chunks, heads)
    chained = Chained(sent, torch.empty_like(prepared.solve), trace, torch.empty_like(trace))
    kernel = chain_kernel if whole else tiled_chain_kernel
    kernel[(spans.sequences, heads)](
        gain,
        prepared.alpha,
        prepared.read,
        prepared.heard,
        dvar,
        log_retention,
        prepared.to_end,
        checkpoints,
        final_cov,
        chained.sent,
        chained.met,
        chained.trace,
        chained.overlap,
        d_initial_cov,
        spans.seq_start,
        spans.chunk_seq,
        spans.chunk_first,
        H=heads,
        K=key_dim,
        C=spans.chunk_size,
        PREC=prec,
        **config,
    )
    return chained, d_initial_cov

"""Gradients of the mean pass inside a chunk, parallel over chunks, heads and blocks of key channels.

Legend as in ``mean_backward``; dA, dX those of the scores and of X, r the ratios R_t / R_s:

    dA = tril(r (dO E^T))                dX = -stril(r (dV E^T))
    dQ = R (dO M_0^T) + dA g             dK = -R (dV M_0^T) + dX g
    dS = (R_C / R) (E dM^T)              dg = dS + dA^T Q + dX^T K

Every R_t stands beside q_t or k_t, every 1 / R_s beside g_s, and R_C beside R_C / R_s and M_0. So with b the log of R

    db_t = q_t . dq_t + k_t . dk_t - g_t . dg_t
    d log_decay_i = sum_{t >= i} db_t + sum_{s < i} g_s . dS_s + R_C <M_0, dM>

where dq and dg are without what no decay lies between, a token's own score, and dg without dS: in the first sum these
would cancel, and leave rounding errors far above what strong decays leave of the truth. It is a sum over key channels,
so that blocks of them add up.

A Hopper has a kernel of its own (``mean_local_cuda``) for streams of bfloat16.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from bayesmem.ops.triton.cuda_launch import aligned
from bayesmem.ops.triton.launched import launched
from bayesmem.ops.triton.mean_config import Tuning, local_config
from bayesmem.ops.triton.mean_local_cuda import cuda_local
from bayesmem.ops.triton.mean_tiles import load_rows, place, state_tile, store_rows
from bayesmem.ops.triton.ratios import ratio_matrix, split_cumsum
from bayesmem.ops.triton.sizes import cdiv
from bayesmem.ops.triton.spans import Spans


@launched
@triton.jit
@no_type_check
def local_kernel(
    q,
    k,
    written,
    log_decay,
    factors,
    innovation,
    means,
    do,
    dv,
    d_means,
    dq,
    dk,
    d_gain,
    d_log_decay,
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
    """One program a chunk, head and block of keys; ``d_log_decay`` is ``[N, H, K blocks]``."""
    pid = tl.program_id(0)
    k_blocks: tl.constexpr = (K + BK - 1) // BK
    k_block, at = pid % k_blocks, (pid // k_blocks).to(tl.int64)
    chunk, head, col = at // H, at % H, k_block * BK
    rows, live = place(chunk, seq_start, chunk_seq, chunk_first, C)
    dtype: tl.constexpr = k.dtype.element_ty

    dq_tile = tl.zeros([C, BK], tl.float32)
    dk_tile = tl.zeros([C, BK], tl.float32)
    carried = tl.zeros([C, BK], tl.float32)
    d_seen = tl.zeros([C, C], tl.float32)
    d_reads = tl.zeros([C, C], tl.float32)
    kept = 0.0
    for v_col in range(0, V, BV):
        do_tile = load_rows(do, rows, live, head, v_col, H, V, BV)
        dv_tile = load_rows(dv, rows, live, head, v_col, H, V, BV)
        error = load_rows(innovation, rows, live, head, v_col, H, V, BV)
        offsets, mask = state_tile(at, col, v_col, K, V, BK, BV)
        mean = tl.load(means + offsets, mask=mask, other=0.0)
        d_mean = tl.load(d_means + offsets, mask=mask, other=0.0)
        kept += tl.sum(mean.to(tl.float32) * d_mean.to(tl.float32))
        d_seen = tl.dot(do_tile, tl.trans(error), d_seen, input_precision=PREC)
        d_reads = tl.dot(dv_tile, tl.trans(error), d_reads, input_precision=PREC)
        dq_tile = tl.dot(do_tile, tl.trans(mean), dq_tile, input_precision=PREC)
        dk_tile = tl.dot(dv_tile, tl.trans(mean), dk_tile, input_precision=PREC)
        carried = tl.dot(error, tl.trans(d_mean), carried, input_precision=PREC)

    i = tl.arange(0, C)
    below = i[:, None] > i[None, :]
    coarse, fine = split_cumsum(tl.load(log_decay + rows * H + head, mask=live, other=0.0))
    ratio = ratio_matrix(coarse, fine, below)
    d_reads = (-ratio * d_reads).to(dtype)
    itself = tl.sum(tl.where(i[:, None] == i[None, :], d_seen, 0.0), 1)[:, None]
    d_seen = (ratio * d_seen).to(dtype)
    since = tl.load(factors + at * (2 * C) + i)[:, None]
    left = tl.load(factors + at * (2 * C) + C + i)[:, None]
    whole = tl.load(factors + at * (2 * C) + C - 1)

    g = load_rows(written, rows, live, head, col, H, K, BK)
    dq_tile = tl.dot(d_seen, g, since * dq_tile, input_precision=PREC)
    dk_tile = tl.dot(d_reads, g, -since * dk_tile, input_precision=PREC)
    q_tile = load_rows(q, rows, live, head // (H // G), col, G, K, BK)
    k_tile = load_rows(k, rows, live, head // (H // G), col, G, K, BK)
    db = tl.sum(q_tile * dq_tile + k_tile * dk_tile, 1)
    store_rows(dq, dq_tile + itself * g, rows, live, head, col, H, K, BK)
    store_rows(dk, dk_tile, rows, live, head, col, H, K, BK)
    carried *= left
    sent = tl.sum(g * carried, 1)
    dg_tile = tl.dot(tl.trans(d_seen), q_tile, input_precision=PREC)
    dg_tile = tl.dot(tl.trans(d_reads), k_tile, dg_tile, input_precision=PREC)
    db -= tl.sum(g * dg_tile, 1)
    store_rows(d_gain, dg_tile + (carried + itself * q_tile), rows, live, head, col, H, K, BK)
    # Down the columns: along the rows it takes ten times the shuffles.
    earlier = tl.sum(tl.where(i[:, None] < i[None, :], sent[:, None], 0.0), 0)
    found = tl.cumsum(db, 0, reverse=True) + (earlier + whole * kept)
    tl.store(d_log_decay + (rows * H + head) * k_blocks + k_block, found, mask=live)


def mean_backward_local(
    q: Tensor,
    k: Tensor,
    written: Tensor,
    log_decay: Tensor,
    factors: Tensor,
    innovation: Tensor,
    means: Tensor,
    do: Tensor,
    dv: Tensor,
    d_means: Tensor,
    spans: Spans,
    prec: str,
    tuning: Tuning | None,
    gain_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch one of the two kernels.

    Returns:
        Gradients of q and k ``[N, H, K]`` in their dtype, of gain ``[N, H, K]`` in ``gain_dtype`` and of log_decay
        ``[N, H]`` in float32.
    """
    heads, key, value = written.shape[1], k.shape[-1], dv.shape[-1]
    dq, dk = torch.empty_like(written), torch.empty_like(written)
    d_gain = torch.empty_like(written, dtype=gain_dtype)
    streams = (q, k, written, innovation, means, do, dv, d_means)
    in_cuda = None
    if (
        gain_dtype == torch.float32
        and "local" not in (tuning or {})
        and all(x.dtype == torch.bfloat16 for x in streams)
    ):
        in_cuda = cuda_local(key, value, spans.chunk_size, k.device)
    if in_cuda is not None:
        d_log_decay = torch.empty_like(log_decay)
        q, k, written, innovation, means, do, dv, d_means = map(aligned, streams)
        args = (q, k, written, log_decay, factors, innovation, means, do, dv, d_means, dq, dk, d_gain, d_log_decay)
        in_cuda(spans.chunks * heads, (*args, spans.seq_start, spans.chunk_seq, spans.chunk_first, heads, k.shape[1]))
        return dq, dk, d_gain, d_log_decay
    config = local_config(k, value, tuning)
    k_blocks = cdiv(key, config["BK"])
    d_log_decay = log_decay.new_empty(*log_decay.shape, k_blocks)
    local_kernel[(spans.chunks * heads * k_blocks,)](
        q,
        k,
        written,
        log_decay,
        factors,
        innovation,
        means,
        do,
        dv,
        d_means,
        dq,
        dk,
        d_gain,
        d_log_decay,
        spans.seq_start,
        spans.chunk_seq,
        spans.chunk_first,
        H=heads,
        G=k.shape[1],
        K=key,
        V=value,
        C=spans.chunk_size,
        PREC=prec,
        **config,
    )
    return dq, dk, d_gain, d_log_decay[..., 0] if k_blocks == 1 else d_log_decay.sum(-1)

"""What the covariance makes of one vector a token, and the predictive variance, from a chunk's checkpoint.

Legend: P_0 covariance before the chunk, R_t product of retentions since, n process noise, g gain, s innovation
variance, x the vectors. With c_t = sum_{i<=t} (R_t / R_i)^2 n_i the covariance after token t is

    P_t = R_t^2 P_0 + c_t I - sum_{j<=t} (R_t / R_j)^2 s_j g_j g_j^T          (P-_t, the predicted one: j < t)

and so, chunk by chunk, P_t x_t takes two products with P_0 and the gains, and the variance x_t^T P_t x_t fewer.
What is subtracted can be nearly all there is, so the products are those of float32 (``tf32x3``, ``bf16x3``).
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from bayesmem.ops.triton.covariance_config import product_config
from bayesmem.ops.triton.covariance_products import product
from bayesmem.ops.triton.covariance_tiles import (
    load_gate,
    load_matrix,
    load_tokens,
    place_chunk,
    retention_ratios,
    store_gate,
    store_tokens,
)
from bayesmem.ops.triton.mean_config import Tuning
from bayesmem.ops.triton.spans import Spans


@triton.jit
@no_type_check
def times_kernel(
    x,
    gain,
    innovation_var,
    checkpoints,
    log_retention,
    process_noise,
    seq_start,
    chunk_seq,
    chunk_first,
    weight,
    out,
    var,
    H: tl.constexpr,
    X_HEADS: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    OUT_BLOCK: tl.constexpr,
    SUM_BLOCK: tl.constexpr,
    PREC: tl.constexpr,
):
    """One program a chunk and head: ``x_t^T P_t x_t``, and unless ``out`` is None ``weight_t P_t x_t``."""
    chunk, head = tl.program_id(0), tl.program_id(1)
    x_head = head // (H // X_HEADS)
    first, live = place_chunk(chunk, seq_start, chunk_seq, chunk_first, C)
    if tl.max(live.to(tl.int32), 0) == 0:
        return  # a chunk made room for and not filled
    ratio, since, _ = retention_ratios(log_retention, first, live, head, H, C)
    ratio *= ratio
    kept = since * since
    gathered = tl.sum(ratio * load_gate(process_noise, first, live, head, H, C, 0.0)[None, :], 1)  # c_t
    cov = checkpoints + (chunk.to(tl.int64) * H + head) * (K * K)

    met = tl.zeros([C, C], tl.float32)  # x_t . g_s
    for col in range(0, K, SUM_BLOCK):
        x_tile = load_tokens(x, first, live, x_head, col, X_HEADS, K, C, SUM_BLOCK)
        g_tile = load_tokens(gain, first, live, head, col, H, K, C, SUM_BLOCK)
        met = product(x_tile, tl.trans(g_tile), met, PREC)
    told = ratio * met * load_gate(innovation_var, first, live, head, H, C, 1.0)[None, :]

    quadratic = tl.zeros([C], tl.float32)  # x P_0 x
    power = tl.zeros([C], tl.float32)
    for col in range(0, K, OUT_BLOCK):
        total = tl.zeros([C, OUT_BLOCK], tl.float32)
        for sum_col in range(0, K, SUM_BLOCK):
            x_tile = load_tokens(x, first, live, x_head, sum_col, X_HEADS, K, C, SUM_BLOCK)
            # P_0 is symmetric: its rows are read for its columns, as the tensor cores want them.
            cov_tile = load_matrix(cov, col, sum_col, K, OUT_BLOCK, SUM_BLOCK)
            total = product(x_tile, tl.trans(cov_tile), total, PREC)
        x_tile = load_tokens(x, first, live, x_head, col, X_HEADS, K, C, OUT_BLOCK).to(tl.float32)
        quadratic += tl.sum(total * x_tile, 1)
        power += tl.sum(x_tile * x_tile, 1)
        if out is not None:
            g_tile = load_tokens(gain, first, live, head, col, H, K, C, OUT_BLOCK)
            total = product(-told, g_tile, kept[:, None] * total + gathered[:, None] * x_tile, PREC)
            total *= load_gate(weight, first, live, head, H, C, 0.0)[:, None]
            store_tokens(out, total, first, live, head, col, H, K, C, OUT_BLOCK)
    left = kept * quadratic + gathered * power - tl.sum(told * met, 1)
    store_gate(var, tl.maximum(left, 0.0), first, live, head, H, C)


def variance_forward(
    q: Float[Tensor, "N G K"],
    gain: Float[Tensor, "N H K"],
    innovation_var: Float[Tensor, "N H"],
    checkpoints: Float[Tensor, "NC H K K"],
    log_retention: Float[Tensor, "N H"],
    process_noise: Float[Tensor, "N H"],
    spans: Spans,
    prec: str,
    tuning: Tuning | None = None,
) -> Float[Tensor, "N H"]:
    """Predictive variance ``q_t^T P_t q_t``, cut at 0.

    Args:
        q: queries; value head h reads key head ``h // (H // G)``.
        gain: of the forward pass, float32, as all that follows.
        innovation_var: of the forward pass.
        checkpoints: the symmetric covariance before every chunk.
        log_retention: at most 0.
        process_noise: variance added after the retention.
        spans: where sequences and chunks lie.
        prec: the precision of the products, ``tf32x3`` by custom.
        tuning: overrides of this kernel's blocks, ``num_warps`` and ``num_stages``, under ``variance``.
    """
    var = torch.empty_like(innovation_var)
    covariance = (gain, innovation_var, checkpoints, log_retention, process_noise)
    _launch(q, covariance, spans, None, None, var, prec, tuning)
    return var


def posterior_times(
    q: Float[Tensor, "N G K"],
    weight: Float[Tensor, "N H"],
    covariance: tuple[Tensor, ...],
    spans: Spans,
    prec: str,
    tuning: Tuning | None = None,
) -> tuple[Float[Tensor, "N H K"], Float[Tensor, "N H"]]:
    """``weight_t P_t q_t`` in the dtype of q, and the variance ``q_t^T P_t q_t`` beside it.

    Args:
        q: queries.
        weight: one number a token and head.
        covariance: gain, innovation_var, checkpoints, log_retention, process_noise.
        spans: where sequences and chunks lie.
        prec: the precision of the products.
        tuning: overrides.
    """
    gain = covariance[0]
    out, var = torch.empty_like(gain, dtype=q.dtype), torch.empty_like(gain[..., 0])
    _launch(q, covariance, spans, weight, out, var, prec, tuning)
    return out, var


def _launch(
    x: Tensor,
    covariance: tuple[Tensor, ...],
    spans: Spans,
    weight: Tensor | None,
    out: Tensor | None,
    var: Tensor,
    prec: str,
    tuning: Tuning | None,
) -> None:
    heads, key_dim = covariance[0].shape[1:]
    times_kernel[(spans.chunks, heads)](
        x,
        *covariance,
        spans.seq_start,
        spans.chunk_seq,
        spans.chunk_first,
        weight,
        out,
        var,
        H=heads,
        X_HEADS=x.shape[1],
        K=key_dim,
        C=spans.chunk_size,
        **product_config(covariance[0], "variance" if out is None else "posterior", prec, tuning),
    )

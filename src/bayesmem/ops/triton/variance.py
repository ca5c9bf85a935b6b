"""What the covariance makes of one vector a token, and the predictive variance, from a chunk's checkpoint.

Legend: P_0 covariance before the chunk, R_t product of retentions since, n process noise, g gain, s innovation
variance, x the vectors. With c_t = sum_{i<=t} (R_t / R_i)^2 n_i the covariance after token t is

    P_t = R_t^2 P_0 + c_t I - sum_{j<=t} (R_t / R_j)^2 s_j g_j g_j^T          (P-_t, the predicted one: j < t)

and so, chunk by chunk, P_t x_t takes two products with P_0 and the gains, and the variance x_t^T P_t x_t fewer.
What is subtracted can be nearly all there is, so the products are float32's own (``tf32x3``).
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from bayesmem.ops.triton.covariance_config import product_config
from bayesmem.ops.triton.covariance_tiles import load_gate, retention_ratios
from bayesmem.ops.triton.mean_config import Tuning
from bayesmem.ops.triton.mean_tiles import load_rows, place, store_rows
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
    key,
    gain_weight,
    key_weight,
    out,
    var,
    H: tl.constexpr,
    X_HEADS: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    OUT_BLOCK: tl.constexpr,
    SUM_BLOCK: tl.constexpr,
    PRODUCT: tl.constexpr,
    PREC: tl.constexpr,
):
    """One program a chunk and head; PRODUCT says what ``out`` is.

    ``posterior`` weight_t P_t x_t; ``predicted`` P-_t x_t + gain_weight_t g_t + key_weight_t k_t; ``none``: no out.
    """
    chunk, head = tl.program_id(0), tl.program_id(1)
    x_head = head // (H // X_HEADS)
    rows, live = place(chunk, seq_start, chunk_seq, chunk_first, C)
    if tl.max(live.to(tl.int32), 0) == 0:
        return  # a chunk made room for and not filled
    ratio, since, _ = retention_ratios(log_retention, rows, live, head, H, C)
    ratio *= ratio
    kept = since * since
    gathered = tl.sum(ratio * load_gate(process_noise, rows, live, head, H, 0.0)[None, :], 1)  # c_t
    cov = checkpoints + (chunk.to(tl.int64) * H + head) * (K * K)

    met = tl.zeros([C, C], tl.float32)  # x_t . g_s
    for col in range(0, K, SUM_BLOCK):
        x_tile = load_rows(x, rows, live, x_head, col, X_HEADS, K, SUM_BLOCK).to(tl.float32)
        g_tile = load_rows(gain, rows, live, head, col, H, K, SUM_BLOCK)
        met = tl.dot(x_tile, tl.trans(g_tile), met, input_precision=PREC)
    told = ratio * met * load_gate(innovation_var, rows, live, head, H, 1.0)[None, :]
    if PRODUCT == "predicted":
        i = tl.arange(0, C)
        own = load_gate(gain_weight, rows, live, head, H, 0.0)
        told = tl.where(i[:, None] > i[None, :], told, tl.where(i[:, None] == i[None, :], -own[:, None], 0.0))

    quadratic = tl.zeros([C], tl.float32)  # x P_0 x
    power = tl.zeros([C], tl.float32)
    for col in range(0, K, OUT_BLOCK):
        total = tl.zeros([C, OUT_BLOCK], tl.float32)
        out_cols = col + tl.arange(0, OUT_BLOCK)
        for sum_col in range(0, K, SUM_BLOCK):
            x_tile = load_rows(x, rows, live, x_head, sum_col, X_HEADS, K, SUM_BLOCK).to(tl.float32)
            sum_cols = sum_col + tl.arange(0, SUM_BLOCK)
            inside = (out_cols < K)[:, None] & (sum_cols < K)[None, :]
            # P_0 is symmetric: its rows are read for its columns, as the tensor cores want them.
            cov_tile = tl.load(cov + out_cols[:, None] * K + sum_cols[None, :], mask=inside, other=0.0)
            total = tl.dot(x_tile, tl.trans(cov_tile), total, input_precision=PREC)
        x_tile = load_rows(x, rows, live, x_head, col, X_HEADS, K, OUT_BLOCK).to(tl.float32)
        if var is not None:
            quadratic += tl.sum(total * x_tile, 1)
            power += tl.sum(x_tile * x_tile, 1)
        if PRODUCT != "none":
            g_tile = load_rows(gain, rows, live, head, col, H, K, OUT_BLOCK)
            total = kept[:, None] * total + gathered[:, None] * x_tile
            total -= tl.dot(told, g_tile, input_precision=PREC)
            if PRODUCT == "predicted":
                k_tile = load_rows(key, rows, live, head // (H // G), col, G, K, OUT_BLOCK).to(tl.float32)
                total += load_gate(key_weight, rows, live, head, H, 0.0)[:, None] * k_tile
            else:
                total *= load_gate(weight, rows, live, head, H, 0.0)[:, None]
            store_rows(out, total, rows, live, head, col, H, K, OUT_BLOCK)
    if var is not None:
        left = kept * quadratic + gathered * power - tl.sum(told * met, 1)
        tl.store(var + rows * H + head, tl.maximum(left, 0.0), mask=live)


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
        tuning: overrides of this kernel's blocks, ``num_warps`` and ``num_stages``, under ``none``.
    """
    var = torch.empty_like(innovation_var)
    _launch(q, (gain, innovation_var, checkpoints, log_retention, process_noise), spans, "none", prec, tuning, var=var)
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
    _launch(q, covariance, spans, "posterior", prec, tuning, weight=weight, out=out, var=var)
    return out, var


def predicted_times(
    x: Float[Tensor, "N H K"],
    key: Float[Tensor, "N G K"],
    gain_weight: Float[Tensor, "N H"],
    key_weight: Float[Tensor, "N H"],
    covariance: tuple[Tensor, ...],
    spans: Spans,
    prec: str,
    tuning: Tuning | None = None,
) -> Float[Tensor, "N H K"]:
    """``P-_t x_t + gain_weight_t g_t + key_weight_t k_t`` in the dtype of the keys.

    Args:
        x: float32 vectors.
        key: keys.
        gain_weight: one number a token and head.
        key_weight: one number a token and head.
        covariance: gain, innovation_var, checkpoints, log_retention, process_noise.
        spans: where sequences and chunks lie.
        prec: the precision of the products.
        tuning: overrides.
    """
    out = torch.empty_like(x, dtype=key.dtype)
    weights = {"key": key, "gain_weight": gain_weight, "key_weight": key_weight}
    _launch(x, covariance, spans, "predicted", prec, tuning, out=out, **weights)
    return out


def _launch(
    x: Tensor,
    covariance: tuple[Tensor, ...],
    spans: Spans,
    product: str,
    prec: str,
    tuning: Tuning | None,
    **given: Tensor,
) -> None:
    heads, key_dim = covariance[0].shape[1:]
    names = ("weight", "key", "gain_weight", "key_weight", "out", "var")
    key = given.get("key")
    times_kernel[(spans.chunks, heads)](
        x,
        *covariance,
        spans.seq_start,
        spans.chunk_seq,
        spans.chunk_first,
        *(given.get(name) for name in names),
        H=heads,
        X_HEADS=x.shape[1],
        G=x.shape[1] if key is None else key.shape[1],
        K=key_dim,
        C=spans.chunk_size,
        PRODUCT=product,
        PREC=prec,
        **product_config(covariance[0], product, tuning),
    )

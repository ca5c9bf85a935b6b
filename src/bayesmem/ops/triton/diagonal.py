"""The diagonal structure's chain of variances, and its gradients.

Legend: x predicted variance, d posterior variance, rho retention, n process noise, r obs noise, k key; per channel

    x_t = rho_t^2 d_{t-1} + n_t                         d_t = x_t r_t / (r_t + x_t k_t^2)

Backward, with lambda_t the gradient of x_t and D_t that of d_t (what reaches x_t from outside is ``d_predicted``):

    lambda_t = d_predicted_t + (r / (r + x k^2))^2 D_t                          D_{t-1} = rho_t^2 lambda_t
    dn_t = lambda_t    dlog_rho_t = 2 rho_t^2 d_{t-1} lambda_t
    dr_t = sum_K D k^2 (x / (r + x k^2))^2              dk_t = -2 D r k (x / (r + x k^2))^2

Only the chains are sequential: one thread a channel. To keep them short, the numbers of TOKENS tokens are asked for
before the first is used. Gradients that need D_t only are left to a second kernel, parallel in time.
A token past the end has rho = 1, n = 0, k = 0, r = 1, which leaves the chain as it is, exactly.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from bayesmem.ops.triton.sizes import block, cdiv
from bayesmem.ops.triton.spans import Spans


@triton.jit
@no_type_check
def _gate(gate, row, channels, real, live, K: tl.constexpr, BY_CHANNEL: tl.constexpr):
    """A gate of one token's head: a scalar, or one number a channel."""
    if BY_CHANNEL:
        value = tl.load(gate + row * K + channels, mask=live, other=0.0)
    else:
        value = tl.load(gate + row, mask=real, other=0.0)
    return value


@triton.jit
@no_type_check
def _forward_kernel(
    k, log_retention, process_noise, obs_noise, initial_cov, seq_start, predicted, final_cov,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, TOKENS: tl.constexpr,
    CHANNEL_RETENTION: tl.constexpr, CHANNEL_NOISE: tl.constexpr,
):  # fmt: skip
    belief = tl.program_id(0).to(tl.int64)
    sequence, h = belief // H, belief % H
    channels = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    start = tl.load(seq_start + sequence).to(tl.int64)
    stop = tl.load(seq_start + sequence + 1).to(tl.int64)
    d = tl.load(initial_cov + belief * K + channels, mask=channels < K, other=0.0)
    for first in range(start, stop, TOKENS):
        keys, keeps, noises, obs_noises = (), (), (), ()
        for i in tl.static_range(TOKENS):
            real = first + i < stop
            live = channels < tl.where(real, K, 0)
            row = (first + i) * H + h
            key = (first + i) * G + h // (H // G)
            keys += (tl.load(k + key * K + channels, mask=live, other=0.0),)
            keeps += (_gate(log_retention, row, channels, real, live, K, CHANNEL_RETENTION),)
            noises += (_gate(process_noise, row, channels, real, live, K, CHANNEL_NOISE),)
            obs_noises += (tl.load(obs_noise + row, mask=real, other=1.0),)
        for i in tl.static_range(TOKENS):
            key, r = keys[i].to(tl.float32), obs_noises[i]
            x = tl.exp(2.0 * keeps[i]) * d + noises[i]
            row = (first + i) * H + h
            tl.store(predicted + row * K + channels, x, mask=channels < tl.where(first + i < stop, K, 0))
            d = x * r / (r + x * (key * key))
    tl.store(final_cov + belief * K + channels, d, mask=channels < K)


@triton.jit
@no_type_check
def _chain_kernel(
    k, log_retention, obs_noise, predicted, seq_start, d_predicted, d_final_cov, d_posterior, d_initial_cov,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, TOKENS: tl.constexpr,
    CHANNEL_RETENTION: tl.constexpr,
):  # fmt: skip
    """D_t of every token, from the last to the first."""
    belief = tl.program_id(0).to(tl.int64)
    sequence, h = belief // H, belief % H
    channels = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    start = tl.load(seq_start + sequence).to(tl.int64)
    stop = tl.load(seq_start + sequence + 1).to(tl.int64)
    if d_final_cov is None:
        grad = tl.zeros([BLOCK], tl.float32)
    else:
        grad = tl.load(d_final_cov + belief * K + channels, mask=channels < K, other=0.0)
    for back in range(1, stop - start + 1, TOKENS):
        keys, keeps, obs_noises, xs, grads = (), (), (), (), ()
        for i in tl.static_range(TOKENS):
            token = stop - back - i
            real = token >= start
            live = channels < tl.where(real, K, 0)
            row = token * H + h
            key = token * G + h // (H // G)
            keys += (tl.load(k + key * K + channels, mask=live, other=0.0),)
            keeps += (_gate(log_retention, row, channels, real, live, K, CHANNEL_RETENTION),)
            obs_noises += (tl.load(obs_noise + row, mask=real, other=1.0),)
            xs += (tl.load(predicted + row * K + channels, mask=live, other=0.0),)
            grads += (tl.load(d_predicted + row * K + channels, mask=live, other=0.0),)
        for i in tl.static_range(TOKENS):
            token = stop - back - i
            key, r = keys[i].to(tl.float32), obs_noises[i]
            slope = r / (r + xs[i] * (key * key))
            tl.store(d_posterior + (token * H + h) * K + channels, grad, mask=channels < tl.where(token >= start, K, 0))
            grad = tl.exp(2.0 * keeps[i]) * (grads[i] + slope * slope * grad)
    tl.store(d_initial_cov + belief * K + channels, grad, mask=channels < K)


@triton.jit
@no_type_check
def _gradient_kernel(
    k, log_retention, obs_noise, predicted, initial_cov, seq_start, chunk_seq, chunk_first, d_predicted,
    dk, dlog_retention, dprocess_noise, dobs_noise,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, TOKENS: tl.constexpr,
    CHANNEL_RETENTION: tl.constexpr, CHANNEL_NOISE: tl.constexpr,
):  # fmt: skip
    """All else of one chunk and head; ``dk`` holds D_t on entry."""
    chunk, h = tl.program_id(0), tl.program_id(1)
    sequence = tl.load(chunk_seq + chunk)
    start = tl.load(seq_start + sequence).to(tl.int64)
    first = start + (chunk - tl.load(chunk_first + sequence)) * C
    stop = tl.minimum(first + C, tl.load(seq_start + sequence + 1))
    channels = tl.arange(0, BK)[None, :]
    for base in range(first, stop, TOKENS):
        token = base + tl.arange(0, TOKENS)
        real = token < stop
        live = real[:, None] & (channels < K)
        row, key_row = token * H + h, token * G + h // (H // G)
        place = row[:, None] * K + channels
        x = tl.load(predicted + place, mask=live, other=0.0)
        grad = tl.load(dk + place, mask=live, other=0.0)
        key = tl.load(k + key_row[:, None] * K + channels, mask=live, other=0.0).to(tl.float32)
        r = tl.load(obs_noise + row, mask=real, other=1.0)[:, None]
        over = 1.0 / (r + x * (key * key))
        kept, moved = r * over, x * over
        grad_x = tl.load(d_predicted + place, mask=live, other=0.0) + kept * kept * grad
        tl.store(dk + place, -2.0 * grad * r * key * (moved * moved), mask=live)
        tl.store(dobs_noise + row, tl.sum(grad * (key * key) * (moved * moved), 1), mask=real)
        if CHANNEL_NOISE:
            tl.store(dprocess_noise + place, grad_x, mask=live)
        else:
            tl.store(dprocess_noise + row, tl.sum(grad_x, 1), mask=real)
        # The posterior of the token before, or where there is none the initial belief.
        inside = token > start
        seen = inside[:, None] & live
        x = tl.load(predicted + place - H * K, mask=seen, other=0.0)
        key = tl.load(k + (key_row - G)[:, None] * K + channels, mask=seen, other=0.0).to(tl.float32)
        r = tl.load(obs_noise + row - H, mask=real & inside, other=1.0)[:, None]
        before = x * r / (r + x * (key * key))
        begun = initial_cov + (sequence.to(tl.int64) * H + h) * K + channels + token[:, None] * 0
        before += tl.load(begun, mask=live & (token == start)[:, None], other=0.0)
        if CHANNEL_RETENTION:
            log_keep = tl.load(log_retention + place, mask=live, other=0.0)
            tl.store(dlog_retention + place, 2.0 * tl.exp(2.0 * log_keep) * before * grad_x, mask=live)
        else:
            keep = tl.exp(2.0 * tl.load(log_retention + row, mask=real, other=0.0))
            tl.store(dlog_retention + row, 2.0 * keep * tl.sum(before * grad_x, 1), mask=real)


def diagonal_forward(
    k: Float[Tensor, "N G K"],
    log_retention: Float[Tensor, "N H"] | Float[Tensor, "N H K"],
    process_noise: Float[Tensor, "N H"] | Float[Tensor, "N H K"],
    obs_noise: Float[Tensor, "N H"],
    initial_cov: Float[Tensor, "S H K"],
    spans: Spans,
    tuning: dict | None = None,
) -> tuple[Float[Tensor, "N H K"], Float[Tensor, "S H K"]]:
    """Predicted variances of every token and the final ones of every sequence, float32; arguments contiguous.

    Gates, noises and variances come in float32, ``obs_noise`` with its floor applied; ``k`` in any dtype.
    ``tuning`` may set ``channels`` and ``tokens`` (of a program, and fetched at a time) and ``num_warps``.
    """
    tokens, heads = obs_noise.shape
    groups, key_dim = k.shape[1:]
    predicted = torch.empty(tokens, heads, key_dim, dtype=torch.float32, device=k.device)
    final_cov = torch.empty_like(initial_cov)
    channels, fetched, options = _chain_blocks(key_dim, tuning)
    _forward_kernel[(spans.sequences * heads, cdiv(key_dim, channels))](
        k, log_retention, process_noise, obs_noise, initial_cov, spans.seq_start, predicted, final_cov,
        heads, groups, key_dim, channels, fetched, log_retention.ndim == 3, process_noise.ndim == 3, **options,
    )  # fmt: skip
    return predicted, final_cov


def diagonal_backward(
    k: Float[Tensor, "N G K"],
    log_retention: Float[Tensor, "N H"] | Float[Tensor, "N H K"],
    process_noise: Float[Tensor, "N H"] | Float[Tensor, "N H K"],
    obs_noise: Float[Tensor, "N H"],
    predicted: Float[Tensor, "N H K"],
    initial_cov: Float[Tensor, "S H K"],
    spans: Spans,
    d_predicted: Float[Tensor, "N H K"],
    d_final_cov: Float[Tensor, "S H K"] | None,
    tuning: dict | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of keys (``[N, H, K]``, one a value head), both gates, ``obs_noise`` and the initial variances.

    All float32, the gates' in their shapes. Arguments and ``tuning`` as those of ``diagonal_forward``; the
    gradients that come in are float32 and contiguous.
    """
    heads, groups, key_dim = obs_noise.shape[1], *k.shape[1:]
    by_channel = log_retention.ndim == 3, process_noise.ndim == 3
    dk = torch.empty_like(predicted)
    d_initial_cov = torch.empty_like(initial_cov)
    d_gates = torch.empty_like(log_retention), torch.empty_like(process_noise), torch.empty_like(obs_noise)
    channels, fetched, options = _chain_blocks(key_dim, tuning)
    _chain_kernel[(spans.sequences * heads, cdiv(key_dim, channels))](
        k, log_retention, obs_noise, predicted, spans.seq_start, d_predicted, d_final_cov, dk, d_initial_cov,
        heads, groups, key_dim, channels, fetched, by_channel[0], **options,
    )  # fmt: skip
    covered = block(key_dim)
    _gradient_kernel[(spans.chunks, heads)](
        k, log_retention, obs_noise, predicted, initial_cov, spans.seq_start, spans.chunk_seq, spans.chunk_first,
        d_predicted, dk, *d_gates,
        heads, groups, key_dim, spans.chunk_size, covered, 16, *by_channel, num_warps=max(4, covered // 32),
    )  # fmt: skip
    return dk, *d_gates, d_initial_cov


def _chain_blocks(key_dim: int, tuning: dict | None) -> tuple[int, int, dict]:
    """Channels of a program, tokens fetched at a time, and options of the compiler: one warp, a channel a thread."""
    options = {"channels": min(32, block(key_dim)), "tokens": 16, "num_warps": 1}
    options |= tuning or {}
    return options.pop("channels"), options.pop("tokens"), options

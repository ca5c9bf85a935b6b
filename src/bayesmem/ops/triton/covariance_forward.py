"""The covariance pass, forward, for any GPU: one program a (sequence, head), 16 tokens a step, exact.

Legend (docs/math.md section 3): P covariance before the step, k keys, R_t product of retentions since the step
began, c_t noise gathered since then, L D L^T = G the joint covariance of the innovations, U = L^-1.

    G_sj = R_s R_j k_s^T P k_j + (R_s / R_j) c_j k_s^T k_j + [s = j] r_s,                        j <= s
    gain_s = sum_j U_sj (R_s R_j P k_j + (R_s / R_j) c_j k_j) / D_s
    P <- R_C^2 P + c_C I - W^T W,      W_s = (R_C / R_s) sqrt(D_s) gain_s

P stays in device memory (``final``, updated in place) and is visited in blocks of columns, so that K may be as large
as wanted. ``covariance_cuda`` does the same with P in registers, on NVIDIA GPUs, many times faster.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from bayesmem.ops.triton.covariance_cuda import chosen_cluster, cuda_forward
from bayesmem.ops.triton.covariance_cuts import side_by_side
from bayesmem.ops.triton.covariance_products import Pair, rounded_pair
from bayesmem.ops.triton.cuda_launch import aligned
from bayesmem.ops.triton.device import limits
from bayesmem.ops.triton.ratios import ratio_matrix, split_cumsum
from bayesmem.ops.triton.sizes import power_of_two
from bayesmem.ops.triton.spans import Spans

STEP = 16  # tokens factorised at once


@triton.jit
@no_type_check
def eliminate(G, index, C: tl.constexpr):
    """L D L^T of a C x C matrix by elimination on [G, I]: U = L^-1, and D."""
    U = tl.where(index[:, None] == index[None, :], 1.0, 0.0)
    D = tl.zeros((C,), dtype=tl.float32)
    for j in range(C):
        row = tl.sum(tl.where(index[:, None] == j, G, 0.0), 0)
        below = tl.sum(tl.where(index[None, :] == j, G, 0.0), 1)
        pivot = tl.sum(tl.where(index == j, row, 0.0), 0)
        factor = tl.where(index > j, below / pivot, 0.0)
        G -= factor[:, None] * row[None, :]
        U -= factor[:, None] * tl.sum(tl.where(index[:, None] == j, U, 0.0), 0)[None, :]
        D = tl.where(index == j, pivot, D)
    return U, D


@triton.jit
@no_type_check
def covariance_forward_kernel(
    k_ptr,
    log_retention_ptr,
    process_noise_ptr,
    obs_noise_ptr,
    floor_ptr,
    seq_start_ptr,
    chunk_first_ptr,
    gain_ptr,
    gain_low_ptr,
    innovation_var_ptr,
    checkpoint_ptr,
    cov_ptr,
    scratch_ptr,
    H,
    G,
    K,
    steps_a_chunk,
    C: tl.constexpr,
    KB: tl.constexpr,
    BN: tl.constexpr,
    PREC: tl.constexpr,
):
    """Grid (S * H,); cov [S, H, K, K], the initial one, becomes the final.

    Gains are a pair, or where ``gain_low_ptr`` is None of the dtype of ``gain_ptr``.
    """
    pid = tl.program_id(0)
    sequence, head = pid // H, pid % H
    start = tl.load(seq_start_ptr + sequence).to(tl.int64)
    length = (tl.load(seq_start_ptr + sequence + 1) - start).to(tl.int32)
    first_chunk = tl.load(chunk_first_ptr + sequence).to(tl.int64)
    floor = tl.load(floor_ptr + head)
    index, channel, column = tl.arange(0, C), tl.arange(0, KB), tl.arange(0, BN)
    lower = index[:, None] >= index[None, :]
    diagonal = index[:, None] == index[None, :]
    keys = k_ptr + start * G * K + (head // (H // G)) * K
    gains = start * H * K + head * K
    gates = start * H + head
    cov = cov_ptr + pid.to(tl.int64) * K * K
    scratch = scratch_ptr + pid.to(tl.int64) * 2 * C * KB  # P k of the step, then W
    for step in range(tl.cdiv(length, C)):
        token = step * C + index
        inside = token < length
        key_at = keys + token[:, None].to(tl.int64) * (G * K)
        k = tl.load(key_at + channel[None, :], mask=inside[:, None] & (channel < K)[None, :], other=0.0).to(tl.float32)
        gate_at = gates + token.to(tl.int64) * H
        log_retention = tl.load(log_retention_ptr + gate_at, mask=inside, other=0.0)
        noise = tl.load(process_noise_ptr + gate_at, mask=inside, other=0.0)
        given = tl.load(obs_noise_ptr + gate_at, mask=inside, other=1.0)
        coarse, fine = split_cumsum(log_retention)
        ratio = ratio_matrix(coarse, fine, lower)  # R_s / R_j
        since = tl.exp(coarse + fine)  # R_s
        gathered = tl.sum(ratio * ratio * noise[None, :], 1)  # c_s
        last_ratio = tl.sum(tl.where(index[:, None] == C - 1, ratio, 0.0), 0)  # R_C / R_s
        keep = tl.sum(tl.where(index == C - 1, since * since, 0.0), 0)
        add = tl.sum(tl.where(index == C - 1, gathered, 0.0), 0)

        quad = tl.zeros((C, C), dtype=tl.float32)
        for j in range(0, KB, BN):
            block = j + column
            at = channel[:, None].to(tl.int64) * K + block[None, :]
            held = (channel < K)[:, None] & (block < K)[None, :]
            P = tl.load(cov + at, mask=held, other=0.0)
            if (steps_a_chunk > 0) & (step % tl.maximum(steps_a_chunk, 1) == 0):
                chunk = first_chunk + step // steps_a_chunk
                tl.store(checkpoint_ptr + (chunk * H + head) * K * K + at, P, mask=held)
            kP = tl.dot(k, P, input_precision=PREC)
            tl.store(scratch + index[:, None] * KB + block[None, :], kP)
            k_block = tl.load(key_at + block[None, :], mask=inside[:, None] & (block < K)[None, :], other=0.0)
            quad += tl.dot(kP, tl.trans(k_block.to(tl.float32)), input_precision=PREC)
        gram = tl.dot(k, tl.trans(k), input_precision=PREC)
        power = tl.sum(tl.where(diagonal, gram, 0.0), 1)
        fresh = tl.where(lower, ratio * gathered[None, :], 0.0)  # (R_s / R_j) c_j
        joint = tl.where(lower, since[:, None] * since[None, :] * quad + fresh * gram, 0.0)
        joint += tl.where(diagonal, 0.0, tl.trans(joint))
        joint += tl.where(diagonal, tl.maximum(given, floor * power)[:, None], 0.0)
        U, D = eliminate(joint, index, C)
        tl.store(innovation_var_ptr + gate_at, D, mask=inside)
        U = U / D[:, None]
        mix = U * since[:, None] * since[None, :]
        fresh = U * fresh
        written = last_ratio * tl.sqrt(D)
        tl.debug_barrier()  # P k is read by other threads than wrote it
        for j in range(0, KB, BN):
            block = j + column
            held = inside[:, None] & (block < K)[None, :]
            kP = tl.load(scratch + index[:, None] * KB + block[None, :])
            k_block = tl.load(key_at + block[None, :], mask=held, other=0.0).to(tl.float32)
            gain = tl.dot(mix, kP, input_precision=PREC) + tl.dot(fresh, k_block, input_precision=PREC)
            gain_at = gains + token[:, None].to(tl.int64) * (H * K) + block[None, :]
            if gain_low_ptr is None:
                tl.store(gain_ptr + gain_at, gain.to(gain_ptr.dtype.element_ty), mask=held)
            else:
                high, low = rounded_pair(gain)
                tl.store(gain_ptr + gain_at, high, mask=held)
                tl.store(gain_low_ptr + gain_at, low, mask=held)
            tl.store(scratch + (C + index)[:, None] * KB + block[None, :], gain * written[:, None])
        tl.debug_barrier()
        W = tl.load(scratch + (C + index)[:, None] * KB + channel[None, :])
        for j in range(0, KB, BN):
            block = j + column
            at = channel[:, None].to(tl.int64) * K + block[None, :]
            held = (channel < K)[:, None] & (block < K)[None, :]
            W_block = tl.load(scratch + (C + index)[:, None] * KB + block[None, :])
            P = tl.load(cov + at, mask=held, other=0.0) * keep - tl.dot(tl.trans(W), W_block, input_precision=PREC)
            P += tl.where(channel[:, None] == block[None, :], add, 0.0)
            tl.store(cov + at, P, mask=held)
        tl.debug_barrier()


def covariance_forward(
    k: Tensor,
    log_retention: Tensor,
    process_noise: Tensor,
    obs_noise: Tensor,
    floor: Tensor,
    initial_cov: Tensor,
    spans: Spans,
    cuda: bool | int = True,
    keep: bool = True,
    halved: bool = False,
) -> tuple[Pair, Tensor, Tensor, Tensor]:
    """Propagate the dense covariance through all tokens.

    Args:
        k: keys ``[N, G, K]``, 16 bits or float32.
        log_retention: ``[N, H]`` float32, as the next two.
        process_noise: isotropic variance added after the retention.
        obs_noise: observation noise variance.
        floor: the noise is raised to ``floor |k|^2``, ``[H]``.
        initial_cov: ``[S, H, K, K]`` float32, symmetric.
        spans: sequences and chunks; C a multiple of 16.
        cuda: whether the CUDA kernel may be used where there is one; a number is its blocks a covariance.
        keep: whether the covariance before every chunk is kept, as the backward pass and variances need it.
        halved: whether gains are written as a pair of bfloat16 (``covariance_products``), for keys of bfloat16; without
            ``keep``, its high half alone.

    Returns:
        Gains ``[N, H, K]`` as a pair, or one of them and None; in float32 innovation variances
        ``[N, H]``, the covariance before every chunk ``[NC, H, K, K]`` (none where it is not kept) and the final one
        ``[S, H, K, K]``, symmetric but for rounding.

    Raises:
        ValueError: gains of other keys are to be halved.
    """
    if halved and k.dtype != torch.bfloat16:
        raise ValueError(f"gains are halved for keys of bfloat16, not of {k.dtype}")
    (count, groups, key_dim), heads = k.shape, log_retention.shape[1]
    high = k.new_empty(count, heads, key_dim, dtype=torch.bfloat16 if halved else torch.float32)
    gain = high, torch.empty_like(high) if halved and keep else None
    innovation_var = torch.empty_like(log_retention)
    checkpoints = k.new_empty(spans.chunks if keep else 0, heads, key_dim, key_dim, dtype=torch.float32)
    gates = (log_retention, process_noise, obs_noise, floor)
    outputs = (gain, innovation_var, checkpoints)
    cluster = chosen_cluster(k) if cuda is True else int(cuda)
    if cluster:
        final = torch.empty_like(initial_cov, memory_format=torch.contiguous_format)
        segments = side_by_side(spans, heads, limits(k.device).processors) if cluster == 1 else 1
        cuda_forward(cluster, segments, aligned(k), *gates, initial_cov, spans, *outputs, final)
        return *outputs, final
    final = initial_cov.clone(memory_format=torch.contiguous_format)
    padded = max(16, power_of_two(key_dim))
    scratch = k.new_empty(spans.sequences * heads, 2 * STEP, padded, dtype=torch.float32)
    covariance_forward_kernel[(spans.sequences * heads,)](
        k,
        *gates,
        spans.seq_start,
        spans.chunk_first,
        *gain,
        innovation_var,
        checkpoints,
        final,
        scratch,
        heads,
        groups,
        key_dim,
        spans.chunk_size // STEP if keep else 0,
        STEP,
        padded,
        min(padded, 64),
        "tf32x3",
        num_warps=8 if padded > 64 else 4,
    )
    return *outputs, final

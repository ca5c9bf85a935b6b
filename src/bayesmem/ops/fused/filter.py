"""The exact dense covariance and the mean under its gains as one torch operator: what a Bayesian Layer runs.

It gives what ``covariance_op`` and ``mean_op`` give one after the other; together they may run side by side.
"""

import torch
from torch import Tensor

from bayesmem.ops.fused.covariance import covariance_backward_op, covariance_op, run_covariance
from bayesmem.ops.fused.mean import mean_backward_op, mean_op, run_mean
from bayesmem.ops.fused.operator import operator
from bayesmem.ops.fused.tables import precision_of, spans_at, whole
from bayesmem.ops.triton.covariance_segments import forward_segments
from bayesmem.ops.triton.mean_chain import mean_segments
from bayesmem.ops.triton.pipeline import parts_of, pipelined_forward
from bayesmem.ops.triton.variance import variance_forward


@operator("bayesmem::filter_pass")
def filter_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    log_retention: Tensor,
    process_noise: Tensor,
    obs_noise: Tensor,
    floor: Tensor,
    initial_mean: Tensor | None,
    initial_cov: Tensor,
    cu_seqlens: Tensor | None,
    batch: int,
    chunk: int,
    want_var: bool,
    want_energy: bool,
    keep: bool,
) -> tuple[
    Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor
]:
    """Covariance, gains, mean and read-out.

    Args:
        q: queries ``[N, G, K]``.
        k: keys ``[N, G, K]``.
        v: values ``[N, H, V]``.
        log_decay: of the mean, ``[N, H]`` float32, as the next three.
        log_retention: of the covariance.
        process_noise: isotropic, added after the retention.
        obs_noise: observation noise variance.
        floor: least noise as a multiple of ``|k|^2``, ``[H]``.
        initial_mean: ``[S, H, K, V]`` float32.
        initial_cov: ``[S, H, K, K]`` float32.
        cu_seqlens: offsets of packed sequences.
        batch: sequences of equal length, where not packed.
        chunk: tokens a chunk.
        want_var: whether the predictive variance is asked for.
        want_energy: whether the squared innovations are asked for.
        keep: whether a backward pass may follow.

    Returns:
        o ``[N, H, V]``, ``|innovation|^2`` ``[N, H]`` (empty where not asked for), final mean, innovation variance
        ``[N, H]``, final covariance (symmetric but for rounding), predictive variance ``[N, H]`` (likewise); and, for
        the backward pass, the gain, the covariance before every chunk, and the last six of ``mean_op``.
    """
    spans = spans_at(k.shape[0], cu_seqlens, batch, chunk, k.device)
    heads, gates = v.shape[1], (log_retention, process_noise, obs_noise, floor)
    parts = parts_of(k, heads, spans)
    if parts == 1 or forward_segments(k, heads, spans) or mean_segments(k, heads, spans):
        place = (cu_seqlens, batch, chunk)
        query = q if want_var else None
        gain, innovation_var, final_cov, var, checkpoints = run_covariance(k, query, *gates, initial_cov, *place, keep)
        o, energy, final_mean, *saved = run_mean(q, k, v, gain, log_decay, initial_mean, *place, want_energy)
        return o, energy, final_mean, innovation_var, final_cov, var, gain, checkpoints, *saved  # type: ignore[return-value]
    kept, prec = keep or want_var, precision_of(q)
    covariance, mean = pipelined_forward(
        q, k, v, log_decay, gates, initial_mean, initial_cov, spans, kept, want_energy, prec, parts
    )
    gain, innovation_var, checkpoints, final_cov = covariance
    o, measured, final_mean, (written, *saved) = mean
    var = gain.new_empty(0)
    if want_var:
        var = variance_forward(q, gain, innovation_var, checkpoints, log_retention, process_noise, spans, "tf32x3")
    energy = log_decay.new_empty(0) if measured is None else measured
    written = gain.new_empty(0) if written is gain else written
    return o, energy, final_mean, innovation_var, final_cov, var, gain, checkpoints, written, *saved  # type: ignore[return-value]


@filter_op.register_fake
def _(q, k, v, log_decay, log_retention, process_noise, obs_noise, floor, initial_mean, initial_cov, *rest):  # type: ignore[no-untyped-def]
    *place, want_var, want_energy, keep = rest
    gates = (log_retention, process_noise, obs_noise, floor)
    gain, spread, cov, var, checkpoints = covariance_op(k, q if want_var else None, *gates, initial_cov, *place, keep)
    o, energy, final_mean, *saved = mean_op(q, k, v, gain, log_decay, initial_mean, *place, want_energy)
    return o, energy, final_mean, spread, cov, var, gain, checkpoints, *saved


def _context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    *given, initial_mean, _, cu_seqlens, ctx.batch, ctx.chunk, _, _, _ = inputs
    ctx.has_initial = initial_mean is not None
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[6:])
    ctx.save_for_backward(*given, cu_seqlens, output[3], output[4], *output[6:])


def _gradient(ctx, do, d_energy, d_final_mean, d_innovation_var, d_final_cov, dvar, *_):  # type: ignore[no-untyped-def]
    tensors = ctx.saved_tensors  # unpacked anew at every look
    q, k, v, log_decay, *gates, cu_seqlens, innovation_var, final_cov, gain, checkpoints = tensors[:13]
    place = (cu_seqlens, ctx.batch, ctx.chunk)
    do = torch.zeros_like(v) if do is None else do.contiguous()
    saved = (q, k, v, gain, log_decay, *tensors[13:], *place)
    dq, dk, dv, dgain, d_decay, d_mean = mean_backward_op(do, whole(d_energy), whole(d_final_mean), *saved)
    dvar = dvar if dvar is not None and dvar.numel() else None  # of what was not asked for
    query = None if dvar is None else q
    kept = (gain, innovation_var, final_cov, checkpoints, k, query, *gates, *place)
    more_k, more_q, *d_gates, d_cov = covariance_backward_op(
        dgain, whole(d_innovation_var), whole(dvar), whole(d_final_cov), *kept
    )
    dq = dq if query is None else dq + more_q
    nothing = (None,) * 6
    return dq, dk + more_k, dv, d_decay, *d_gates, d_mean if ctx.has_initial else None, d_cov, *nothing


filter_op.register_autograd(_gradient, _context)

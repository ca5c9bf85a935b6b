"""The exact dense covariance and the mean under its gains as one torch operator: what a Bayesian Layer runs.

It gives what ``covariance_op`` and ``mean_op`` give one after the other; together they share gains that are kept as
pairs, and the gradient of keys.
"""

import torch
from torch import Tensor

from bayesmem.ops.fused.covariance import covariance_op, predictive_var
from bayesmem.ops.fused.mean import mean_op, returned
from bayesmem.ops.fused.operator import operator
from bayesmem.ops.fused.tables import given_of, grouped, pairs_of, precision_of, rows, spans_at, whole
from bayesmem.ops.triton.covariance_backward import covariance_backward
from bayesmem.ops.triton.covariance_forward import covariance_forward
from bayesmem.ops.triton.mean_backward import mean_backward
from bayesmem.ops.triton.mean_forward import mean_forward


@operator("bayesmem::filter_pass", repeats=True)
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
    Tensor,
    Tensor | None,
    Tensor,
    Tensor,
    Tensor,
    Tensor | None,
    Tensor,
    Tensor | None,
    Tensor,
    Tensor | None,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
]:
    """Covariance, gains, mean and read-out.

    Args:
        q: queries ``[..., G, K]``, N of them; the axes before as they come.
        k: keys, likewise.
        v: values ``[..., H, V]``, likewise.
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
        o ``[N, H, V]``, ``|innovation|^2`` ``[N, H]`` (where asked for), final mean, innovation variance ``[N, H]``,
        final covariance (symmetric but for rounding), predictive variance ``[N, H]`` (where asked for); and, for the
        backward pass, the gain, its low half (not where it is float32, or none may follow), the covariance before every
        chunk, and the last six of ``mean_op``.
    """
    q, k, v = (rows(x) for x in (q, k, v))
    spans = spans_at(k.shape[0], cu_seqlens, batch, chunk, k.device)
    gates = (log_retention, process_noise, obs_noise, floor)
    kept, halved, prec = keep or want_var, _halved(k, want_var), precision_of(q)
    covariance = covariance_forward(k, *gates, initial_cov, spans, keep=kept, halved=halved)
    (gain, low), innovation_var, checkpoints, final_cov = covariance
    mean = mean_forward(q, k, v, gain, log_decay, initial_mean, spans, want_energy, prec)
    var = predictive_var(q if want_var else None, gain, innovation_var, checkpoints, gates, spans)
    o, energy, final_mean, *saved = returned(mean, gain)
    return o, energy, final_mean, innovation_var, final_cov, var, gain, low, checkpoints, *saved  # type: ignore[return-value]


def _halved(k: Tensor, want_var: bool) -> bool:
    """Whether gains are a pair: the mean reads its high half, the backward pass both, which spares memory and traffic.

    What a chunk's gains leave of the variance can be little, so that with it they stay float32.
    """
    return k.dtype == torch.bfloat16 and not want_var


@filter_op.register_fake
def _(q, k, v, log_decay, log_retention, process_noise, obs_noise, floor, initial_mean, initial_cov, *rest):  # type: ignore[no-untyped-def]
    q, k, v = (rows(x) for x in (q, k, v))
    *place, want_var, want_energy, keep = rest
    gates = (log_retention, process_noise, obs_noise, floor)
    gain, spread, cov, var, checkpoints = covariance_op(k, q if want_var else None, *gates, initial_cov, *place, keep)
    gain = torch.empty_like(gain, dtype=k.dtype) if _halved(k, want_var) else gain
    low = torch.empty_like(gain) if _halved(k, want_var) and keep else None
    o, energy, final_mean, *saved = mean_op(q, k, v, gain, log_decay, initial_mean, *place, want_energy)
    return o, energy, final_mean, spread, cov, var, gain, low, checkpoints, *saved


def _context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    *given, initial_mean, _, cu_seqlens, ctx.batch, ctx.chunk, _, _, _ = inputs
    ctx.has_initial = initial_mean is not None
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*given_of(output[6:]))
    ctx.save_for_backward(*given, cu_seqlens, output[3], output[4], *output[6:])


@operator("bayesmem::filter_pass_backward", repeats=True)
def filter_backward_op(
    do: Tensor,
    d_energy: Tensor | None,
    d_final_mean: Tensor | None,
    d_innovation_var: Tensor | None,
    d_final_cov: Tensor | None,
    dvar: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    log_retention: Tensor,
    process_noise: Tensor,
    obs_noise: Tensor,
    floor: Tensor,
    cu_seqlens: Tensor | None,
    innovation_var: Tensor,
    final_cov: Tensor,
    gain: Tensor,
    low: Tensor | None,
    checkpoints: Tensor,
    written: Tensor | None,
    solve: Tensor,
    scores: Tensor,
    factors: Tensor,
    innovation: Tensor,
    means: Tensor,
    batch: int,
    chunk: int,
    want_floor: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor]:
    """Gradients of q, k, v, the decay, the three other gates, the floor, the initial mean and covariance.

    That of the floor is there where it is asked for.
    """
    shapes, (q, k, v) = (q.shape, k.shape, v.shape), (rows(x) for x in (q, k, v))
    spans, prec = spans_at(k.shape[0], cu_seqlens, batch, chunk, k.device), precision_of(q)
    saved = (gain if written is None or gain.dtype == k.dtype else written, solve, scores, factors, innovation, means)
    given = (saved, spans, do, d_energy, d_final_mean, prec, torch.float32)
    dq, dk, dv, dgain, d_decay, d_mean = mean_backward(q, k, v, log_decay, *given)
    query = None if dvar is None else q
    pair = (gain, low if gain.dtype == torch.bfloat16 else None)
    gates = (log_retention, process_noise, obs_noise, floor)
    gradients = (dgain, d_innovation_var, dvar, d_final_cov)
    kept = (k, query, pair, innovation_var, checkpoints, final_cov, *gates, spans)
    dk, more_q, *d_gates, d_floor, d_cov = covariance_backward(
        *kept, *gradients, pairs_of(k), dk=dk, want_floor=want_floor
    )
    dq = grouped(dq if more_q is None else dq + more_q, q)
    streams = (x.view(shape) for x, shape in zip((dq, grouped(dk, k), dv), shapes, strict=True))
    return *streams, d_decay, *d_gates, d_floor, d_mean, d_cov  # type: ignore[return-value]


@filter_backward_op.register_fake
def _(do, d_energy, d_final_mean, d_innovation_var, d_final_cov, dvar, q, k, v, log_decay, *rest):  # type: ignore[no-untyped-def]
    final_cov, d_floor = rest[6], torch.empty_like(rest[3]) if rest[-1] else None
    d_mean = log_decay.new_empty(*final_cov.shape[:-1], v.shape[-1])
    streams, gates = (torch.empty_like(x) for x in (q, k, v)), (torch.empty_like(log_decay) for _ in range(4))
    return *streams, *gates, d_floor, d_mean, torch.empty_like(final_cov)


def _gradient(ctx, do, d_energy, d_final_mean, d_innovation_var, d_final_cov, dvar, *_):  # type: ignore[no-untyped-def]
    saved = ctx.saved_tensors
    do = torch.zeros_like(rows(saved[2])) if do is None else do.contiguous()
    dvar = dvar if dvar is not None and dvar.numel() else None  # of what was not asked for
    given = (whole(x) for x in (d_energy, d_final_mean, d_innovation_var, d_final_cov, dvar))
    want_floor = ctx.needs_input_grad[7]
    *found, d_floor, d_mean, d_cov = filter_backward_op(do, *given, *saved, ctx.batch, ctx.chunk, want_floor)
    return *found, d_floor if want_floor else None, d_mean if ctx.has_initial else None, d_cov, *(None,) * 6


filter_op.register_autograd(_gradient, _context, 6)

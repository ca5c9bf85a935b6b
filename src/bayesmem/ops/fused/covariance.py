"""The exact dense covariance, forward and backward, as a torch operator."""

import torch
from torch import Tensor

from bayesmem.ops.fused.operator import operator
from bayesmem.ops.fused.tables import chunk_count, grouped, pairs_of, spans_at, whole
from bayesmem.ops.triton.covariance_backward import covariance_backward
from bayesmem.ops.triton.covariance_forward import covariance_forward
from bayesmem.ops.triton.spans import Spans
from bayesmem.ops.triton.variance import variance_forward

Gates = tuple[Tensor, Tensor, Tensor, Tensor]  # log retention, process noise, observation noise, floor


def predictive_var(
    q: Tensor | None, gain: Tensor, innovation_var: Tensor, checkpoints: Tensor, gates: Gates, spans: Spans
) -> Tensor | None:
    """Of every read, ``[N, H]``, from what the covariance pass gave; none where there is no ``q``."""
    if q is None:
        return None
    return variance_forward(q, gain, innovation_var, checkpoints, *gates[:2], spans, "tf32x3")


@operator("bayesmem::covariance_pass", repeats=True)
def covariance_op(
    k: Tensor,
    q: Tensor | None,
    log_retention: Tensor,
    process_noise: Tensor,
    obs_noise: Tensor,
    floor: Tensor,
    initial_cov: Tensor,
    cu_seqlens: Tensor | None,
    batch: int,
    chunk: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """The exact dense covariance through all tokens.

    Args:
        k: keys ``[N, G, K]``.
        q: queries ``[N, G, K]`` where the predictive variance is asked for.
        log_retention: ``[N, H]`` float32, as the next two.
        process_noise: isotropic, added after the retention.
        obs_noise: observation noise variance.
        floor: least noise as a multiple of ``|k|^2``, ``[H]``.
        initial_cov: ``[S, H, K, K]`` float32.
        cu_seqlens: offsets of packed sequences.
        batch: sequences of equal length, where not packed.
        chunk: tokens between two kept covariances.
        keep: whether they are kept: for a backward pass; with ``q`` they are in any case.

    Returns:
        gain ``[N, H, K]``, innovation variance ``[N, H]``, final covariance (symmetric but for rounding), predictive
        variance ``[N, H]`` (where asked for), and the covariance before every chunk (none where they are not
        kept).
    """
    spans = spans_at(k.shape[0], cu_seqlens, batch, chunk, k.device)
    gates = (log_retention, process_noise, obs_noise, floor)
    (gain, _), innovation_var, checkpoints, final_cov = covariance_forward(
        k, *gates, initial_cov, spans, keep=keep or q is not None
    )
    var = predictive_var(q, gain, innovation_var, checkpoints, gates, spans)
    return gain, innovation_var, final_cov, var, checkpoints


@covariance_op.register_fake
def _(k, q, log_retention, process_noise, obs_noise, floor, initial_cov, cu_seqlens, batch, chunk, keep):  # type: ignore[no-untyped-def]
    (tokens, heads), key_dim, sequences = log_retention.shape, k.shape[-1], initial_cov.shape[0]
    kept = keep or q is not None
    chunks = chunk_count(tokens, sequences, chunk, cu_seqlens is not None) if kept else 0
    gain = log_retention.new_empty(tokens, heads, key_dim)
    var = None if q is None else torch.empty_like(log_retention)
    checkpoints = gain.new_empty(chunks, heads, key_dim, key_dim)
    return gain, torch.empty_like(log_retention), torch.empty_like(initial_cov), var, checkpoints


@operator("bayesmem::covariance_pass_backward", repeats=True)
def covariance_backward_op(
    dgain: Tensor,
    dinnovation_var: Tensor | None,
    dvar: Tensor | None,
    d_final_cov: Tensor | None,
    gain: Tensor,
    innovation_var: Tensor,
    final_cov: Tensor,
    checkpoints: Tensor,
    k: Tensor,
    q: Tensor | None,
    log_retention: Tensor,
    process_noise: Tensor,
    obs_noise: Tensor,
    floor: Tensor,
    cu_seqlens: Tensor | None,
    batch: int,
    chunk: int,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of k, q (with ``dvar``), the gates, the floor and the initial covariance."""
    dk, dq, *gates, d_initial_cov = covariance_backward(
        k,
        q,
        (gain, None),
        innovation_var,
        checkpoints,
        final_cov,
        log_retention,
        process_noise,
        obs_noise,
        floor,
        spans_at(k.shape[0], cu_seqlens, batch, chunk, k.device),
        dgain,
        dinnovation_var,
        dvar,
        d_final_cov,
        pairs_of(k),
    )
    return grouped(dk, k), None if dq is None else grouped(dq, k), *gates, d_initial_cov  # type: ignore[return-value]


@covariance_backward_op.register_fake
def _(dgain, dinnovation_var, dvar, d_final_cov, gain, innovation_var, final_cov, checkpoints, k, q, *rest):  # type: ignore[no-untyped-def]
    log_retention, floor = rest[0], rest[3]
    dq = None if dvar is None or q is None else torch.empty_like(q)
    gates = (torch.empty_like(log_retention) for _ in range(3))
    return torch.empty_like(k), dq, *gates, torch.empty_like(floor), torch.empty_like(final_cov)


def _covariance_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    k, q, log_retention, process_noise, obs_noise, floor, _, cu_seqlens, ctx.batch, ctx.chunk, _ = inputs
    gain, innovation_var, final_cov, _, checkpoints = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(checkpoints)
    ctx.save_for_backward(
        gain,
        innovation_var,
        final_cov,
        checkpoints,
        k,
        q,
        log_retention,
        process_noise,
        obs_noise,
        floor,
        cu_seqlens,
    )


def _covariance_gradient(ctx, dgain, dinnovation_var, d_final_cov, dvar, _):  # type: ignore[no-untyped-def]
    gain, *saved = ctx.saved_tensors
    dgain = torch.zeros_like(gain) if dgain is None else dgain.contiguous()
    q = saved[4] if dvar is not None else None
    saved[4] = q
    dvar = None if q is None else whole(dvar)
    grads = covariance_backward_op(
        dgain, whole(dinnovation_var), dvar, whole(d_final_cov), gain, *saved, ctx.batch, ctx.chunk
    )
    dk, dq, *rest = grads
    return dk, dq if q is not None else None, *rest, None, None, None, None


covariance_op.register_autograd(_covariance_gradient, _covariance_context)

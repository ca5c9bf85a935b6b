"""The scan of the diagonal structure as a torch operator."""

import torch
from torch import Tensor

from bayesmem.ops.fused.operator import operator
from bayesmem.ops.fused.tables import grouped, spans_at, whole
from bayesmem.ops.triton.diagonal import diagonal_backward, diagonal_forward


@operator("bayesmem::diagonal_pass")
def diagonal_op(
    k: Tensor,
    log_retention: Tensor,
    process_noise: Tensor,
    obs_noise: Tensor,
    initial_cov: Tensor,
    cu_seqlens: Tensor | None,
    batch: int,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """Predicted variances ``[N, H, K]`` of the diagonal structure, and its final ones ``[S, H, K]``."""
    spans = spans_at(k.shape[0], cu_seqlens, batch, chunk, k.device)
    return diagonal_forward(k, log_retention, process_noise, obs_noise, initial_cov, spans)


@diagonal_op.register_fake
def _(k, log_retention, process_noise, obs_noise, initial_cov, cu_seqlens, batch, chunk):  # type: ignore[no-untyped-def]
    return obs_noise.new_empty(*obs_noise.shape, k.shape[-1]), torch.empty_like(initial_cov)


@operator("bayesmem::diagonal_pass_backward")
def _diagonal_backward_op(
    d_predicted: Tensor,
    d_final_cov: Tensor | None,
    predicted: Tensor,
    k: Tensor,
    log_retention: Tensor,
    process_noise: Tensor,
    obs_noise: Tensor,
    initial_cov: Tensor,
    cu_seqlens: Tensor | None,
    batch: int,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    spans = spans_at(k.shape[0], cu_seqlens, batch, chunk, k.device)
    dk, *rest = diagonal_backward(
        k, log_retention, process_noise, obs_noise, predicted, initial_cov, spans, d_predicted, d_final_cov
    )
    return grouped(dk, k), *rest  # type: ignore[return-value]


@_diagonal_backward_op.register_fake
def _(d_predicted, d_final_cov, predicted, k, *rest):  # type: ignore[no-untyped-def]
    return torch.empty_like(k), *(torch.empty_like(x) for x in rest[:4])


def _diagonal_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    *tensors, cu_seqlens, ctx.batch, ctx.chunk = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[0], *tensors, cu_seqlens)


def _diagonal_gradient(ctx, d_predicted, d_final_cov):  # type: ignore[no-untyped-def]
    saved = ctx.saved_tensors
    d_predicted = torch.zeros_like(saved[0]) if d_predicted is None else d_predicted.contiguous()
    grads = _diagonal_backward_op(d_predicted, whole(d_final_cov), *saved, ctx.batch, ctx.chunk)
    return *grads, None, None, None


diagonal_op.register_autograd(_diagonal_gradient, _diagonal_context)

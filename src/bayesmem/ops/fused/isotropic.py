"""The scan of the isotropic structure as a torch operator."""

import torch
from torch import Tensor

from bayesmem.ops.fused.operator import operator
from bayesmem.ops.fused.tables import spans_at, whole
from bayesmem.ops.triton.isotropic import isotropic_backward, isotropic_forward


@operator("bayesmem::isotropic_pass")
def isotropic_op(
    keep: Tensor,
    added: Tensor,
    power: Tensor,
    obs_noise: Tensor,
    initial_cov: Tensor,
    key_dim: int,
    cu_seqlens: Tensor | None,
    batch: int,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """Predicted variances ``[N, H]`` of the isotropic structure, and its final ones ``[S, H]``."""
    spans = spans_at(keep.shape[0], cu_seqlens, batch, chunk, keep.device)
    return isotropic_forward(keep, added, power, obs_noise, initial_cov, key_dim, spans)


@isotropic_op.register_fake
def _(keep, added, power, obs_noise, initial_cov, key_dim, cu_seqlens, batch, chunk):  # type: ignore[no-untyped-def]
    return torch.empty_like(keep), torch.empty_like(initial_cov)


@operator("bayesmem::isotropic_pass_backward")
def _isotropic_backward_op(
    d_predicted: Tensor,
    d_final_cov: Tensor | None,
    predicted: Tensor,
    keep: Tensor,
    power: Tensor,
    obs_noise: Tensor,
    initial_cov: Tensor,
    cu_seqlens: Tensor | None,
    key_dim: int,
    batch: int,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    spans = spans_at(keep.shape[0], cu_seqlens, batch, chunk, keep.device)
    return isotropic_backward(keep, power, obs_noise, predicted, initial_cov, key_dim, spans, d_predicted, d_final_cov)


@_isotropic_backward_op.register_fake
def _(d_predicted, d_final_cov, predicted, keep, power, obs_noise, initial_cov, *rest):  # type: ignore[no-untyped-def]
    return tuple(torch.empty_like(x) for x in (keep, keep, power, obs_noise, initial_cov))


def _isotropic_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    keep, _, power, obs_noise, initial_cov, ctx.key_dim, cu_seqlens, ctx.batch, ctx.chunk = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[0], keep, power, obs_noise, initial_cov, cu_seqlens)


def _isotropic_gradient(ctx, d_predicted, d_final_cov):  # type: ignore[no-untyped-def]
    saved = ctx.saved_tensors
    d_predicted = torch.zeros_like(saved[0]) if d_predicted is None else d_predicted.contiguous()
    grads = _isotropic_backward_op(d_predicted, whole(d_final_cov), *saved, ctx.key_dim, ctx.batch, ctx.chunk)
    return *grads, None, None, None, None


isotropic_op.register_autograd(_isotropic_gradient, _isotropic_context)

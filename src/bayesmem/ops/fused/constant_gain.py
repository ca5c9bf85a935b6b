"""Gains of a constant covariance as a torch operator."""

import torch
from torch import Tensor

from bayesmem.ops.fused.operator import operator
from bayesmem.ops.fused.tables import grouped, whole
from bayesmem.ops.triton import constant_gain as kernels


@operator("bayesmem::constant_gain", repeats=True)
def constant_gain_op(k: Tensor, noise: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """``p k / s`` in the dtype of the keys and ``s = p |k|^2 + r`` in float32.

    Args:
        k: keys ``[N, G, K]``.
        noise: r ``[N, H]`` float32.
        variance: p ``[H]`` float32.

    Returns:
        Gains ``[N, H, K]`` and innovation variances ``[N, H]``.
    """
    return kernels.constant_gain(k, noise, variance)


@constant_gain_op.register_fake
def _(k, noise, variance):  # type: ignore[no-untyped-def]
    return k.new_empty(*noise.shape, k.shape[-1]), torch.empty_like(noise)


@operator("bayesmem::constant_gain_backward", repeats=True)
def _backward_op(
    k: Tensor, innovation_var: Tensor, variance: Tensor, dgain: Tensor, dinnovation_var: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    dk, dnoise, dvariance = kernels.constant_gain_backward(k, innovation_var, variance, dgain, dinnovation_var)
    return grouped(dk, k), dnoise, dvariance


@_backward_op.register_fake
def _(k, innovation_var, variance, dgain, dinnovation_var):  # type: ignore[no-untyped-def]
    return torch.empty_like(k), torch.empty_like(innovation_var), torch.empty_like(variance)


def _context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    k, _, variance = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(k, output[1], variance)


def _gradient(ctx, dgain, dinnovation_var):  # type: ignore[no-untyped-def]
    k, innovation_var, variance = ctx.saved_tensors
    if dgain is None:
        dgain = k.new_zeros(*innovation_var.shape, k.shape[-1])
    return _backward_op(k, innovation_var, variance, dgain.contiguous(), whole(dinnovation_var))


constant_gain_op.register_autograd(_gradient, _context)

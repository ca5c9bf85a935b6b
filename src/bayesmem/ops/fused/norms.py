"""Norms and the gated product as torch operators."""

import torch
from torch import Tensor

from bayesmem.ops.fused.operator import operator
from bayesmem.ops.triton import norms as kernels


@operator("bayesmem::norm")
def norm_op(
    x: Tensor, gate: Tensor | None, weight: Tensor | None, eps: float, act: str | None, dtype: torch.dtype
) -> Tensor:
    """``x / rms(x) * weight * act(gate)`` over the last axis, in ``dtype``; computed in float32.

    Args:
        x: contiguous.
        gate: like x.
        weight: one number a channel.
        eps: added to the mean square.
        act: ``silu`` or ``sigmoid``, with a gate.
        dtype: of the result.
    """
    return kernels.norm(x, gate, weight, eps, act, dtype, unit=False)[0]


@norm_op.register_fake
def _(x, gate, weight, eps, act, dtype):  # type: ignore[no-untyped-def]
    return torch.empty_like(x, dtype=dtype)


@operator("bayesmem::norm_backward")
def _norm_backward_op(
    x: Tensor, gate: Tensor | None, weight: Tensor | None, eps: float, act: str | None, dy: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    return kernels.norm_backward(x, gate, weight, eps, act, False, dy, None)


@_norm_backward_op.register_fake
def _(x, gate, weight, eps, act, dy):  # type: ignore[no-untyped-def]
    return torch.empty_like(x), *(None if part is None else torch.empty_like(part) for part in (gate, weight))


def _norm_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, gate, weight, ctx.eps, ctx.act, _ = inputs
    ctx.save_for_backward(x, gate, weight)


def _norm_gradient(ctx, dy):  # type: ignore[no-untyped-def]
    x, gate, weight = ctx.saved_tensors
    dx, dgate, dweight = _norm_backward_op(x, gate, weight, ctx.eps, ctx.act, dy.contiguous())
    return dx, None if gate is None else dgate, None if weight is None else dweight, None, None, None


norm_op.register_autograd(_norm_gradient, _norm_context)


@operator("bayesmem::unit_norm")
def unit_norm_op(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``x / sqrt(|x|^2 + eps)`` in the dtype of x, and what its square, as rounded, lacks to 1, in float32."""
    return kernels.norm(x, None, None, eps, None, x.dtype, unit=True)  # type: ignore[return-value]


@unit_norm_op.register_fake
def _(x, eps):  # type: ignore[no-untyped-def]
    return torch.empty_like(x), x.new_empty(x.shape[:-1], dtype=torch.float32)


@operator("bayesmem::unit_norm_backward")
def _unit_norm_backward_op(x: Tensor, eps: float, dy: Tensor, dmissing: Tensor | None) -> Tensor:
    return kernels.norm_backward(x, None, None, eps, None, True, dy, dmissing)[0]


@_unit_norm_backward_op.register_fake
def _(x, eps, dy, dmissing):  # type: ignore[no-untyped-def]
    return torch.empty_like(x)


def _unit_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, ctx.eps = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x)


def _unit_gradient(ctx, dy, dmissing):  # type: ignore[no-untyped-def]
    (x,) = ctx.saved_tensors
    dy = torch.zeros_like(x) if dy is None else dy.contiguous()
    return _unit_norm_backward_op(x, ctx.eps, dy, None if dmissing is None else dmissing.contiguous()), None


unit_norm_op.register_autograd(_unit_gradient, _unit_context)


@operator("bayesmem::gated_product")
def gated_product_op(a: Tensor, b: Tensor) -> Tensor:
    """``silu(a) b`` of contiguous tensors of one dtype."""
    return kernels.gated_product(a, b)


@gated_product_op.register_fake
def _(a, b):  # type: ignore[no-untyped-def]
    return torch.empty_like(a)


@operator("bayesmem::gated_product_backward")
def _gated_product_backward_op(a: Tensor, b: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    return kernels.gated_product_backward(a, b, dy)


@_gated_product_backward_op.register_fake
def _(a, b, dy):  # type: ignore[no-untyped-def]
    return torch.empty_like(a), torch.empty_like(b)


def _product_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _product_gradient(ctx, dy):  # type: ignore[no-untyped-def]
    return _gated_product_backward_op(*ctx.saved_tensors, dy.contiguous())


gated_product_op.register_autograd(_product_gradient, _product_context)

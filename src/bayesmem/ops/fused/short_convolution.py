"""The short convolution of a layer, with its SiLU, as a torch operator."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bayesmem.ops.fused.operator import operator
from bayesmem.ops.triton import short_convolution as kernels

MAX_TAPS = kernels.MAX_TAPS


def short_convolution(
    x: Float[Tensor, "B T E"],
    weight: Float[Tensor, "E taps"],
    bias: Float[Tensor, "E"] | None = None,
    tail: Float[Tensor, "B S E"] | None = None,
    position: Int[Tensor, "T"] | None = None,
) -> Float[Tensor, "B T E"]:
    """``silu`` of a causal depthwise convolution, in one pass over memory; sums in float32.

    Args:
        x: inputs of float16, bfloat16 or float32; a slice of a wider tensor is read where it lies.
        weight: of 1 to 4 taps, the last one of the current token; of any such dtype, read as it is.
        bias: one number a channel.
        tail: the S = taps - 1 inputs before ``x``; ``None`` is zeros.
        position: each token's position in its own packed sequence; no tap reaches past it.

    Returns:
        In the dtype of x.

    Raises:
        ValueError: shapes that do not fit, or more taps than the kernel knows.
    """
    channels, taps = weight.shape
    if not 1 <= taps <= MAX_TAPS:
        raise ValueError(f"weight has {taps} taps; the kernel knows 1 to {MAX_TAPS}: use layers.ShortConvolution.")
    if x.ndim != 3 or x.shape[2] != channels:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected [B, T, {channels}], the weight's channels.")
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"bias has shape {tuple(bias.shape)}; expected ({channels},), one number a channel.")
    if tail is not None and tail.shape != (x.shape[0], taps - 1, channels):
        expected = (x.shape[0], taps - 1, channels)
        raise ValueError(f"tail has shape {tuple(tail.shape)}; expected {expected}, the inputs before x.")
    if position is not None and position.shape != (x.shape[1],):
        raise ValueError(f"position has shape {tuple(position.shape)}; expected ({x.shape[1]},), one a token.")
    if taps == 1 or (tail is not None and not tail.numel()):
        tail = None
    return short_convolution_op(
        _rows(x), weight.contiguous(), bias, None if tail is None else _rows(tail.to(x.dtype)), position
    )


def _rows(x: Tensor) -> Tensor:
    """``x`` with its channels side by side, as the kernels read it."""
    return x if x.stride(-1) == 1 else x.contiguous()


@operator("bayesmem::short_convolution")
def short_convolution_op(
    x: Tensor, weight: Tensor, bias: Tensor | None, tail: Tensor | None, position: Tensor | None
) -> Tensor:
    """``short_convolution`` of checked arguments: channels of x and tail side by side, weight contiguous."""
    return kernels.convolution(x, weight, bias, tail, None if position is None else position.contiguous())


@short_convolution_op.register_fake
def _(x, weight, bias, tail, position):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


@operator("bayesmem::short_convolution_backward")
def _backward_op(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tail: Tensor | None,
    position: Tensor | None,
    dy: Tensor,
    want_tail: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    position = None if position is None else position.contiguous()
    return kernels.convolution_backward(x, weight, bias, tail, position, dy, want_tail)


@_backward_op.register_fake
def _(x, weight, bias, tail, position, dy, want_tail):  # type: ignore[no-untyped-def]
    dbias = None if bias is None else torch.empty_like(bias)
    dtail = x.new_empty(x.shape[0], weight.shape[1] - 1, x.shape[2]) if want_tail else None
    return x.new_empty(x.shape), torch.empty_like(weight), dbias, dtail


def _context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _gradient(ctx, dy):  # type: ignore[no-untyped-def]
    wanted = ctx.needs_input_grad
    grads = _backward_op(*ctx.saved_tensors, dy.contiguous(), wanted[3])
    return *(grad if want else None for grad, want in zip(grads, wanted, strict=False)), None


short_convolution_op.register_autograd(_gradient, _context)

"""A causal depthwise convolution of up to four taps, then SiLU: one pass over memory forward and one backward.

Legend, of one channel: x input, w_b the weight of the input b tokens back, z sum before SiLU, y output, dy, dz, dx
their gradients; everything in float32 inside. [..]: where token t is at least b tokens into its own sequence.

    z_t  = bias + sum_b w_b x_(t-b) [t, b]      y_t  = silu(z_t)
    dz_t = dy_t silu'(z_t)                      dx_t = sum_b w_b dz_(t+b) [t+b, b]
    dw_b = sum_t dz_t x_(t-b) [t, b]            dbias = sum_t dz_t

A program walks down a strip of tokens with the last inputs (and, backward, the unfinished gradients) in registers, so
that every number is read once and every sigmoid taken once. It asks for four rows before it stores any, since no load
overtakes a store. Backward it goes on over the few rows past its strip that its inputs reach. dw is a sum of one part
a strip, always in the same order.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from bayesmem.ops.triton.launched import launched
from bayesmem.ops.triton.norms import activation
from bayesmem.ops.triton.sizes import cdiv

MAX_TAPS = 4
WALK = 64  # rows that a program walks over, a multiple of four
CHANNELS = 128  # of one program, which is one warp: its loads are then 8 or 16 bytes a thread


@triton.jit
@no_type_check
def _place(T, STRIP: tl.constexpr, E: tl.constexpr, BD: tl.constexpr):
    """First channel, first row and sequence of this program (int64)."""
    BLOCKS: tl.constexpr = (E + BD - 1) // BD
    program, strips = tl.program_id(0), tl.cdiv(T, STRIP)
    strip = program // BLOCKS
    return (program % BLOCKS) * BD, (strip % strips) * STRIP, (strip // strips).to(tl.int64)


@triton.jit
@no_type_check
def _held(col, held, E: tl.constexpr):
    """Which channels exist, all or none by ``held`` (a scalar, which the interpreter makes no mask of)."""
    return col < tl.where(held, E, 0)


@triton.jit
@no_type_check
def _weights(weight, bias, col, live, TAPS: tl.constexpr):
    """Weights from the current token's back, 0 where there are fewer than four, and the bias."""
    place = weight + col * TAPS + (TAPS - 1)
    w0 = tl.load(place, mask=live, other=0.0).to(tl.float32)
    w1, w2, w3 = tl.zeros_like(w0), tl.zeros_like(w0), tl.zeros_like(w0)
    if TAPS > 1:
        w1 = tl.load(place - 1, mask=live, other=0.0).to(tl.float32)
    if TAPS > 2:
        w2 = tl.load(place - 2, mask=live, other=0.0).to(tl.float32)
    if TAPS > 3:
        w3 = tl.load(place - 3, mask=live, other=0.0).to(tl.float32)
    added = tl.zeros_like(w0)
    if bias is not None:
        added = tl.load(bias + col, mask=live, other=0.0).to(tl.float32)
    return w0, w1, w2, w3, added


@triton.jit
@no_type_check
def _before(x, tail, first, stride, tail_stride, col, E: tl.constexpr, BACK: tl.constexpr, TAPS: tl.constexpr):
    """The input ``BACK`` rows before row ``first``, to which x points: at the start one of the tail's."""
    found = tl.load(x - BACK * stride + col, mask=_held(col, first >= BACK, E), other=0.0).to(tl.float32)
    if tail is not None and BACK < TAPS:
        place = tail + (TAPS - 1 - BACK) * tail_stride + col
        found += tl.load(place, mask=_held(col, first == 0, E), other=0.0).to(tl.float32)
    return found


@triton.jit
@no_type_check
def _four(x, i, stride, col, rows, E: tl.constexpr):
    """Rows i to i + 3; zeros from row ``rows`` on."""
    a = tl.load(x + i * stride + col, mask=_held(col, i < rows, E), other=0.0).to(tl.float32)
    b = tl.load(x + (i + 1) * stride + col, mask=_held(col, i + 1 < rows, E), other=0.0).to(tl.float32)
    c = tl.load(x + (i + 2) * stride + col, mask=_held(col, i + 2 < rows, E), other=0.0).to(tl.float32)
    d = tl.load(x + (i + 3) * stride + col, mask=_held(col, i + 3 < rows, E), other=0.0).to(tl.float32)
    return a, b, c, d


@triton.jit
@no_type_check
def _four_positions(position, i, rows):
    """Where rows i to i + 3 stand in their own sequences; not read where none are packed."""
    a, b, c, d = 0, 0, 0, 0
    if position is not None:
        a = tl.load(position + i, mask=i < rows, other=0).to(tl.int32)
        b = tl.load(position + i + 1, mask=i + 1 < rows, other=0).to(tl.int32)
        c = tl.load(position + i + 2, mask=i + 2 < rows, other=0).to(tl.int32)
        d = tl.load(position + i + 3, mask=i + 3 < rows, other=0).to(tl.int32)
    return a, b, c, d


@triton.jit
@no_type_check
def _reached(x, at, BACK: tl.constexpr, PACKED: tl.constexpr):
    """``x``, which lies ``BACK`` rows from a row at ``at`` of its sequence, or 0 where that is another sequence."""
    if PACKED:
        x = tl.where(at >= BACK, x, 0.0)
    return x


@triton.jit
@no_type_check
def _mixed(inputs, w, at, TAPS: tl.constexpr, PACKED: tl.constexpr):
    """The inputs that a row hears, ``silu(z)`` and its slope."""
    x0 = inputs[0]
    x1, x2 = _reached(inputs[1], at, 1, PACKED), _reached(inputs[2], at, 2, PACKED)
    x3 = _reached(inputs[3], at, 3, PACKED)
    z = w[0] * x0 + w[4]
    if TAPS > 1:
        z += w[1] * x1
    if TAPS > 2:
        z += w[2] * x2
    if TAPS > 3:
        z += w[3] * x3
    value, slope = activation(z, 1)
    return (x0, x1, x2, x3), value, slope


@launched
@triton.jit
@no_type_check
def convolution_kernel(
    x, weight, bias, tail, position, y, T, row_stride, stride, tail_row_stride, tail_stride,
    E: tl.constexpr, TAPS: tl.constexpr, WALK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """``bias``, ``tail`` and ``position`` may each be None; a ``row_stride`` is from sequence to sequence."""
    PACKED: tl.constexpr = position is not None
    channel, first, row = _place(T, WALK, E, BD)
    start = first.to(tl.int64)
    col = channel + tl.arange(0, BD)
    live = col < E
    w = _weights(weight, bias, col, live, TAPS)
    x += row * row_stride + start * stride
    y += (row * T + start) * E
    if tail is not None:
        tail += row * tail_row_stride
    if PACKED:
        position += start
    x1 = _before(x, tail, first, stride, tail_stride, col, E, 1, TAPS)
    x2 = _before(x, tail, first, stride, tail_stride, col, E, 2, TAPS)
    x3 = _before(x, tail, first, stride, tail_stride, col, E, 3, TAPS)
    rows = tl.minimum(T - first, WALK)
    for i in range(0, rows, 4):
        a, b, c, d = _four(x, i, stride, col, rows, E)
        at = _four_positions(position, i, rows)
        window = (d, c, b, a, x1, x2, x3)
        for j in tl.static_range(4):
            inputs = (window[3 - j], window[4 - j], window[5 - j], window[6 - j])
            _, value, _ = _mixed(inputs, w, at[j], TAPS, PACKED)
            tl.store(y + (i + j) * E + col, value.to(y.dtype.element_ty), mask=_held(col, i + j < rows, E))
        x1, x2, x3 = d, c, b


@launched
@triton.jit
@no_type_check
def convolution_backward_kernel(
    x, weight, bias, tail, position, dy, dx, dweight, dbias, dtail,
    T, row_stride, stride, tail_row_stride, tail_stride,
    E: tl.constexpr, TAPS: tl.constexpr, WALK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """``dweight`` is ``[strips, E, TAPS]``, ``dbias`` ``[strips, E]``; ``dbias`` and ``dtail`` may be None."""
    PACKED: tl.constexpr = position is not None
    SIZE: tl.constexpr = TAPS - 1
    STRIP: tl.constexpr = WALK - SIZE
    channel, first, row = _place(T, STRIP, E, BD)
    start = first.to(tl.int64)
    col = channel + tl.arange(0, BD)
    live = col < E
    w = _weights(weight, bias, col, live, TAPS)
    x += row * row_stride + start * stride
    dy += (row * T + start) * E
    dx += (row * T + start) * E
    if tail is not None:
        tail += row * tail_row_stride
    if dtail is not None:
        dtail += row * (SIZE * E)
    if PACKED:
        position += start
    x1 = _before(x, tail, first, stride, tail_stride, col, E, 1, TAPS)
    x2 = _before(x, tail, first, stride, tail_stride, col, E, 2, TAPS)
    x3 = _before(x, tail, first, stride, tail_stride, col, E, 3, TAPS)
    zero = tl.zeros_like(x1)
    p1, p2, p3 = zero, zero, zero  # dx of the rows before, unfinished
    s0, s1, s2, s3, added = zero, zero, zero, zero, zero  # dw and dbias
    rows = tl.minimum(T - first, WALK)
    own = tl.minimum(rows, STRIP)
    for i in range(0, own + SIZE, 4):
        a, b, c, d = _four(x, i, stride, col, rows, E)
        slopes = _four(dy, i, E, col, rows, E)
        at = _four_positions(position, i, rows)
        window = (d, c, b, a, x1, x2, x3)
        for j in tl.static_range(4):
            inputs = (window[3 - j], window[4 - j], window[5 - j], window[6 - j])
            heard, _, slope = _mixed(inputs, w, at[j], TAPS, PACKED)
            dz = slopes[j] * slope
            p1 += _reached(w[1] * dz, at[j], 1, PACKED)
            p2 += _reached(w[2] * dz, at[j], 2, PACKED)
            p3 += _reached(w[3] * dz, at[j], 3, PACKED)
            p0 = w[0] * dz
            done = (p0, p1, p2, p3)[SIZE]
            back = i + j - SIZE
            tl.store(dx + back * E + col, done.to(dx.dtype.element_ty), mask=_held(col, (back >= 0) & (back < own), E))
            if dtail is not None:
                place = dtail + (i + j) * E + col
                tl.store(place, done.to(dtail.dtype.element_ty), mask=_held(col, (back < 0) & (first == 0), E))
            p1, p2, p3 = p0, p1, p2
            dz = tl.where(i + j < own, dz, 0.0)
            added += dz
            s0 += dz * heard[0]
            s1 += dz * heard[1]
            s2 += dz * heard[2]
            s3 += dz * heard[3]
        x1, x2, x3 = d, c, b
    part = row * tl.cdiv(T, STRIP) + start // STRIP
    dweight += part * (E * TAPS) + col * TAPS + SIZE
    tl.store(dweight, s0, mask=live)
    if TAPS > 1:
        tl.store(dweight - 1, s1, mask=live)
    if TAPS > 2:
        tl.store(dweight - 2, s2, mask=live)
    if TAPS > 3:
        tl.store(dweight - 3, s3, mask=live)
    if dbias is not None:
        tl.store(dbias + part * E + col, added, mask=live)


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, tail: Tensor | None, position: Tensor | None) -> Tensor:
    """Launch ``convolution_kernel``: ``[B, T, E]`` in the dtype of x; the last axis of x and tail has stride 1."""
    length = x.shape[1]
    y = x.new_empty(x.shape)
    if y.numel():
        grid, sizes = _sizes(x, weight, WALK)
        strides = (*x.stride()[:2], *((0, 0) if tail is None else tail.stride()[:2]))
        convolution_kernel[grid](x, weight, bias, tail, position, y, length, *strides, **sizes)
    return y


def convolution_backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tail: Tensor | None,
    position: Tensor | None,
    dy: Tensor,
    want_tail: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Launch ``convolution_backward_kernel``: gradients of x, weight, bias and tail; dy is contiguous."""
    (batch, length, channels), taps = x.shape, weight.shape[1]
    strip = WALK - (taps - 1)
    parts = batch * cdiv(length, strip)
    dx, dweight = x.new_empty(x.shape), x.new_empty(parts, channels, taps, dtype=torch.float32)
    dbias = None if bias is None else dweight.new_empty(parts, channels)
    dtail = x.new_zeros(batch, taps - 1, channels) if want_tail else None
    if dx.numel():
        grid, sizes = _sizes(x, weight, strip)
        strides = (*x.stride()[:2], *((0, 0) if tail is None else tail.stride()[:2]))
        convolution_backward_kernel[grid](
            x, weight, bias, tail, position, dy, dx, dweight, dbias, dtail, length, *strides, **sizes
        )
    summed = None if bias is None or dbias is None else dbias.sum(0).to(bias.dtype)
    return dx, dweight.sum(0).to(weight.dtype), summed, dtail


def _sizes(x: Tensor, weight: Tensor, strip: int) -> tuple[tuple[int], dict[str, Any]]:
    """Programs and block sizes."""
    batch, length, channels = x.shape
    programs = cdiv(channels, CHANNELS) * cdiv(length, strip) * batch
    return (programs,), {"E": channels, "TAPS": weight.shape[1], "WALK": WALK, "BD": CHANNELS, "num_warps": 1}

"""Norms over the last axis and gated products, each one pass over memory forward and one backward.

Legend: x a row of V channels, g its gate, w a weight a channel, dy the gradient of y; everything in float32 inside.

    s = 1 / sqrt(mean(x^2) + eps), of unit norms 1 / sqrt(sum(x^2) + eps)     u = s x
    y = u w act(g)                     missing = 1 - |y|^2, of y as it is rounded
    du = dy w act(g) - 2 dmissing y    dx = s (du - u mean(du u)), of unit norms s (du - u sum(du u))
    dg = dy u w act'(g)                dw = sum over rows of dy u act(g)

A program walks over a strip of rows, so that dw is a sum of few parts, always in the same order.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from bayesmem.ops.triton.device import limits
from bayesmem.ops.triton.launched import launched
from bayesmem.ops.triton.sizes import cdiv, power_of_two

ACTIVATIONS = {None: 0, "silu": 1, "sigmoid": 2}
TILE = 4096  # numbers a program holds of each operand
PROGRAMS = 8  # a multiprocessor


@triton.jit
@no_type_check
def activation(g, ACT: tl.constexpr):
    """``act(g)`` and its slope."""
    sigmoid = tl.sigmoid(g)
    if ACT == 1:
        value, slope = g * sigmoid, sigmoid * (1 + g * (1 - sigmoid))
    else:
        value, slope = sigmoid, sigmoid * (1 - sigmoid)
    return value, slope


@launched
@triton.jit
@no_type_check
def norm_kernel(
    x, gate, weight, y, missing, rows, eps, V: tl.constexpr, R: tl.constexpr, BV: tl.constexpr, ACT: tl.constexpr
):
    """``missing`` is given for unit norms alone, ``gate`` and ``weight`` for the others, each may be None."""
    col = tl.arange(0, BV)
    scale = 1.0 if missing is not None else 1.0 / V
    for start in range(tl.program_id(0) * R, rows, tl.num_programs(0) * R):
        row = start + tl.arange(0, R)
        at = row.to(tl.int64)[:, None] * V + col[None, :]
        held = (row < rows)[:, None] & (col < V)[None, :]
        u = tl.load(x + at, mask=held, other=0.0).to(tl.float32)
        u *= tl.rsqrt(tl.sum(u * u, 1) * scale + eps)[:, None]
        if weight is not None:
            u *= tl.load(weight + col, mask=col < V, other=0.0).to(tl.float32)[None, :]
        if gate is not None:
            value, _ = activation(tl.load(gate + at, mask=held, other=0.0).to(tl.float32), ACT)
            u *= value
        rounded = u.to(y.dtype.element_ty)
        tl.store(y + at, rounded, mask=held)
        if missing is not None:
            rounded = rounded.to(tl.float32)
            tl.store(missing + row, 1.0 - tl.sum(rounded * rounded, 1), mask=row < rows)


@launched
@triton.jit
@no_type_check
def norm_backward_kernel(
    x,
    gate,
    weight,
    dy,
    dmissing,
    dx,
    dgate,
    dweight,
    rows,
    eps,
    UNIT: tl.constexpr,
    V: tl.constexpr,
    R: tl.constexpr,
    BV: tl.constexpr,
    ACT: tl.constexpr,
):
    """``dweight`` is ``[programs, V]``."""
    col = tl.arange(0, BV)
    scale = 1.0 if UNIT else 1.0 / V
    total = tl.zeros([BV], tl.float32)
    for start in range(tl.program_id(0) * R, rows, tl.num_programs(0) * R):
        row = start + tl.arange(0, R)
        at = row.to(tl.int64)[:, None] * V + col[None, :]
        held = (row < rows)[:, None] & (col < V)[None, :]
        u = tl.load(x + at, mask=held, other=0.0).to(tl.float32)
        s = tl.rsqrt(tl.sum(u * u, 1) * scale + eps)[:, None]
        u *= s
        du = tl.load(dy + at, mask=held, other=0.0).to(tl.float32)
        if dmissing is not None:
            du -= 2.0 * tl.load(dmissing + row, mask=row < rows, other=0.0)[:, None] * u
        if gate is not None:
            value, slope = activation(tl.load(gate + at, mask=held, other=0.0).to(tl.float32), ACT)
            through = du * u * slope
            if weight is not None:
                through *= tl.load(weight + col, mask=col < V, other=0.0).to(tl.float32)[None, :]
            tl.store(dgate + at, through.to(dgate.dtype.element_ty), mask=held)
            du *= value
        if weight is not None:
            total += tl.sum(du * u, 0)
            du *= tl.load(weight + col, mask=col < V, other=0.0).to(tl.float32)[None, :]
        du = s * (du - u * (tl.sum(du * u, 1) * scale)[:, None])
        tl.store(dx + at, du.to(dx.dtype.element_ty), mask=held)
    if weight is not None:
        tl.store(dweight + tl.program_id(0) * V + col, total, mask=col < V)


@launched
@triton.jit
@no_type_check
def gated_product_kernel(a, b, y, count, SIZE: tl.constexpr):
    """``y = silu(a) b``."""
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    held = at < count
    value, _ = activation(tl.load(a + at, mask=held, other=0.0).to(tl.float32), 1)
    out = value * tl.load(b + at, mask=held, other=0.0).to(tl.float32)
    tl.store(y + at, out.to(y.dtype.element_ty), mask=held)


@launched
@triton.jit
@no_type_check
def gated_product_backward_kernel(a, b, dy, da, db, count, SIZE: tl.constexpr):
    """Gradients of ``silu(a) b``."""
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    held = at < count
    value, slope = activation(tl.load(a + at, mask=held, other=0.0).to(tl.float32), 1)
    given = tl.load(dy + at, mask=held, other=0.0).to(tl.float32)
    other = tl.load(b + at, mask=held, other=0.0).to(tl.float32)
    tl.store(da + at, (given * other * slope).to(da.dtype.element_ty), mask=held)
    tl.store(db + at, (given * value).to(db.dtype.element_ty), mask=held)


def _sizes(x: Tensor) -> tuple[int, dict[str, Any], int]:
    """Rows, block sizes, and the largest number of programs."""
    width = x.shape[-1]
    covered = max(power_of_two(width), 16)
    rows = x.numel() // max(width, 1)
    tile = max(min(TILE // covered, power_of_two(max(rows, 1))), 1)
    programs = max(min(cdiv(rows, tile), PROGRAMS * limits(x.device).processors), 1)
    return rows, {"V": width, "R": tile, "BV": covered, "num_warps": 4 if covered <= 1024 else 8}, programs


def norm(
    x: Tensor, gate: Tensor | None, weight: Tensor | None, eps: float, act: str | None, dtype: torch.dtype, unit: bool
) -> tuple[Tensor, Tensor | None]:
    """Launch ``norm_kernel``: y in ``dtype``, and ``missing`` of a unit norm, one a row."""
    rows, blocks, programs = _sizes(x)
    y = torch.empty_like(x, dtype=dtype)
    missing = x.new_empty(x.shape[:-1], dtype=torch.float32) if unit else None
    norm_kernel[(programs,)](x, gate, weight, y, missing, rows, eps, ACT=ACTIVATIONS[act], **blocks)
    return y, missing


def norm_backward(
    x: Tensor,
    gate: Tensor | None,
    weight: Tensor | None,
    eps: float,
    act: str | None,
    unit: bool,
    dy: Tensor,
    dmissing: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Launch ``norm_backward_kernel``: gradients of x, gate and weight."""
    rows, blocks, programs = _sizes(x)
    dx, dgate = torch.empty_like(x), None if gate is None else torch.empty_like(gate)
    dweight = None if weight is None else x.new_zeros(programs, x.shape[-1], dtype=torch.float32)
    grid = (programs,)
    norm_backward_kernel[grid](
        x, gate, weight, dy, dmissing, dx, dgate, dweight, rows, eps, UNIT=unit, ACT=ACTIVATIONS[act], **blocks
    )
    return dx, dgate, None if weight is None or dweight is None else dweight.sum(0).to(weight.dtype)


SIZE = 4096


def gated_product(a: Tensor, b: Tensor) -> Tensor:
    """``silu(a) b``."""
    y = torch.empty_like(a)
    gated_product_kernel[(cdiv(a.numel(), SIZE),)](a, b, y, a.numel(), SIZE=SIZE)
    return y


def gated_product_backward(a: Tensor, b: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of ``gated_product``."""
    da, db = torch.empty_like(a), torch.empty_like(b)
    gated_product_backward_kernel[(cdiv(a.numel(), SIZE),)](a, b, dy, da, db, a.numel(), SIZE=SIZE)
    return da, db

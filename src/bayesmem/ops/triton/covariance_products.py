"""Products of float32 tiles on the tensor cores, and the inverse that is made of them.

Legend: what is multiplied is a pair (high, low), by what PREC says. With ``bf16x3``, for streams of 16 bits, a float32
x is kept and multiplied as x = high + low, both bfloat16, wrong by 2^-17:

    a b = a_high b_low + a_low b_high + a_high b_high

This is made here and not by Triton: tiles of 16 bits cross shared memory untransposed and without bank conflicts, as
those of 32 do not; a tile is split once for all its products, or in memory already; and what is bfloat16 by nature
(keys, queries) has no low half: low is None. All else, ``tf32x3`` (for float32 streams), ``tf32``, ``ieee``, is
Triton's: a pair is then whole, its high the float32 tile and its low None.
"""

from typing import no_type_check

import triton
import triton.language as tl
from torch import Tensor

Pair = tuple[Tensor, Tensor | None]  # in memory: bfloat16, or float32 and None

# The interpreter multiplies the bits of bfloat16 as integers.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
@no_type_check
def half_product(a, b, acc):
    """``acc + a b`` of bfloat16."""
    return tl.dot(a.to(tl.float32), b.to(tl.float32), acc) if INTERPRETED else tl.dot(a, b, acc)


@triton.jit
@no_type_check
def split(x, PREC: tl.constexpr):
    """The pair of a tile. Rounded by integer arithmetic, since single conversions to bfloat16 are slow."""
    if PREC != "bf16x3" or x.dtype == tl.bfloat16:
        return (x,)
    else:
        x = x.to(tl.float32)
        bits = (x.to(tl.uint32, bitcast=True) + 0x8000) & 0xFFFF0000
        low = (x - bits.to(tl.float32, bitcast=True)).to(tl.bfloat16)
        return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True), low


@triton.jit
@no_type_check
def rounded_pair(x):
    """The pair of a tile of float32, its high half fit to stand alone: of a NaN ``split`` may leave a zero there."""
    high = x.to(tl.bfloat16)
    return high, (x - high.to(tl.float32)).to(tl.bfloat16)


@triton.jit
@no_type_check
def joined(pair):
    """The float32 of a pair."""
    if len(pair) == 1:
        return pair[0].to(tl.float32)
    else:
        return pair[0].to(tl.float32) + pair[1].to(tl.float32)


@triton.jit
@no_type_check
def transposed(pair):
    """The transpose of a pair."""
    if len(pair) == 1:
        return (tl.trans(pair[0]),)
    else:
        return tl.trans(pair[0]), tl.trans(pair[1])


@triton.jit
@no_type_check
def pair_product(a, b, acc, PREC: tl.constexpr):
    """``acc + a b`` of two pairs in float32; ``acc`` may be None."""
    if PREC == "bf16x3":
        if len(b) == 2:
            acc = half_product(a[0], b[1], acc)
        if len(a) == 2:
            acc = half_product(a[1], b[0], acc)
        return half_product(a[0], b[0], acc)
    else:
        return tl.dot(a[0].to(tl.float32), b[0].to(tl.float32), acc, input_precision=PREC)


@triton.jit
@no_type_check
def product(a, b, acc, PREC: tl.constexpr):
    """``acc + a b`` of two tiles in float32; ``acc`` may be None."""
    return pair_product(split(a, PREC), split(b, PREC), acc, PREC)


@triton.jit
@no_type_check
def unit_inverse(x, C: tl.constexpr, LEVELS: tl.constexpr, PREC: tl.constexpr):
    """``(I + x)^{-1}`` of a strictly lower triangular ``x`` ``[C, C]``, C = 2^LEVELS, as in ``mean_prepare``.

    x is split once for all levels.
    """
    i, j = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    inverse = tl.where(i == j, 1.0, 0.0) - tl.where((i >> 1) == (j >> 1), x, 0.0)
    x_pair = split(x, PREC)
    for level in range(1, LEVELS):
        joins = ((i >> (level + 1)) == (j >> (level + 1))) & ((i >> level) != (j >> level))
        pair = split(inverse, PREC)
        left = split(pair_product(pair, x_pair, None, PREC), PREC)
        inverse -= tl.where(joins, pair_product(left, pair, None, PREC), 0.0)
    return inverse

"""Products of float32 tiles on the tensor cores, and the inverse that is made of them.

Legend: a float32 x is kept and multiplied as a pair, x = high + low, both bfloat16, wrong by 2^-17:

    a b = a_high b_low + a_low b_high + a_high b_high

This is PREC ``bf16x3``, made here and not by Triton: tiles of 16 bits cross shared memory untransposed and without
bank conflicts, as those of 32 do not; a tile is split once for all its products, or in memory already; and what is
bfloat16 by nature (keys, queries) has no low half. All else, ``tf32``, ``tf32x3``, ``ieee``, is Triton's.
"""

from typing import no_type_check

import triton
import triton.language as tl

# The interpreter multiplies the bits of bfloat16 as integers.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
@no_type_check
def half_product(a, b, acc):
    """``acc + a b`` of bfloat16."""
    return tl.dot(a.to(tl.float32), b.to(tl.float32), acc) if INTERPRETED else tl.dot(a, b, acc)


@triton.jit
@no_type_check
def split(x):
    """The pair of a float32 tile, rounded by integer arithmetic: single conversions to bfloat16 are slow."""
    bits = (x.to(tl.uint32, bitcast=True) + 0x8000) & 0xFFFF0000
    low = (x - bits.to(tl.float32, bitcast=True)).to(tl.bfloat16)
    return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True), low


@triton.jit
@no_type_check
def joined(high, low):
    """The float32 of a pair."""
    return high.to(tl.float32) + low.to(tl.float32)


@triton.jit
@no_type_check
def pair_product(a_high, a_low, b_high, b_low, acc):
    """``acc + a b`` in float32; ``acc`` may be None."""
    acc = half_product(a_high, b_low, acc)
    acc = half_product(a_low, b_high, acc)
    return half_product(a_high, b_high, acc)


@triton.jit
@no_type_check
def product(a, b, acc, PREC: tl.constexpr):
    """``acc + a b`` in float32, where ``acc`` may be None."""
    if PREC == "bf16x3":
        if a.dtype == tl.bfloat16:
            a_high = a
        else:
            a_high, a_low = split(a.to(tl.float32))
        if b.dtype == tl.bfloat16:
            b_high = b
        else:
            b_high, b_low = split(b.to(tl.float32))
        if b.dtype != tl.bfloat16:
            acc = half_product(a_high, b_low, acc)
        if a.dtype != tl.bfloat16:
            acc = half_product(a_low, b_high, acc)
        acc = half_product(a_high, b_high, acc)
    else:
        acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision=PREC)
    return acc


@triton.jit
@no_type_check
def unit_inverse(x, C: tl.constexpr, LEVELS: tl.constexpr, PREC: tl.constexpr):
    """``(I + x)^{-1}`` of a strictly lower triangular ``x`` ``[C, C]``, C = 2^LEVELS, as in ``mean_prepare``."""
    i, j = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    inverse = tl.where(i == j, 1.0, 0.0) - tl.where((i >> 1) == (j >> 1), x, 0.0)
    for level in range(1, LEVELS):
        joins = ((i >> (level + 1)) == (j >> (level + 1))) & ((i >> level) != (j >> level))
        right = product(tl.where(joins, x, 0.0), inverse, None, PREC)
        inverse = product(inverse, -right, inverse, PREC)
    return inverse

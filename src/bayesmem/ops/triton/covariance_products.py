"""Products of float32 tiles on the tensor cores, and the inverse that is made of them.

Legend: PREC ``bf16x3`` is made here and not by Triton: x = high + low, both bfloat16, so that

    a b = a_high b_low + a_low b_high + a_high b_high

is wrong by 2^-17. Tiles of 16 bits cross shared memory untransposed and without bank conflicts, as 32-bit ones do not,
one accumulator takes all, the halves of a tile are made once for all its products, and one that is bfloat16 by nature
(keys, queries) has no low half. All else, ``tf32``, ``tf32x3``, ``ieee``, is Triton's.
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def product(a, b, acc, PREC: tl.constexpr):
    """``acc + a b`` in float32, where ``acc`` may be None."""
    if PREC == "bf16x3":
        a_high, b_high = a.to(tl.bfloat16), b.to(tl.bfloat16)
        if b.dtype != tl.bfloat16:
            b_low = (b - b_high.to(tl.float32)).to(tl.bfloat16)
            acc = tl.dot(a_high, b_low, acc)
        if a.dtype != tl.bfloat16:
            a_low = (a - a_high.to(tl.float32)).to(tl.bfloat16)
            acc = tl.dot(a_low, b_high, acc)
        acc = tl.dot(a_high, b_high, acc)
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

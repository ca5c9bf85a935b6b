"""Every token's ``H_t x_t = b_t`` by conjugate gradients in float32: a program solves the C systems of one chunk.

    H_t x = Gamma_t S x + (1 - Gamma_t) Lambda x + sum_{s<=t} (Gamma_t / Gamma_s) (k_s . x) k_s / r_s

S is the precision before the chunk, Gamma_t the discount since: three matrix products an iteration, for all tokens at
once. The diagonal of a token's own H_t preconditions. A right side is scaled to a largest entry of 1, so that no
square of it underflows; one of zeros is done at once.

The residual that the iteration carries does not know what float32 has rounded off. At the end the true one, b_t - H_t
x_t with the H_t of these float32 arguments, is computed and its norm returned: whether to believe x is the caller's
choice.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from bayesmem.ops.triton.sizes import block


@triton.jit
@no_type_check
def _halves(x):
    """``x = high + low``, high of the 11 bits that a tensor core reads; what it cuts off low is 2^-22 of x."""
    high = (x.to(tl.uint32, bitcast=True) & 0xFFFFE000).to(tl.float32, bitcast=True)
    return high, x - high


@triton.jit
@no_type_check
def _by_keys(x, keys, acc, PREC: tl.constexpr):
    """``acc + x keys``; keys of 16 bits have no low half."""
    if PREC == "tf32x3":
        high, low = _halves(x)
        return tl.dot(high, keys, tl.dot(low, keys, acc, input_precision="tf32"), input_precision="tf32")
    else:
        return tl.dot(x, keys, acc, input_precision=PREC)


@triton.jit
@no_type_check
def _times(x, start, since, refill, k, weight, PREC: tl.constexpr):
    """``H_t x_t`` of all tokens, ``[BC, BK]``."""
    carried = tl.dot(x, start, input_precision=PREC) * since[:, None] + refill * x
    return _by_keys(_by_keys(x, tl.trans(k), None, PREC) * weight, k, carried, PREC)


@triton.jit
@no_type_check
def _solve_kernel(
    start, since, refill, k, weight, rhs, solution, residual, iterations, limit, tolerance,
    C: tl.constexpr, K: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    chunk = tl.program_id(0).to(tl.int64)
    t, i, j = tl.arange(0, BC), tl.arange(0, BK)[:, None], tl.arange(0, BK)[None, :]
    here = (t < C)[:, None] & (j < K)
    at = (chunk * C + t)[:, None] * K + j
    S = tl.load(start + chunk * K * K + i * K + j, mask=(i < K) & (j < K), other=0.0)
    diagonal = tl.load(start + chunk * K * K + j * (K + 1), mask=j < K, other=0.0)
    gamma = tl.load(since + chunk * C + t, mask=t < C, other=0.0)
    pull = tl.load(refill + at, mask=here, other=0.0)
    keys = tl.load(k + at, mask=here, other=0.0)
    both = (t < C)[:, None] & (t < C)[None, :]
    w = tl.load(weight + (chunk * C + t)[:, None] * C + t[None, :], mask=both, other=0.0)
    b = tl.load(rhs + at, mask=here, other=0.0)
    scale = tl.max(tl.abs(b), 1)
    scale = tl.where(scale > 0.0, scale, 1.0)[:, None]
    b = b / scale
    norm = tl.sum(b * b, 1)
    own = gamma[:, None] * diagonal + pull + tl.dot(w, keys * keys, input_precision=PREC)
    inverse = tl.where(here, 1.0 / tl.where(here, own, 1.0), 0.0)
    bound = tolerance * tolerance * norm

    x, left = tl.zeros([BC, BK], tl.float32), b
    direction = left * inverse
    power = tl.sum(left * direction, 1)
    awaited = norm > bound  # tokens that are not done
    count = 0
    while (tl.max(awaited.to(tl.int32), 0) > 0) & (count < limit):
        image = _times(direction, S, gamma, pull, keys, w, PREC)
        curvature = tl.sum(direction * image, 1)
        step = tl.where(awaited & (curvature > 0.0), power / tl.where(curvature > 0.0, curvature, 1.0), 0.0)
        x += step[:, None] * direction
        left -= step[:, None] * image
        whitened = left * inverse
        now = tl.sum(left * whitened, 1)
        turn = tl.where(awaited & (power > 0.0), now / tl.where(power > 0.0, power, 1.0), 0.0)
        direction = whitened + turn[:, None] * direction
        power = now
        awaited = tl.sum(left * left, 1) > bound
        count += 1

    left = tl.load(rhs + at, mask=here, other=0.0) / scale - _times(x, S, gamma, pull, keys, w, PREC)
    tl.store(residual + chunk * C + t, tl.sqrt(tl.sum(left * left, 1) / tl.where(norm > 0.0, norm, 1.0)), mask=t < C)
    tl.store(solution + at, x * scale, mask=here)
    tl.store(iterations + chunk, count)


def solve_chunks(
    start: Float[Tensor, "M K K"],
    since: Float[Tensor, "M C 1"],
    refill: Float[Tensor, "M C K"],
    k: Float[Tensor, "M C K"],
    weight: Float[Tensor, "M C C"],
    rhs: Float[Tensor, "M C K"],
    limit: int,
    tolerance: float = 1e-6,
    tuning: dict[str, Any] | None = None,
) -> tuple[Float[Tensor, "M C K"], Float[Tensor, "M C"], Int[Tensor, "M"]]:
    """Launch ``_solve_kernel`` on M chunks of C tokens; all float32.

    Args:
        start: precision before each chunk, symmetric.
        since: discount Gamma_t from there to each token, 0 to 1.
        refill: diagonal of (1 - Gamma_t) Lambda, a precision.
        k: keys, any norm, at most 128 channels; of 16-bit streams: ``tf32x3`` reads 11 bits of a number.
        weight: Gamma_t / Gamma_s / r_s, a precision, 0 above its diagonal.
        rhs: right sides b_t.
        limit: iterations at most.
        tolerance: of |b_t|, on the residual that the iteration carries.
        tuning: may set ``PREC`` (of matrix products), ``num_warps`` and ``num_stages``.

    Returns:
        Solutions, the norms of their true residuals over those of ``rhs``, and every chunk's iterations.
    """
    chunks, size, key_dim = k.shape
    given = [x.contiguous() for x in (start, since, refill, k, weight, rhs)]
    solution, residual = torch.empty_like(given[-1]), rhs.new_empty(chunks, size)
    iterations = torch.empty(chunks, dtype=torch.int32, device=rhs.device)
    sizes = {"C": size, "K": key_dim, "BC": block(size), "BK": block(key_dim)}
    options = {"PREC": "tf32x3", "num_warps": 4 if key_dim <= 64 else 8, "num_stages": 1} | (tuning or {})
    _solve_kernel[(chunks,)](*given, solution, residual, iterations, limit, tolerance, **sizes, **options)
    return solution, residual, iterations

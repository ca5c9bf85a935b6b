"""Where conjugate gradients run as a kernel in float32, and how far they are believed.

Streams of 16 bits say no more than float32 does, and the memory M_t read through a wrong solution is wrong by M_t^T of
its residual (information vectors are ``H_t M_t``): a true residual below ``BOUND`` of the query is far below what
bfloat16 or float16 write. A gradient's error is the residual's times what the precision spreads, hence the margin.
Where float32 does not get there at once, the residual is computed in float64 and solved for in turn, for a solution in
float64; what does not get there then is solved in float64 altogether.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from bayesmem.ops.fused_filter import MAX_VALUE_DIM, available, chunk_size
from bayesmem.ops.normalise import LOG_ZERO
from bayesmem.ops.problem import Problem
from bayesmem.ops.triton.device import matmul_precision

DEVICES = ("cuda",)  # tests add the CPU, where Triton interprets
MAX_KEY_DIM = 128
# Tokens a chunk. At K = 64 the products of 32 stay in the registers of 4 warps (176 bytes spilled); those of 64 spill a
# kilobyte, take half more operations a token and no fewer iterations. Chunks of 16 have twice the precisions to read.
CHUNK = 32
BOUND = 1e-4  # of the right side, on every token's true residual; bfloat16 rounds by 2e-3
TOLERANCE = 1e-5  # likewise, on the residual that the iteration carries
REFINEMENTS = 3  # one is enough on rows of MQAR, where a condition number of 4e4 leaves 3e-3 at first and 4e-7 then


def kernel_chunk(p: Problem) -> int | None:
    """Tokens a chunk of the kernel, or ``None`` where float64 does the work.

    Products of float32 rounded to 19 bits, as ``torch.set_float32_matmul_precision`` allows, would ruin a precision.
    """
    key_dim = p.q.shape[-1]
    if not p.half or p.q.device.type not in DEVICES or available(p.q):
        return None
    if key_dim > MAX_KEY_DIM or p.v.shape[-1] > MAX_VALUE_DIM:
        return None
    return CHUNK if matmul_precision() == "highest" else None


def kernel_solve(
    start: Tensor,
    since: Tensor,
    refill: Tensor,
    k: Tensor,
    weight: Tensor,
    rhs: Tensor,
    limit: int,
    times: Callable[[Tensor], Tensor],
) -> Tensor | None:
    """``H_t^{-1} rhs_t``, ``[M, C, K]``; ``None`` if a token's is not to be believed.

    Float32 where that was enough for all, else float64: rounded, a refined solution would have lost what it gained.

    Args:
        start: as of ``triton.precision_solve.solve_chunks``, as the next four.
        since: discounts.
        refill: what forgetting brings back.
        k: keys.
        weight: of the keys.
        rhs: right sides, float32 or float64.
        limit: iterations at most, of each solve.
        times: ``H_t x_t`` in float64, for residuals that float32 cannot tell.
    """
    from bayesmem.ops.fused import solve_chunks

    def solve(right: Tensor) -> tuple[Tensor, Tensor]:
        return solve_chunks(start, since, refill, k, weight, right.float(), limit, TOLERANCE)[:2]

    solution, residual = solve(rhs)
    if bool((residual <= BOUND).all()):
        return solution
    if not bool(residual.isfinite().all()):
        return None
    right, refined = rhs.double(), solution.double()
    bound = BOUND * torch.linalg.vector_norm(right, dim=-1, keepdim=True)
    for more in reversed(range(REFINEMENTS + 1)):
        left = right - times(refined)
        unsolved = ~(torch.linalg.vector_norm(left, dim=-1, keepdim=True) <= bound)
        if not bool(unsolved.any()):
            return refined
        if more:
            refined = refined + solve(left.where(unsolved, 0.0))[0]
    return None


def kernel_write(q: Tensor, write_key: Tensor, v: Tensor, log_discount: Tensor, info: Tensor) -> Tensor:
    """Outputs of ``additive_write``, of the same arguments, by the mean pass in float32.

    Through keys of zeros nothing is measured: values go in whole, along a gain that is the write key.
    """
    from bayesmem.ops import fused

    def rows(x: Tensor) -> Tensor:
        return x.float().transpose(1, 2).flatten(0, 1).contiguous()

    query = rows(q)
    decay = rows(log_discount)[..., 0].clamp(min=LOG_ZERO)
    streams = (query, torch.zeros_like(query), rows(v), rows(write_key), decay)
    place = (None, q.shape[0], chunk_size(write_key, v))
    o, *_ = fused.mean_op(*streams, info.float().contiguous(), *place, False)
    return o.unflatten(0, (q.shape[0], -1)).transpose(1, 2).to(v.dtype)

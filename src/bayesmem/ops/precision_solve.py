"""Reads through a precision that log-linear mixing carries, without a K x K factorisation for every token.

Where only the mean is asked for, the outputs need ``H_t^{-1} q_t`` alone, and conjugate gradients find it for all
tokens at once from products with their precisions, which are matrix products over chunks of C tokens:

    H_t x = Gamma_t S x + (1 - Gamma_t) Lambda x + sum_{s<=t} (Gamma_t / Gamma_s) (k_s . x) k_s / r_s

S is the precision before the token's chunk, Gamma_t the discount since. The precision in the middle of the chunk
preconditions: it is at most C/2 measurements from every token's own, so tens of iterations do, however far
1 / r spreads (measured: ``SOLVE_CHUNK``). One factorisation a chunk is left.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.nn.functional import pad

from bayesmem.ops.chunking import cut, joined, map_chunks
from bayesmem.ops.decays import segment_ratios
from bayesmem.ops.precision_kernel import kernel_solve
from bayesmem.ops.precision_pass import precision_pass

# C. With K = 64, discounts of 0.9 to 0.9999 and r from 1e-3 to 10, chunks of 16 took 11 to 47 iterations, of 32 19 to
# 100, of 64 24 to 251; the diagonal as preconditioner 33 to 227. Shorter chunks cost K^2 / C numbers a token.
SOLVE_CHUNK = 16
STATE_CHUNK = 64  # chunks whose first precisions are summed at once
TOLERANCE = 1e-12  # of |q_t|, on every token's residual
CHECK_EVERY = 8  # iterations between looks at the residuals, for which a GPU's host waits
MOST_NUMBERS = 2**26  # in the chunks' first precisions, of which half a dozen copies live; more are solved in parts
ITERATIONS_PER_KEY_DIM = 4  # then the factorisations do the work


_Given = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # k to initial_precision, as below


@_disable_dynamo  # how often it iterates depends on the data; torch.compiler.disable would import the compiler now
def solve_precision(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B H T K"],
    log_discount: Float[Tensor, "B H T 1"],
    floor: Float[Tensor, "H K"],
    obs_noise: Float[Tensor, "B H T"],
    initial_precision: Float[Tensor, "B H K K"],
    max_iterations: int | None = None,
    kernel_chunk: int | None = None,
) -> Float[Tensor, "B H T K"]:
    """``H_t^{-1} q_t``: the ``posterior_q`` of ``precision_pass``, by conjugate gradients.

    Callers pass float64, and get float32 where the kernel has solved. A call of which any token has not converged is
    solved by ``precision_pass``, which takes longer and says nothing. Differentiable once: the backward pass solves
    with the same precisions. Every few iterations it waits for the device, which breaks the graph of
    ``torch.compile`` and forbids a CUDA graph.

    Args:
        q: queries.
        k: keys, any norm.
        log_discount: log gamma of each token.
        floor: diagonal of Lambda, the precision that forgetting tends to.
        obs_noise: observation noise variance.
        initial_precision: inverse covariance before the first token.
        max_iterations: after which the factorisations do the work; default 4 K.
        kernel_chunk: tokens a chunk of ``precision_kernel``, which is tried first; ``None``: it is not.
    """
    limit = ITERATIONS_PER_KEY_DIM * q.shape[-1] if max_iterations is None else max_iterations
    batch, heads, length, key_dim = q.shape
    if batch * heads > 1 and batch * heads * (length // SOLVE_CHUNK) * key_dim**2 > MOST_NUMBERS:
        axis = 0 if batch > 1 else 1
        streams = zip(
            *(x.tensor_split(2, axis) for x in (q, k, log_discount, obs_noise, initial_precision)), strict=True
        )
        floors = (floor, floor) if axis == 0 else floor.tensor_split(2, 0)
        halves = [(*x[:3], part, *x[3:]) for x, part in zip(streams, floors, strict=True)]
        parts = [solve_precision(*half, limit, kernel_chunk) for half in halves]  # type: ignore[call-arg]
        return torch.cat(parts, axis)
    solution: Tensor = _Solve.apply(limit, kernel_chunk, q, k, log_discount, floor, obs_noise, initial_precision)
    return solution


def last_information(
    k: Float[Tensor, "B H T K"],
    v: Float[Tensor, "B H T V"],
    log_discount: Float[Tensor, "B H T 1"],
    floor: Float[Tensor, "H K"],
    obs_noise: Float[Tensor, "B H T"],
    initial_precision: Float[Tensor, "B H K K"],
    initial_info: Float[Tensor, "B H K V"],
) -> tuple[Float[Tensor, "B H K K"], Float[Tensor, "B H K V"]]:
    """The precision, and the information vectors, after the last token: decayed sums."""
    later = pad(log_discount[:, :, 1:], (0, 0, 0, 1)).flip(2).cumsum(2).flip(2)  # log Gamma_T / Gamma_s
    total = log_discount.sum(2)
    written = (k * (later.exp() / obs_noise[..., None])).mT
    kept = total.exp()[..., None]
    refill = torch.diag_embed(-torch.expm1(total) * floor)
    return kept * initial_precision + written @ k + refill, kept * initial_info + written @ v


def inverse_of(factor: Float[Tensor, "*rows K K"]) -> Float[Tensor, "*rows K K"]:
    """``(L L^T)^{-1}`` by batched solves; ``cholesky_inverse`` may take a batch one matrix at a time on a GPU."""
    eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    root = torch.linalg.solve_triangular(factor, eye, upper=False)
    return root.mT @ root


@dataclass(frozen=True, slots=True)
class _Precisions:
    """Every token's precision, in the parts that its products need; M = B H N chunks of C tokens.

    Attributes:
        start: S, ``[M, K, K]``.
        since: Gamma_t, ``[M, C, 1]``.
        refill: diagonal of (1 - Gamma_t) Lambda, ``[M, C, K]``.
        k: keys, ``[M, C, K]``.
        weight: Gamma_t / Gamma_s / r_s, ``[M, C, C]``, 0 above its diagonal.
    """

    start: Tensor
    since: Tensor
    refill: Tensor
    k: Tensor
    weight: Tensor

    def times(self, x: Tensor) -> Tensor:
        """``H_t x_t`` of vectors ``[M, C, K]``."""
        carried = torch.addcmul(self.since * (x @ self.start), self.refill, x)
        return torch.baddbmm(carried, (x @ self.k.mT) * self.weight, self.k)

    def middle_inverse(self) -> Tensor:
        """The inverse of the precision in the middle of each chunk, ``[M, K, K]``."""
        t = (self.k.shape[1] - 1) // 2
        written = (self.weight[:, t, :, None] * self.k).mT @ self.k
        middle = self.since[:, t, :, None] * self.start + written + torch.diag_embed(self.refill[:, t])
        return inverse_of(torch.linalg.cholesky_ex(middle).L)


def _precisions(given: Sequence[Tensor], size: int = SOLVE_CHUNK, dtype: torch.dtype | None = None) -> _Precisions:
    k, log_discount, floor, obs_noise, initial = (x.to(dtype) for x in given)
    k, log_discount, written = (cut(x, size) for x in (k, log_discount, 1 / obs_noise[..., None]))
    total = log_discount.cumsum(-2)
    weight = segment_ratios(log_discount)[..., 0] * written.mT
    refill = -torch.expm1(total) * floor[:, None, None]
    gathered = (weight[..., -1, :, None] * k).mT @ k + torch.diag_embed(refill[..., -1, :])

    def step(state: Tensor, gathered: Tensor, log_decay: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        kept = log_decay.cumsum(-2).exp() * state.flatten(-2)[:, :, None]
        after = kept + segment_ratios(log_decay)[..., 0] @ gathered
        return after[:, :, -1].unflatten(-1, state.shape[-2:]), (after,)

    streams = (gathered.flatten(-2), total[..., -1, :])
    (after,), _ = map_chunks(step, initial, streams, (0, 0), STATE_CHUNK, remat=False)
    start = torch.cat([initial.flatten(-2)[:, :, None], after[:, :, :-1]], 2).unflatten(-1, initial.shape[-2:])
    return _Precisions(*(x.flatten(0, 2) for x in (start, total.exp(), refill, k, weight)))


def _solve(precisions: _Precisions, rhs: Tensor, limit: int, given: _Given) -> Tensor:
    """``H_t^{-1} rhs_t``, by iteration or, where that does not converge, by factorisation."""
    chunks = cut(rhs, SOLVE_CHUNK).flatten(0, 2).contiguous()
    solution = _conjugate_gradients(precisions.times, precisions.middle_inverse(), chunks, limit)
    return precision_pass(rhs, *given).posterior_q if solution is None else joined(solution, rhs)


def _kernel_solve(precisions: _Precisions, rhs: Tensor, limit: int, given: _Given) -> Tensor | None:
    """The same by the kernel, in float32 or, refined, in float64; ``None`` where it does not get there."""
    p, size = precisions, precisions.k.shape[1]

    @cache
    def exact() -> _Precisions:
        return _precisions(given, size)

    chunks = cut(rhs, size).flatten(0, 2)
    found = kernel_solve(p.start, p.since, p.refill, p.k, p.weight, chunks, limit, lambda x: exact().times(x))
    return None if found is None else joined(found, rhs)


def _conjugate_gradients(times: Callable[[Tensor], Tensor], inverse: Tensor, rhs: Tensor, limit: int) -> Tensor | None:
    """A system a token, all at once; ``None`` if after ``limit`` iterations one has not converged."""
    tiny = torch.finfo(rhs.dtype).tiny  # where a token is done (or its right side zero), steps are 0 / tiny
    solution, residual = torch.zeros_like(rhs), rhs.clone()
    bound = TOLERANCE * torch.linalg.vector_norm(rhs, dim=-1)
    direction = residual @ inverse
    power = (residual * direction).sum(-1, True)
    for iteration in range(1, limit + 1):
        image = times(direction)
        step = power / (direction * image).sum(-1, True).clamp_(min=tiny)
        solution.addcmul_(step, direction)
        residual.addcmul_(step, image, value=-1)
        if iteration % CHECK_EVERY == 0 or iteration == limit:
            norms = torch.linalg.vector_norm(residual, dim=-1)
            done, lost = torch.stack([(norms <= bound).all(), ~norms.isfinite().all()]).tolist()
            if done or lost:  # what is not finite will not become so
                return None if lost else solution
        whitened = residual @ inverse
        left = (residual * whitened).sum(-1, True)
        direction = torch.addcmul(whitened, left / power.clamp_(min=tiny), direction)
        power = left
    return None


class _Solve(torch.autograd.Function):
    """``x_t = H_t^{-1} q_t``. With ``y_t = H_t^{-1} dL/dx_t``: ``dL/dq_t = y_t`` and ``dL/dH_t = -y_t x_t^T``.

    Precisions are float32 where the kernel solves; from the first solve that it does not, all is float64 as without it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        limit: int,
        kernel_chunk: int | None,
        q: Tensor,
        k: Tensor,
        log_discount: Tensor,
        floor: Tensor,
        obs_noise: Tensor,
        start: Tensor,
    ) -> Tensor:
        given, solution = (k, log_discount, floor, obs_noise, start), None
        with torch.autocast(q.device.type, enabled=False):
            if kernel_chunk is not None:
                solution = _kernel_solve(_precisions(given, kernel_chunk, torch.float32), q, limit, given)
            if solution is None:
                solution, kernel_chunk = _solve(_precisions(given), q, limit, given), None
        ctx.limit, ctx.kernel_chunk = limit, kernel_chunk
        ctx.save_for_backward(solution, *given)
        return solution

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise ValueError(
                "create_graph=True through log-linear mixing: its reads on this device have first derivatives only; "
                "backend='recurrent' has all."
            )
        solution, given = ctx.saved_tensors[0], ctx.saved_tensors[1:]
        needed = ctx.needs_input_grad[3:]
        leaves = [x.detach().requires_grad_(need) for x, need in zip(given, needed, strict=True)]
        y = None
        with torch.autocast(grad.device.type, enabled=False):
            if ctx.kernel_chunk is not None:
                with torch.enable_grad():
                    precisions = _precisions(leaves, ctx.kernel_chunk, torch.float32)
                y = _kernel_solve(precisions, grad, ctx.limit, given)
            if y is None:
                with torch.enable_grad():
                    precisions = _precisions(leaves)
                y = _solve(precisions, grad.to(given[0].dtype), ctx.limit, given)
            if not any(needed):
                return None, None, y, *[None] * len(given)
            size, dtype = precisions.k.shape[1], precisions.k.dtype
            x, weight = (cut(z.to(dtype), size).flatten(0, 2) for z in (solution, -y))
            with torch.enable_grad():
                image = precisions.times(x)
            found = iter(torch.autograd.grad(image, [x for x in leaves if x.requires_grad], weight))
        return None, None, y, *[next(found) if need else None for need in needed]

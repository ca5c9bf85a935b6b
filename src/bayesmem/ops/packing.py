"""Packed sequences (``cu_seqlens``, B = 1) as batches of about equal length, and back."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from bayesmem.ops.problem import Problem, Solution
from bayesmem.ops.step import AffineNoise
from bayesmem.types import Belief


def solve_packed(problem: Problem, bounds: list[int], solve: Callable[[Problem], Solution]) -> Solution:
    """Solve every packed sequence as a batch row of its own, so that none sees its neighbours.

    Sequences whose lengths share a power of two are solved together, padded at the end by tokens
    that change nothing, so at most half of the work is padding.

    Args:
        problem: B = 1 over all T tokens, its initial belief with one row a sequence.
        bounds: N + 1 increasing offsets from 0 to T.
        solve: a back end.
    """
    lengths = [stop - start for start, stop in pairwise(bounds)]
    buckets: dict[int, list[int]] = defaultdict(list)
    for row, length in enumerate(lengths):
        buckets[length.bit_length()].append(row)
    parts: list[Solution] = []
    tokens: list[Tensor] = []
    device = problem.q.device
    for rows in buckets.values():
        longest = max(lengths[row] for row in rows)
        offset = torch.arange(longest, device=device)
        start = torch.tensor([bounds[row] for row in rows], device=device)[:, None]
        real = offset < torch.tensor([lengths[row] for row in rows], device=device)[:, None]
        index = (start + offset).where(real, 0)
        solution = solve(_gather(problem, index, real, torch.tensor(rows, device=device)))
        parts.append(_cut(solution, real))
        tokens.append(index[real])
    back = torch.cat(tokens).argsort()
    order = torch.tensor([row for rows in buckets.values() for row in rows], device=device).argsort()
    return _join(parts, back, order)


def _gather(problem: Problem, index: Tensor, real: Tensor, rows: Tensor) -> Problem:
    def take(x: Tensor, fill: float = 0.0) -> Tensor:
        picked = x[0][:, index].transpose(0, 1)
        return picked.where(real[:, None, :, *[None] * (picked.ndim - 3)], fill)

    noise = problem.noise
    if isinstance(noise, AffineNoise):
        noise = AffineNoise(take(noise.log_retention), take(noise.variance))
    else:
        noise = replace(noise, log_discount=take(noise.log_discount))
    initial = problem.initial
    belief = Belief(initial.mean[rows], None if initial.cov is None else initial.cov[rows])
    return replace(
        problem,
        q=take(problem.q),
        k=take(problem.k),
        v=take(problem.v),
        log_decay=take(problem.log_decay),
        obs_noise=take(problem.obs_noise, 1.0),
        noise=noise,
        initial=belief,
    )


def _cut(solution: Solution, real: Tensor) -> Solution:
    def pick(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.transpose(0, 1)[:, real][None]

    s = solution
    cut_o = s.o.transpose(0, 1)[:, real][None]
    return Solution(
        cut_o, s.final_belief, pick(s.predictive_var), pick(s.innovation), pick(s.innovation_var), pick(s.log_evidence)
    )


def _join(parts: list[Solution], back: Tensor, order: Tensor) -> Solution:
    def join(pieces: list[Tensor | None]) -> Tensor | None:
        given = [piece for piece in pieces if piece is not None]
        return torch.cat(given, 2)[:, :, back] if given else None

    beliefs = [part.final_belief for part in parts if part.final_belief is not None]
    covs = [belief.cov for belief in beliefs if belief.cov is not None]
    cov = torch.cat(covs)[order] if covs else None
    return Solution(
        o=torch.cat([part.o for part in parts], 2)[:, :, back],
        final_belief=Belief(torch.cat([belief.mean for belief in beliefs])[order], cov) if beliefs else None,
        predictive_var=join([part.predictive_var for part in parts]),
        innovation=join([part.innovation for part in parts]),
        innovation_var=join([part.innovation_var for part in parts]),
        log_evidence=join([part.log_evidence for part in parts]),
    )

"""The token loop over ``step``: the float64 oracle, and the decoder."""

import torch
from torch import Tensor

from bayesmem.ops import step
from bayesmem.ops.gains import constant_cov
from bayesmem.ops.problem import Problem, Solution
from bayesmem.ops.student_t import explain_outlier
from bayesmem.types import Belief


def filter_recurrent(problem: Problem) -> Solution:
    """Filter token by token, by the textbook equations of ``step`` and nothing else."""
    p, belief = problem, problem.initial
    constant = constant_cov(p)
    read: list[tuple[Tensor, ...]] = []
    surprise: list[tuple[Tensor, ...]] = []
    for t in range(p.q.shape[2]):
        predicted = step.predict(belief, p.log_decay[:, :, t], _noise_at(p.noise, t), p.covariance)
        if constant is not None:
            predicted = Belief(predicted.mean, constant[:, :, t])
        if p.measured:
            k, v, obs_noise = p.k[:, :, t], p.v[:, :, t], p.obs_noise[:, :, t]
            evidence: tuple[Tensor, ...] = ()
            if p.dof is not None:
                obs_noise, bound = explain_outlier(predicted, k, v, obs_noise, p.dof)
                evidence = (bound,)
            updated = step.update(predicted, k, v, obs_noise, p.covariance)
            surprise.append((updated.innovation, updated.innovation_var, *evidence))
            belief = updated.belief
        else:
            written = p.k[:, :, t, :, None] * p.v[:, :, t, None, :]
            belief = Belief(predicted.mean + written, predicted.cov)
        if p.covariance == "none":
            read.append(((belief.mean.mT @ p.q[:, :, t, :, None])[..., 0],))
        else:
            read.append(step.read_out(belief, p.q[:, :, t]))
        if constant is not None:
            belief = Belief(belief.mean, None)
    o, *var = (torch.stack(over_time, 2) for over_time in zip(*read, strict=True))
    seen = [torch.stack(over_time, 2) for over_time in zip(*surprise, strict=True)]
    names = ("innovation", "innovation_var", "log_evidence")
    return Solution(o, belief, var[0] if var else None, **dict(zip(names, seen, strict=False)))


def _noise_at(noise: step.AffineNoise | step.PrecisionNoise, t: int) -> step.AffineNoise | step.PrecisionNoise:
    if isinstance(noise, step.AffineNoise):
        return step.AffineNoise(noise.log_retention[:, :, t], noise.variance[:, :, t])
    return step.PrecisionNoise(noise.log_discount[:, :, t], noise.floor, noise.moves_mean)

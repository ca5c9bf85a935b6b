"""The token loop over ``step``: the float64 oracle, and the decoder."""

import torch
from torch import Tensor

from bayesmem.ops import step
from bayesmem.ops.gains import constant_cov
from bayesmem.ops.problem import Problem, Solution
from bayesmem.types import Belief


def filter_recurrent(problem: Problem) -> Solution:
    """Filter token by token, by the textbook equations of ``step`` and nothing else."""
    p, belief = problem, problem.initial
    constant = constant_cov(p)
    read: list[tuple[Tensor, Tensor]] = []
    surprise: list[tuple[Tensor, Tensor]] = []
    for t in range(p.q.shape[2]):
        predicted = step.predict(belief, p.log_decay[:, :, t], _noise_at(p.noise, t), p.covariance)
        if constant is not None:
            predicted = Belief(predicted.mean, constant[:, :, t])
        if p.measured:
            updated = step.update(predicted, p.k[:, :, t], p.v[:, :, t], p.obs_noise[:, :, t], p.covariance)
            surprise.append((updated.innovation, updated.innovation_var))
            belief = updated.belief
        else:
            written = p.k[:, :, t, :, None] * p.v[:, :, t, None, :]
            belief = Belief(predicted.mean + written, predicted.cov)
        read.append(step.read_out(belief, p.q[:, :, t]))
        if constant is not None:
            belief = Belief(belief.mean, None)
    o, var = (torch.stack(over_time, 2) for over_time in zip(*read, strict=True))
    innovation, innovation_var = (
        (torch.stack(over_time, 2) for over_time in zip(*surprise, strict=True)) if surprise else (None, None)
    )
    return Solution(o, belief, var, innovation, innovation_var)


def _noise_at(noise: step.AffineNoise | step.PrecisionNoise, t: int) -> step.AffineNoise | step.PrecisionNoise:
    if isinstance(noise, step.AffineNoise):
        return step.AffineNoise(noise.log_retention[:, :, t], noise.variance[:, :, t])
    return step.PrecisionNoise(noise.log_discount[:, :, t], noise.floor, noise.moves_mean)

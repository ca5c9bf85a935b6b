"""docs/math.md section 2.2: for which noises the filter is that of a memory, by the sign of the noise implied."""

import pytest
import torch

from bayesmem.ops import step
from bayesmem.types import Belief

KEY_DIM, TOKENS = 4, 40


def least_eigenvalue(decay, noise_at, moves_mean=False):
    """Smallest eigenvalue of ``Q_t = P- - A P A^T`` over random tokens, from a prior of variance 1."""
    generator = torch.Generator().manual_seed(0)
    cov, least = torch.eye(KEY_DIM, dtype=torch.float64)[None, None], []
    mean = torch.eye(KEY_DIM, dtype=torch.float64)[None, None]  # the identity shows the mean's transition
    for t in range(TOKENS):
        predicted = step.predict(Belief(mean, cov), decay[t].log(), noise_at(t))
        transition = predicted.mean if moves_mean else torch.diag_embed(decay[t].expand(1, 1, KEY_DIM))
        implied = predicted.cov - transition @ cov @ transition.mT
        least.append(torch.linalg.eigvalsh(implied).min().item())
        k = torch.randn(1, 1, KEY_DIM, generator=generator, dtype=torch.float64)
        obs_noise = 10 ** torch.empty(1, 1, dtype=torch.float64).uniform_(-3, 1, generator=generator)
        cov = step.update(predicted, k, torch.zeros(1, 1, KEY_DIM, dtype=torch.float64), obs_noise).belief.cov
        cov = 0.5 * (cov + cov.mT)
    return min(least)


def factors(seed, channels=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(TOKENS, 1, 1, channels, generator=generator, dtype=torch.float64)


def mixing(retention):
    return lambda t: step.AffineNoise(retention[t].log(), 1 - retention[t] ** 2)


def precision(discount, floor, moves_mean=False):
    diagonal = torch.full((1, KEY_DIM), floor, dtype=torch.float64)
    return lambda t: step.PrecisionNoise(discount[t].log(), diagonal, moves_mean)


@pytest.mark.parametrize(
    ("decay", "noise", "moves_mean"),
    [
        (factors(1), mixing(factors(2)), False),
        (torch.ones_like(factors(1)), mixing(factors(2)), False),
        (factors(1, KEY_DIM), mixing(factors(1, KEY_DIM)), False),
        (factors(1, KEY_DIM), mixing(0.5 * factors(1, KEY_DIM)), False),
        (factors(1, KEY_DIM), mixing(1e-30 * factors(1)), False),
        (factors(1), precision(factors(2), 1.0), False),
        (torch.ones_like(factors(1)), precision(factors(2), 1e-4), False),
        (factors(1), precision(factors(1), 1.0, True), True),
    ],
    ids=[
        "per head",
        "no decay",
        "OU channels",
        "proportional",
        "reset",
        "discount",
        "discount, no decay",
        "log-linear",
    ],
)
def test_exact(decay, noise, moves_mean):
    assert least_eigenvalue(decay, noise, moves_mean) > -1e-12


@pytest.mark.parametrize(
    ("decay", "noise"),
    [
        (factors(1, KEY_DIM), mixing(torch.ones(TOKENS, 1, 1, 1, dtype=torch.float64))),
        (torch.ones_like(factors(1)), precision(factors(2), 2.0)),
        (factors(1, KEY_DIM), precision(0.9 + 0.1 * factors(2), 1.0)),
    ],
    ids=["channels apart", "discount floor above 1", "discount, decay per channel"],
)
def test_not_exact(decay, noise):
    """The cases the document sets apart do occur."""
    assert least_eigenvalue(decay, noise) < -0.01


def test_the_example():
    """One write under (1, 1) / sqrt 2, then one channel forgotten by the mean and none by the covariance."""
    k = torch.ones(2, dtype=torch.float64) / 2**0.5
    cov = torch.eye(2, dtype=torch.float64) - torch.outer(k, k) / 1.01
    decay = torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert torch.linalg.eigvalsh(cov - decay @ cov @ decay)[0].item() == pytest.approx(-0.30, abs=0.005)

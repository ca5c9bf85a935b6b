"""The variance under forgetting: mean field, held to the dense filter within the error it states."""

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from bayesmem.ops import Assumptions, PriorMixing, bayesian_filter
from bayesmem.theory import steady_state

KEY_DIM = 64


def settled_var(run, random_keys, key_dim, retention, obs_noise):
    """Posterior variance at random queries, averaged over directions and the settled half of time."""
    length = math.ceil(6 / (1 - retention**2)) + 2 * key_dim
    k, q = (random_keys(16, length, key_dim, seed=seed) for seed in (0, 1))
    silent = torch.zeros(16, length, 1, 1, dtype=torch.float64)
    out = run("bayesian", q, k, silent, obs_noise=obs_noise, retention=retention, outputs=("predictive_var",))
    return out.predictive_var[:, length // 2 :].mean().item()


@pytest.mark.parametrize(
    ("live", "obs_noise", "bound"),
    [
        (0.08, 0.1, 0.002),
        (0.8, 0.1, 0.07),
        (1.6, 0.1, 0.115),
        (7.8, 0.1, 0.12),
        (0.08, 1.0, 0.002),
        (0.8, 1.0, 0.025),
        (1.6, 1.0, 0.025),
        (7.8, 1.0, 0.025),
    ],
)
def test_mean_field(run, random_keys, live, obs_noise, bound):
    """High by at most ``bound``, and never low, beyond .15% of sampling."""
    retention = math.sqrt(1 - 1 / (KEY_DIM * live))
    assert steady_state.live_load(retention, KEY_DIM) == pytest.approx(live)
    simulated = settled_var(run, random_keys, KEY_DIM, retention, obs_noise)
    excess = steady_state.posterior_var(retention, obs_noise, KEY_DIM) / simulated - 1
    assert -0.0015 < excess < bound + 0.0015


@pytest.mark.parametrize("retention", [0.0, 0.6, 0.95])
def test_one_channel_is_exact(run, retention):
    """K = 1: every key is the one direction, and the fixed point is the filter's own, to 1e-9."""
    ones = torch.ones(1, 600, 1, 1, dtype=torch.float64)
    settings = {"obs_noise": 0.2, "retention": retention, "prior_var": 1.7}
    out = run("bayesian", ones, ones, ones, outputs=("predictive_var",), **settings)
    ours = steady_state.posterior_var(retention, 0.2, 1, 1.7)
    assert_allclose(out.predictive_var[0, -1, 0], ours, rtol=1e-9)


def test_the_operator_agrees(random_keys):
    """``covariance="steady_state"`` holds every token at this prediction: rtol 1e-9."""
    retention, obs_noise, prior_var = 0.97, 0.3, 1.7
    k = random_keys(1, 5, KEY_DIM, seed=0)
    steps = torch.ones(1, 5, 1, dtype=torch.float64)
    assumptions = Assumptions("steady_state", PriorMixing(steps * math.log(retention)), prior_var)
    out = bayesian_filter(k, k, k, None, steps * obs_noise, assumptions, outputs=("predictive_var",))
    m = steady_state.predicted_var(retention, obs_noise, KEY_DIM, prior_var)
    assert_allclose(out.predictive_var, m * obs_noise / (m + obs_noise), rtol=1e-9)


def test_it_balances():
    """The root solves the balance it is said to solve, over wide ranges, and lies in [0, p0]."""
    rho, r, dim, p0 = np.meshgrid([0, 0.3, 0.99, 1 - 1e-9], [1e-4, 0.1, 1, 1e3], [1, 2, 64, 1024], [0.1, 1, 5])
    m = steady_state.predicted_var(rho, r, dim, p0)
    p = steady_state.posterior_var(rho, r, dim, p0)
    assert_allclose(m, rho**2 * p + (1 - rho**2) * p0, rtol=1e-9)
    assert (m > 0).all() and (m <= p0 * (1 + 1e-12)).all()


def test_ends():
    assert steady_state.predicted_var(1, 0.1, 64) == 0
    assert steady_state.predicted_var(1, 1.0, 64) == 0
    assert_allclose(steady_state.predicted_var(0, 0.1, 64, 1.7), 1.7)
    assert_allclose(steady_state.predicted_var(0.9, 1e12, 64), 1)
    assert steady_state.live_load(1, 64) == np.inf
    with pytest.raises(ValueError, match=r"retention is -0\.1"):
        steady_state.predicted_var(-0.1, 0.1, 64)

"""How far a memory looks back: exact forms at rtol 1e-9 against the filter, interference by sampling keys."""

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from bayesmem.ops import Assumptions, Discount, LogLinearMixing, bayesian_filter
from bayesmem.theory import horizon, repeats

OBS_NOISE, PRIOR_VAR, WRITES = 0.3, 1.4, 20


@pytest.fixture
def left_alone():
    """One key three times, then twenty tokens along other axes; the queries stay at the first."""
    k = torch.zeros(1, 3 + WRITES, 1, 4, dtype=torch.float64)
    k[:, :3, :, 0] = 1
    k[0, 3:, 0, 1:] = torch.eye(3, dtype=torch.float64).repeat(7, 1)[:WRITES]
    q = torch.zeros_like(k)
    q[..., 0] = 1
    return q, k


@pytest.fixture
def under_discount():
    """The filter under a discount, or log-linear mixing for a floor of ``None``; weights and variances."""

    def run(q, k, discount, floor):
        length = k.shape[1]
        gate = torch.full((1, length, 1), discount, dtype=torch.float64).log()
        noise = LogLinearMixing() if floor is None else Discount(gate, floor)
        return bayesian_filter(
            q,
            k,
            torch.eye(length, dtype=torch.float64)[None, :, None],
            gate if floor is None else None,
            torch.full((1, length, 1), OBS_NOISE, dtype=torch.float64),
            Assumptions(process_noise=noise, prior_var=PRIOR_VAR, obs_noise_floor=0.0),
            outputs=("predictive_var",),
        )

    return run


@pytest.mark.parametrize("retention", [0.0, 0.6, 0.97, 1.0])
def test_untouched(run, left_alone, retention):
    """Variance and weights of what is not written again: relaxed to the prior, and decayed by a^n."""
    q, k = left_alone
    impulses = torch.eye(k.shape[1], dtype=torch.float64)[None, :, None]
    settings = {"obs_noise": OBS_NOISE, "prior_var": PRIOR_VAR, "retention": retention, "decay": 0.9}
    out = run("bayesian", q, k, impulses, outputs=("predictive_var",), **settings)
    var, n = out.predictive_var[0, 2:, 0].numpy(), np.arange(WRITES + 1)
    assert_allclose(var, horizon.relaxed_var(n, var[0], retention, PRIOR_VAR), 1e-9)
    weights = out.o[0, 2:, 0, :3].numpy()
    assert_allclose(weights, weights[:1] * 0.9 ** n[:, None], 1e-9)


@pytest.mark.parametrize("var", [1e-3, 0.3, PRIOR_VAR * (1 - 1e-4)])
def test_tokens_until_lost(var):
    """After that many tokens the precision above the prior's is what was to be left; and its limits."""
    share = np.array([0.1, 0.5, 0.99])
    n = horizon.tokens_until_lost(share, var, 0.97, PRIOR_VAR)
    left = 1 / horizon.relaxed_var(n, var, 0.97, PRIOR_VAR) - 1 / PRIOR_VAR
    assert_allclose(left, (1 - share) * (1 / var - 1 / PRIOR_VAR), 1e-9)
    assert_allclose(
        horizon.tokens_until_lost(0.5, PRIOR_VAR, 0.97, PRIOR_VAR), horizon.half_life(0.97**2), 1e-12
    )  # of the explained variance
    assert horizon.tokens_until_lost(0.5, var, 0, PRIOR_VAR) == 0
    assert horizon.tokens_until_lost(0.5, var, 1, PRIOR_VAR) == np.inf
    # What is well known is soon half lost: p / (p0 (1 - rho^2)), here to the 1% of a token's grain.
    assert_allclose(horizon.tokens_until_lost(0.5, 1e-3, 0.9999), 1e-3 / (1 - 0.9999**2), 1e-2)


@pytest.mark.parametrize("discount", [0.6, 0.95, 1.0])
@pytest.mark.parametrize("floor", [0.0, 1e-4, 0.3, None])
def test_discount(under_discount, random_keys, left_alone, discount, floor):
    """Gains of one key and the variance of what is left alone; a floor of ``None`` is log-linear mixing, f = 1."""
    f = 1.0 if floor is None else floor
    one_key = random_keys(1, 1, 8, seed=0).expand(1, WRITES, 1, 8)
    gains = under_discount(one_key, one_key, discount, floor).o[0, :, 0].diagonal().numpy()
    n = np.arange(1, WRITES + 1)
    assert_allclose(gains, horizon.discounted_gain(n, discount, OBS_NOISE, PRIOR_VAR, f), 1e-9)
    var = under_discount(*left_alone, discount, floor).predictive_var[0, 2:, 0].numpy()
    assert_allclose(var, horizon.discounted_var(np.arange(WRITES + 1), var[0], discount, PRIOR_VAR, f), 1e-9)


def test_plateaus():
    """Both are where the finite forms end; observations are counted alike."""
    late = horizon.discounted_gain(10_000, 0.97, OBS_NOISE, PRIOR_VAR, 0.2)
    assert_allclose(horizon.discounted_plateau(0.97, OBS_NOISE, PRIOR_VAR, 0.2), late, 1e-9)
    assert_allclose(1 / horizon.discounted_plateau(0.97, OBS_NOISE, PRIOR_VAR, 0.0), 1 / (1 - 0.97), 1e-12)
    assert horizon.discounted_plateau(1, OBS_NOISE) == 0
    assert_allclose(horizon.discounted_gain(7, 1, OBS_NOISE), repeats.bayesian_gain(7, OBS_NOISE), 1e-12)
    retention = np.array([0.0, 0.5, 0.97, 0.9999])
    writes = horizon.effective_writes(retention, OBS_NOISE, PRIOR_VAR)
    # The static memory with that many writes has the plateau's gain; and its own plateau is the filter's.
    assert_allclose(1 / (writes + OBS_NOISE / PRIOR_VAR), repeats.gain_plateau(retention, OBS_NOISE, PRIOR_VAR), 1e-9)
    assert writes[0] == 1 and horizon.effective_writes(1, OBS_NOISE) == np.inf
    assert_allclose(horizon.effective_writes(math.sqrt(1 - 1e-8), 0.3), math.sqrt(0.3 / 1e-8), 1e-3)


def test_half_life():
    assert_allclose(horizon.half_life(np.array([0.5, 0.25, 0.0, 1.0])), [1, 0.5, 0, np.inf], 1e-12)
    assert_allclose(0.97 ** horizon.half_life(0.97), 0.5, 1e-12)


def left_by_age(run, keys, design, **settings):
    """Weight of every write in the recall of its own key at the end, over the settled first weight, by age."""
    rows, length = keys.shape[:2]
    impulses = torch.eye(length, dtype=torch.float64)[None, :, None].expand(rows, -1, -1, -1)
    out = run(design, keys, keys, impulses, outputs=("final_belief",), **settings)
    last = (keys[:, :, 0] @ out.final_belief.mean[:, 0]).diagonal(dim1=1, dim2=2)
    first = out.o[:, length // 2 :, 0].diagonal(offset=length // 2, dim1=1, dim2=2).mean()
    return (last / first).flip(1)


@pytest.mark.parametrize("decay", [1.0, 0.97])
def test_delta_rule_interference(run, random_keys, decay):
    """Exact in expectation over keys: within 5 standard errors at every age."""
    left = left_by_age(run, random_keys(2000, 30, 8, seed=1), "delta_rule", beta=0.7, decay=decay)
    standard_error = left.std(0) / len(left) ** 0.5
    ours = horizon.delta_rule_factor(8, 0.7, decay) ** np.arange(30)
    assert (abs(left.mean(0).numpy() - ours) < 5 * standard_error.numpy() + 1e-12).all()


@pytest.mark.parametrize(
    ("key_dim", "live", "obs_noise", "low", "short"),
    [
        (16, 0.8, 0.01, 0.17, 0.27),
        (16, 1.6, 0.1, 0.13, 0.22),
        (16, 7.8, 0.1, 0.13, 0.22),
        (64, 0.08, 0.1, 0.05, 0.05),
        (64, 1.6, 0.1, 0.13, 0.22),
        (64, 1.6, 1.0, 0.05, 0.09),
    ],
)
def test_bayesian_interference(run, random_keys, key_dim, live, obs_noise, low, short):
    """Mean field: too low early and too high late, within what the docstring states and .015 of sampling."""
    retention = math.sqrt(1 - 1 / (key_dim * live))
    factor = float(horizon.bayesian_factor(retention, obs_noise, key_dim))
    half = float(horizon.half_life(factor))
    ages = int(3 * half)
    length = ages + math.ceil(3 / (1 - retention**2))
    keys = random_keys(16_000 // length, length, key_dim, seed=2)
    left = left_by_age(run, keys, "bayesian", obs_noise=obs_noise, retention=retention)[:, :ages].mean(0).numpy()
    smooth = np.convolve(left, np.ones(9) / 9, "valid")
    gap = smooth - np.convolve(factor ** np.arange(ages), np.ones(9) / 9, "valid")
    late = {1.0: 0.02, 0.1: 0.04, 0.01: 0.06}[obs_noise]
    assert gap.max() < low + 0.015 and gap.min() > -late - 0.015
    simulated = np.argmax(left < 0.5) if key_dim < 64 else np.argmax(smooth < 0.5) + 4
    assert -0.05 < 1 - half / simulated < short + 1 / simulated


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: horizon.relaxed_var(-1, 1, 0.5), "tokens is -1"),
        (lambda: horizon.relaxed_var(1, 0.0, 0.5), "var is 0.0"),
        (lambda: horizon.tokens_until_lost(1.0, 1, 0.5), "share is 1.0"),
        (lambda: horizon.tokens_until_lost(0.5, 2.0, 0.5), "above prior_var"),
        (lambda: horizon.half_life(1.1), "factor is 1.1"),
        (lambda: horizon.discounted_gain(1, 1.2, 1), "discount is 1.2"),
        (lambda: horizon.discounted_var(1, 1, 0.5, 1, 2.0), "floor is 2.0"),
        (lambda: horizon.delta_rule_factor(0, 0.5), "key_dim is 0"),
        (lambda: horizon.bayesian_factor(0.5, 0.0, 4), "obs_noise is 0.0"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ValueError, match=words):
        call()

"""Capacity: at the predicted number of associations the error is the target, by the formulas and by the filter."""

import itertools

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from bayesmem.theory import capacity, load
from bayesmem.theory.cubic import largest_root

HUGE = 10**12  # channels enough for a whole number of associations at any load


@pytest.mark.parametrize("obs_noise", [1e-3, 0.1, 1.0, 5.0])
@pytest.mark.parametrize(("noise_var", "value_var"), [(0.0, 1.0), (0.05, 2.0), (0.7, 1.0), (3.0, 1.0)])
def test_bayesian(obs_noise, noise_var, value_var):
    """The error at the capacity is the target, above it more; where it is 0, no load meets the target."""
    target = value_var * np.array([0.01, 0.1, 0.3, 0.6, 0.9, 0.99])
    moments = (obs_noise, 1.3, noise_var, value_var)
    held = capacity.bayesian_capacity(target, HUGE, *moments)
    met = held > 0
    count = np.round(np.where(met, held, HUGE))
    errors = load.bayesian_error(count, HUGE, *moments)
    assert_allclose(errors[met], target[met], 1e-9)
    assert (load.bayesian_error(np.round(count * 1.001), HUGE, *moments) > target)[met].all()
    light = np.geomspace(1e-6, 1e3, 2000)
    errors = load.bayesian_error(np.round(light * HUGE), HUGE, *moments)
    for goal, number in zip(target, held, strict=True):
        above = light > (number / HUGE) * (1 + 1e-9)
        assert (errors[above] > goal * (1 - 1e-9)).all()
    assert capacity.bayesian_capacity(value_var, 64, *moments) == np.inf


def stored_errors(run, keys, design, **settings):
    """Expected squared error of every association after the last write, for values of variance 1, ``[B, N]``."""
    rows, count = keys.shape[:2]
    impulses = torch.eye(count, dtype=torch.float64)[None, :, None].expand(rows, -1, -1, -1)
    memory = run(design, keys, keys, impulses, outputs=("final_belief",), **settings).final_belief.mean[:, 0]
    return ((keys[:, :, 0] @ memory - torch.eye(count)) ** 2).sum(-1)


@pytest.mark.parametrize(
    ("obs_noise", "target", "bound"), [(0.1, 0.05, 0.025), (0.1, 0.2, 0.025), (0.01, 0.05, 0.12), (1.0, 0.5, 0.025)]
)
def test_bayesian_in_the_filter(run, random_keys, obs_noise, target, bound):
    """At K = 64 the error at the capacity is the target within 2.5%, 12% at r = .01, and 4 standard errors."""
    count = round(float(capacity.bayesian_capacity(target, 64, obs_noise)))
    errors = stored_errors(run, random_keys(100, count, 64, seed=0), "bayesian", obs_noise=obs_noise).mean(-1)
    step = abs(load.bayesian_error(count, 64, obs_noise) - target)  # of rounding N
    assert abs(errors.mean() - target) < bound * target + step + 4 * errors.std() / 10


def test_linear_attention():
    for noise_var, value_var in ((0.0, 1.0), (0.2, 2.0)):
        count = np.array([1, 2, 30, 500])
        target = load.linear_attention_error(count, 64, noise_var, value_var)
        assert_allclose(capacity.linear_attention_capacity(target, 64, noise_var, value_var), count, 1e-9)
    assert capacity.linear_attention_capacity(0.1, 64, 0.2) == 0
    assert capacity.linear_attention_capacity(0.1, 64, 0.0, 0.0) == np.inf


SETTINGS = [(64, 0.3, 0.0, 1.0, 1.0), (8, 0.9, 0.3, 2.0, 1.0), (2, 1.0, 0.0, 1.0, 0.9), (16, 0.7, 0.0, 1.0, 0.98)]


@pytest.mark.parametrize("settings", SETTINGS)
def test_delta_rule(settings):
    """The capacity at the error of N is N, for the oldest and for the average, while N is felt at all."""
    key_dim = settings[0]
    count = np.array([2, 3, key_dim // 2 + 2, 2 * key_dim])
    oldest = load.delta_rule_error(count - 1, count, *settings)
    mean = np.array([load.delta_rule_error(np.arange(n), n, *settings).mean() for n in count])
    assert_allclose(capacity.delta_rule_mean_error(count, *settings), mean, 1e-9)
    assert_allclose(capacity.delta_rule_capacity(oldest, *settings), count, 1e-8)
    assert_allclose(capacity.delta_rule_mean_capacity(mean, *settings), count, 1e-8)


@pytest.mark.parametrize("settings", [(3, 0.5, 0.1, 1.0, 0.0), (4, 1.7, 0.5, 1.0, 0.9), (1, 1.0, 0.2, 1.0, 1.0)])
def test_delta_rule_mean_error(settings):
    """At the ends of the arguments, where the geometric sums degenerate."""
    count = np.arange(1, 40)
    mean = [load.delta_rule_error(np.arange(n), n, *settings).mean() for n in count]
    assert_allclose(capacity.delta_rule_mean_error(count, *settings), mean, 1e-9)


def test_delta_rule_ends():
    """Nothing where one write errs too much, everything where the target is above the limit of the error."""
    assert capacity.delta_rule_capacity(0.1, 64, 0.5) == 0  # one write leaves (1 - beta)^2 = .25
    assert capacity.delta_rule_mean_capacity(0.1, 64, 0.5) == 0
    limit = 1 + 0.5 / 1.5
    held = capacity.delta_rule_capacity(np.array([limit * 0.999, limit * 1.001]), 64, 0.5)
    assert np.isfinite(held[0]) and held[1] == np.inf
    # Noise may fall before it rises: the last crossing is meant.
    held = capacity.delta_rule_capacity(2.9, 64, 1.0, noise_var=3.0)
    assert 1 < held < np.inf and load.delta_rule_error(0, 1, 64, 1.0, 3.0) > 2.9


def test_the_oldest_is_the_worst():
    """And the average grows: for beta <= 1 without noise, or without decay and with no more noise than value."""
    grid = itertools.product((2, 3, 16, 256), (0.02, 0.3, 0.7, 1.0))
    for key_dim, beta in grid:
        for noise_var, decay in ((0, 1.0), (0.5, 1.0), (1.0, 1.0), (0, 0.98), (0, 0.5), (0, 0.0)):
            rest = (key_dim, beta, noise_var, 1.0, decay)
            for count in (2, 9, 40, 400):
                errors = load.delta_rule_error(np.arange(count), count, *rest)
                assert errors.max() <= errors[-1] + 1e-12
            assert (np.diff(capacity.delta_rule_mean_error(np.arange(1, 600), *rest)) > -1e-12).all()
    # Outside, it need not be: a decay with noise.
    errors = load.delta_rule_error(np.arange(9), 9, 256, 1.0, 0.5, 1.0, 0.95)
    assert errors.max() > errors[-1] + 0.1


def test_delta_rule_in_the_filter(run, random_keys):
    """Exact: within 5 standard errors of the target, for the oldest and the average."""
    for target, which, held in (
        (0.3, slice(0, 1), capacity.delta_rule_capacity),
        (0.15, slice(None), capacity.delta_rule_mean_capacity),
    ):
        count = int(held(target, 16, 0.9))
        one = held(target, 16, 0.9)
        assert 2 < one < 16
        errors = stored_errors(run, random_keys(2000, count, 16, seed=1), "delta_rule", beta=0.9)[:, which].mean(-1)
        more = stored_errors(run, random_keys(2000, count + 1, 16, seed=1), "delta_rule", beta=0.9)[:, which].mean(-1)
        slack = 5 * errors.std() / 2000**0.5
        assert errors.mean() < target + slack and more.mean() > target - slack


def test_largest_root():
    """Against numpy's companion matrices: rtol 1e-9 over random and near-degenerate cubics."""
    generator = np.random.default_rng(0)
    coefficients = generator.normal(size=(500, 4)) * 10.0 ** generator.uniform(-4, 4, size=(500, 4))
    coefficients[:, 0] = np.abs(coefficients[:, 0])
    ours = largest_root(*coefficients.T)
    for row, x in zip(coefficients, ours, strict=True):
        roots = np.roots(row)
        real = roots.real[np.abs(roots.imag) < 1e-9 * np.abs(roots)].max()
        size = np.abs(row * np.abs(real) ** np.arange(3, -1, -1)).sum()  # rounding of the cubic there, over its slope
        assert abs(x - real) <= 1e-9 * abs(real) + 1e-13 * size / abs(np.polyval(np.polyder(row), real))
    assert_allclose(largest_root(*np.array([1.0, -6.0, 12.0, -8.0])), 2, 1e-5)  # a triple root
    assert largest_root(*np.array([1.0, 0.0, 0.0, 0.0])) == 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: capacity.bayesian_capacity(-0.1, 64, 0.1), "target_error is -0.1"),
        (lambda: capacity.linear_attention_capacity(0.1, 0), "key_dim is 0"),
        (lambda: capacity.delta_rule_capacity(0.1, 1, 1.5), "beta is 1.5 with key_dim 1"),
        (lambda: capacity.delta_rule_mean_error(0, 4, 0.5), "associations is 0"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ValueError, match=words):
        call()

"""Load: expectations over random keys are sampled, those over values and noise are exact (impulses)."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from bayesmem.theory import load, repeats

NOISE_VAR, VALUE_VAR = 0.5, 2.0


def final_errors(run, keys, design, **settings):
    """Expected squared error of every association after the last write, ``[B, N]``, given the keys."""
    rows, count = keys.shape[:2]
    impulses = torch.eye(count, dtype=torch.float64)[None, :, None].expand(rows, -1, -1, -1)
    memory = run(design, keys, keys, impulses, outputs=("final_belief",), **settings).final_belief.mean[:, 0]
    weights = keys[:, :, 0] @ memory
    stored = ((weights - torch.eye(count)) ** 2).sum(-1)
    return VALUE_VAR * stored + NOISE_VAR * (weights**2).sum(-1), stored


def averaged(errors):
    """Mean over rows, whose keys are independent, and its standard error."""
    return errors.mean(0).numpy(), (errors.std(0) / len(errors) ** 0.5).numpy()


@pytest.mark.parametrize("ridge", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("fill", [1 / 64, 0.125, 0.25, 0.5, 0.875, 1.0, 2.0])
def test_bayesian(run, random_keys, fill, ridge):
    """Large-K limit at K = 64: within 2.5%, save at few keys, and just below capacity with little noise; and 4
    standard errors."""
    key_dim, prior_var = 64, 1.5
    count = int(fill * key_dim)
    settings = {"obs_noise": ridge * prior_var, "prior_var": prior_var}
    keys = random_keys(16_384 // count, count, key_dim, seed=0)
    noisy, stored = final_errors(run, keys, "bayesian", **settings)
    bound = {(1.0, 0.01): 0.06, (0.875, 0.01): 0.11}.get((fill, ridge), 0.025)
    if fill < 0.25 and ridge < 1:
        bound = 0.04 if ridge == 0.1 else 0.05
    for errors, moments in ((noisy, (NOISE_VAR, VALUE_VAR)), (stored, (0.0, 1.0))):
        mean, standard_error = averaged(errors.mean(-1))
        ours = load.bayesian_error(count, key_dim, *settings.values(), *moments)
        assert abs(mean - ours) < bound * ours + 4 * standard_error


def test_bayesian_forgets_no_age(run, random_keys):
    """The first and the last half of the associations err alike, within 5 standard errors."""
    errors, _ = final_errors(run, random_keys(200, 32, 32, seed=1), "bayesian", obs_noise=0.1)
    mean, standard_error = averaged(errors[:, :16].mean(-1) - errors[:, 16:].mean(-1))
    assert abs(mean) < 5 * standard_error


def test_bayesian_without_noise_has_a_capacity():
    """As r / p0 tends to 0: nothing is missed up to y = 1, and 1 - 1 / y beyond."""
    assert_allclose(load.bayesian_error(np.array([16, 48]), 64, 1e-9), 0, atol=1e-12)
    assert_allclose(load.bayesian_error(np.array([128, 640]), 64, 1e-9), [0.5, 0.9], rtol=1e-6)
    # One key alone in many channels is a repeat written once.
    assert_allclose(load.bayesian_error(1, 10**9, 0.3, noise_var=0.2), repeats.bayesian_error(1, 1, 0.2, 0.3), 1e-6)


@pytest.mark.parametrize(
    ("key_dim", "count", "beta", "decay", "rows"),
    [
        (2, 3, 0.9, 1.0, 100_000),
        (3, 12, 0.9, 1.0, 20_000),
        (8, 24, 0.4, 1.0, 4000),
        (64, 96, 0.8, 1.0, 150),
        (8, 24, 0.7, 0.9, 4000),
    ],
)
def test_delta_rule(run, random_keys, key_dim, count, beta, decay, rows):
    """Exact in expectation at every K, N and age: within 5 standard errors."""
    keys = random_keys(rows, count, key_dim, seed=2)
    errors, _ = final_errors(run, keys, "delta_rule", beta=beta, decay=decay)
    mean, standard_error = averaged(errors)
    age = count - 1 - np.arange(count)
    ours = load.delta_rule_error(age, count, key_dim, beta, NOISE_VAR, VALUE_VAR, decay)
    assert (abs(mean - ours) < 5 * standard_error + 1e-12).all()
    assert (np.diff(ours) < 0).all()  # the older, the worse


def test_delta_rule_in_one_dimension():
    """With K = 1 all keys are one up to sign, and what follows is exact without sampling."""
    beta, count = 0.3, 6
    # Other values under the same key are noise of the values' own variance; the last write is the repeat.
    ours = load.delta_rule_error(0, count, 1, beta)
    others = beta**2 * sum((1 - beta) ** (2 * j) for j in range(1, count))
    assert_allclose(ours, (1 - beta) ** 2 + others, 1e-12)


def test_linear_attention(run, random_keys):
    """Crosstalk (N - 1) / K, exact in expectation: within 5 standard errors at every age."""
    errors, _ = final_errors(run, random_keys(4000, 24, 8, seed=3), "linear_attention")
    mean, standard_error = averaged(errors)
    assert (abs(mean - load.linear_attention_error(24, 8, NOISE_VAR, VALUE_VAR)) < 5 * standard_error).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: load.delta_rule_error(5, 5, 8, 0.5), "age is 5 among 5 associations"),
        (lambda: load.bayesian_error(0, 8, 0.5), "associations is 0"),
        (lambda: load.linear_attention_error(4, 0), "key_dim is 0"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ValueError, match=words):
        call()

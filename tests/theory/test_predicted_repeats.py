"""Repeated writes of one key: every prediction is exact, and held to the filter at rtol 1e-9."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from bayesmem.theory import repeats

WRITES = 24
VALUE, NOISE_VAR = 1.7, 0.4


@pytest.fixture
def one_key(random_keys):
    return random_keys(1, 1, 8, seed=0).expand(1, WRITES, 1, 8)


def expected_errors(weights):
    """Squared error after every write, exactly, from the weights of all writes."""
    bias = (weights.sum(-1) - 1) * VALUE
    return (bias**2 + NOISE_VAR * (weights**2).sum(-1))[0].numpy()


@pytest.mark.parametrize(("obs_noise", "prior_var"), [(0.4, 1.0), (0.01, 2.5), (7.0, 0.3)])
def test_bayesian(one_key, recall_weights, obs_noise, prior_var):
    weights = recall_weights("bayesian", one_key, one_key, obs_noise=obs_noise, prior_var=prior_var)
    n = np.arange(1, WRITES + 1)
    assert_allclose(expected_errors(weights), repeats.bayesian_error(n, VALUE, NOISE_VAR, obs_noise, prior_var), 1e-9)
    # The newest write's weight in its own recall is its gain.
    newest = weights[0].diagonal().numpy()
    assert_allclose(newest, repeats.bayesian_gain(n, obs_noise, prior_var), 1e-9)
    assert_allclose(newest, repeats.retained_gains(WRITES, 1, obs_noise, prior_var), 1e-9)


def test_bayesian_is_calibrated(one_key, run):
    """With the right noise, and the value's square replaced by its prior expectation, error = variance."""
    n, obs_noise, prior_var = np.arange(1, WRITES + 1), 0.4, 2.0
    silent = torch.zeros(1, WRITES, 1, 1, dtype=torch.float64)
    reported = run(
        "bayesian", one_key, one_key, silent, obs_noise=obs_noise, prior_var=prior_var, outputs=("predictive_var",)
    ).predictive_var[0, :, 0]
    assert_allclose(reported, repeats.bayesian_error(n, prior_var**0.5, obs_noise, obs_noise, prior_var), 1e-9)
    assert_allclose(reported, prior_var * obs_noise / (obs_noise + n * prior_var), 1e-9)


@pytest.mark.parametrize("beta", [0.05, 0.3, 0.9])
def test_delta_rule(one_key, recall_weights, beta):
    weights = recall_weights("delta_rule", one_key, one_key, beta=beta, prior_var=1.3)
    n = np.arange(1, WRITES + 1)
    assert_allclose(expected_errors(weights), repeats.delta_rule_error(n, VALUE, NOISE_VAR, beta), 1e-9)
    assert_allclose(
        repeats.delta_rule_error(10_000, VALUE, NOISE_VAR, beta), repeats.error_plateau(beta, VALUE, NOISE_VAR), 1e-9
    )
    assert_allclose(repeats.error_plateau(beta, VALUE, NOISE_VAR), NOISE_VAR * beta / (2 - beta), 1e-12)


def test_linear_attention(one_key, recall_weights):
    weights = recall_weights("linear_attention", one_key, one_key)
    predicted = repeats.linear_attention_error(np.arange(1, WRITES + 1), VALUE, NOISE_VAR)
    assert_allclose(expected_errors(weights), predicted, 1e-9)
    assert (np.diff(predicted) > 0).all()


@pytest.mark.parametrize("retention", [0.0, 0.5, 0.97])
@pytest.mark.parametrize("decay", [1.0, 0.8])
def test_retention(one_key, recall_weights, retention, decay):
    settings = {"obs_noise": 0.3, "prior_var": 1.5}
    weights = recall_weights("bayesian", one_key, one_key, retention=retention, decay=decay, **settings)
    gains = repeats.retained_gains(WRITES, retention, **settings)
    assert_allclose(weights[0].diagonal(), gains, 1e-9)
    assert_allclose(expected_errors(weights), repeats.error_of_gains(gains, VALUE, NOISE_VAR, decay), 1e-9)
    # Both plateaus are where the recursions end.
    late = repeats.retained_gains(3000, retention, **settings)
    plateau = repeats.gain_plateau(retention, **settings)
    assert_allclose(late[-1], plateau, 1e-9)
    last = repeats.error_of_gains(late, VALUE, NOISE_VAR, decay)[-1]
    assert_allclose(last, repeats.error_plateau(plateau, VALUE, NOISE_VAR, decay), 1e-9)


def test_retention_zero_is_the_delta_rule():
    gains = repeats.retained_gains(WRITES, 0, 0.3, 1.5)
    assert_allclose(
        repeats.error_of_gains(gains, VALUE, NOISE_VAR),
        repeats.delta_rule_error(np.arange(1, WRITES + 1), VALUE, NOISE_VAR, 1.5 / 1.8),
        1e-9,
    )


def test_nothing_written_is_the_whole_value():
    for error in (
        repeats.bayesian_error(0, VALUE, NOISE_VAR, 0.4),
        repeats.delta_rule_error(0, VALUE, NOISE_VAR, 0.4),
        repeats.linear_attention_error(0, VALUE, NOISE_VAR),
    ):
        assert_allclose(error, VALUE**2, 1e-12)


def test_errors_in_a_simulation(run, one_key):
    """The definition itself: sampled noise, 20,000 channels; within 5 standard errors at every write."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(1, WRITES, 1, 20_000, generator=generator, dtype=torch.float64)
    v, n = VALUE + NOISE_VAR**0.5 * noise, np.arange(1, WRITES + 1)
    for design, settings, predicted in (
        ("bayesian", {"obs_noise": 0.7}, repeats.bayesian_error(n, VALUE, NOISE_VAR, 0.7)),
        ("delta_rule", {"beta": 0.4}, repeats.delta_rule_error(n, VALUE, NOISE_VAR, 0.4)),
        ("linear_attention", {}, repeats.linear_attention_error(n, VALUE, NOISE_VAR)),
    ):
        errors = (run(design, one_key, one_key, v, **settings).o[0, :, 0] - VALUE) ** 2
        standard_error = errors.std(-1) / errors.shape[-1] ** 0.5
        assert (abs(errors.mean(-1) - torch.from_numpy(predicted)) < 5 * standard_error).all(), design


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: repeats.bayesian_gain(0, 0.1), "nth is 0"),
        (lambda: repeats.bayesian_gain(1, 0.0), "obs_noise is 0.0; expected numbers in .0, inf"),
        (lambda: repeats.bayesian_error(-1, 1, 1, 1), "writes is -1"),
        (lambda: repeats.bayesian_error(1.5, 1, 1, 1), "whole numbers"),
        (lambda: repeats.bayesian_error(1, float("nan"), 1, 1), "value is nan"),
        (lambda: repeats.bayesian_error(1, 1, -0.1, 1), "not its logarithm"),
        (lambda: repeats.delta_rule_error(1, 1, 1, 2.0), "beta is 2.0"),
        (lambda: repeats.retained_gains(3, 1.1, 1), "retention is 1.1"),
        (lambda: repeats.error_of_gains(np.ones((2, 2)), 1, 1), "one row"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ValueError, match=words):
        call()

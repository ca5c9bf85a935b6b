"""A value that moves: exact recursions and plateaus, held to the filter's weights at rtol 1e-9."""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

from bayesmem.theory import collision, drift, repeats

WRITES = 30
NOISE_VAR, DRIFT_VAR, VALUE_VAR = 0.5, 0.03, 1.6
STEPS = np.arange(WRITES)


@pytest.fixture
def one_key(random_keys):
    return random_keys(1, 1, 8, seed=0).expand(1, WRITES, 1, 8)


def true_errors(weights, true_decay, drift_var):
    """Expected squared error of every recall, from the weights and the covariance of the value at all times."""
    power = np.empty(WRITES)
    now = VALUE_VAR
    for t in STEPS:
        power[t] = now = true_decay**2 * now + drift_var
    joint = true_decay ** np.abs(np.subtract.outer(STEPS, STEPS)) * power[np.minimum.outer(STEPS, STEPS)]
    errors = power - 2 * (weights * joint).sum(-1) + NOISE_VAR * (weights**2).sum(-1)
    return errors + np.einsum("ts,sr,tr->t", weights, joint, weights)


def stationary(true_decay):
    return (1 - true_decay**2) * VALUE_VAR


@pytest.mark.parametrize(("true_decay", "drift_var"), [(1.0, DRIFT_VAR), (0.9, stationary(0.9)), (0.0, 0.2), (1, 0)])
@pytest.mark.parametrize("decay", [1.0, 0.85])
@pytest.mark.parametrize("memory", ["static", "retained", "delta_rule"])
def test_tracking_error(one_key, recall_weights, memory, decay, true_decay, drift_var):
    if memory == "delta_rule":
        gains, settings = np.full(WRITES, 0.3), {"beta": 0.3}
    else:
        retention = 1.0 if memory == "static" else 0.9
        settings = {"obs_noise": 0.4, "prior_var": 1.3}
        gains = repeats.retained_gains(WRITES, retention, **settings)
        settings["retention"] = retention
    design = "delta_rule" if memory == "delta_rule" else "bayesian"
    weights = recall_weights(design, one_key, one_key, decay=decay, **settings)[0].numpy()
    ours = drift.tracking_error(gains, NOISE_VAR, drift_var, VALUE_VAR, true_decay, decay)
    assert_allclose(true_errors(weights, true_decay, drift_var), ours, 1e-9)


@pytest.mark.parametrize("gain", [0.05, 0.4, 1.0, 1.3])
def test_plateaus(gain):
    """Where the recursion ends, under a random walk and under a stationary value, with a decay of its own."""
    gains = np.full(3000, gain)
    late = drift.tracking_error(gains, NOISE_VAR, DRIFT_VAR, VALUE_VAR)[-1]
    assert_allclose(drift.random_walk_plateau(gain, NOISE_VAR, DRIFT_VAR), late, 1e-9)
    for true_decay in (0.0, 0.9, 1.0):
        for decay in (1.0, 0.9, 0.5):
            late = drift.tracking_error(gains, NOISE_VAR, stationary(true_decay), VALUE_VAR, true_decay, decay)[-1]
            ours = drift.stationary_plateau(gain, NOISE_VAR, VALUE_VAR, true_decay, decay)
            assert_allclose(ours, late, 1e-9)
    # A value that stays is that of theory.repeats.
    ours = drift.stationary_plateau(gain, NOISE_VAR, VALUE_VAR, 1.0, 0.8)
    assert_allclose(ours, repeats.error_plateau(gain, VALUE_VAR**0.5, NOISE_VAR, 0.8), 1e-9)


@pytest.mark.parametrize(("noise_var", "drift_var"), [(0.5, 0.03), (1.0, 1e-4), (0.1, 2.0)])
def test_best_beta(noise_var, drift_var):
    """No constant gain does better, its error is beta sigma^2, and a retention has it as its plateau."""
    best = drift.best_beta(noise_var, drift_var)
    least = drift.random_walk_plateau(best, noise_var, drift_var)
    assert_allclose(least, best * noise_var, 1e-9)
    assert (drift.random_walk_plateau(np.linspace(0.01, 1.99, 400), noise_var, drift_var) >= least).all()
    retention = drift.best_retention(noise_var, drift_var, 3.0)
    assert_allclose(repeats.gain_plateau(retention, noise_var, 3.0), best, 1e-9)


def test_best_ends():
    assert_allclose(drift.best_beta(np.array([0.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0])), [1, 0, 0])
    assert drift.best_retention(1.0, 0.0) == 1
    assert drift.best_retention(1.0, 5.0) == 0  # the drift outruns the prior


def test_retention_is_exact_for_a_stationary_value():
    """rho = a = phi, p0 = v, r = sigma^2: calibrated at every write, and of least plateau among constant gains."""
    phi = 0.9
    gains = repeats.retained_gains(200, phi, NOISE_VAR, VALUE_VAR)
    errors = drift.tracking_error(gains, NOISE_VAR, stationary(phi), VALUE_VAR, phi, phi)
    assert_allclose(errors, gains * NOISE_VAR, 1e-9)  # the reported variance m r / (m + r)
    others = drift.stationary_plateau(np.linspace(0.01, 1.99, 400), NOISE_VAR, VALUE_VAR, phi, phi)
    assert (others >= errors[-1] * (1 - 1e-12)).all()


@pytest.mark.parametrize(("obs_noise", "prior_var"), [(NOISE_VAR, VALUE_VAR), (0.02, 1.0), (8.0, 0.4)])
def test_static_error(obs_noise, prior_var):
    """The closed form is the recursion under the static gains, and grows like n d / 3."""
    n = np.arange(1, 400)
    gains = repeats.bayesian_gain(n, obs_noise, prior_var)
    ours = drift.static_error(n, NOISE_VAR, DRIFT_VAR, VALUE_VAR, obs_noise, prior_var)
    assert_allclose(ours, drift.tracking_error(gains, NOISE_VAR, DRIFT_VAR, VALUE_VAR), 1e-9)
    assert drift.static_error(0, NOISE_VAR, DRIFT_VAR, VALUE_VAR, obs_noise, prior_var) == VALUE_VAR
    far = drift.static_error(10**9, NOISE_VAR, DRIFT_VAR, VALUE_VAR, obs_noise, prior_var)
    assert_allclose(far / 1e9, DRIFT_VAR / 3, 1e-6)
    # Without drift it is that of theory.repeats.
    still = drift.static_error(n, NOISE_VAR, 0.0, VALUE_VAR, obs_noise, prior_var)
    assert_allclose(still, repeats.bayesian_error(n, VALUE_VAR**0.5, NOISE_VAR, obs_noise, prior_var), 1e-9)


@pytest.mark.parametrize("drift_var", [0.1, 1e-2, 1e-3])
@pytest.mark.parametrize(("beta", "obs_noise"), [(0.2, NOISE_VAR), (0.7, 0.05), (0.2, 20.0)])
def test_crossover(beta, obs_noise, drift_var):
    """Rounded up it is the write from which the static memory is worse than the plateau for ever."""
    settings = (NOISE_VAR, drift_var, VALUE_VAR)
    writes = drift.crossover(beta, *settings, obs_noise)
    n = np.arange(10_000)
    better = drift.static_error(n, *settings, obs_noise) <= drift.random_walk_plateau(beta, *settings[:2])
    last = n[better].max() if better.any() else 0
    assert last <= writes < last + 1
    # And, once settled, than the delta rule itself: the recursions of both cross at the same write.
    delta = drift.tracking_error(np.full(10_000, beta), *settings)
    static = drift.static_error(n[1:], *settings, obs_noise)
    worse = n[1:][static <= delta[:-1]]
    if (1 - beta) ** (2 * writes) < 1e-6:
        assert worse.max() == math.floor(writes)


def test_crossover_ends():
    assert drift.crossover(0.2, 0.5, 0.0, 1.0, 0.5) == np.inf
    assert drift.crossover(0.2, 0.0, 0.0, 1.0, 0.5) == 0
    assert drift.crossover(1.0, 0.01, 5.0, 1.0, 10.0) == 0  # hardly any noise, much drift: never better
    # A small drift is soon enough: about 3 plateau / d.
    plateau = drift.random_walk_plateau(0.2, 1.0, 1e-8)
    assert_allclose(drift.crossover(0.2, 1.0, 1e-8, 1.0, 1.0), 3 * plateau / 1e-8, 1e-3)


@pytest.mark.parametrize("writes_a", [4, 15])
def test_a_jump(one_key, recall_weights, writes_a):
    """The error after a jump, and how long the old value lasts, from the weights of the filter."""
    settings = {"obs_noise": 0.4, "prior_var": 1.3}
    for design, options, gains, lag in (
        (
            "bayesian",
            settings,
            repeats.bayesian_gain(STEPS + 1, **settings),
            lambda share: drift.static_lag(share, writes_a, **settings),
        ),
        (
            "delta_rule",
            {"beta": 0.3},
            np.full(WRITES, 0.3),
            lambda share: drift.constant_gain_lag(share, writes_a, 0.3),
        ),
    ):
        weights = recall_weights(design, one_key, one_key, **options)[0].numpy()
        clean = np.where(writes_a > STEPS, 1.2, -0.7)
        truth = (weights @ clean - clean) ** 2 + NOISE_VAR * (weights**2).sum(-1)
        assert_allclose(drift.jump_error(gains, writes_a, 1.2, -0.7, NOISE_VAR), truth, 1e-9)
        old = weights[writes_a:, :writes_a].sum(-1)  # after 1, 2 ... writes of the new value
        for share in (0.6, 0.5):
            assert np.argmax(old <= share) + 1 == max(math.ceil(lag(share)), 1)
    n_b = STEPS[writes_a:] - writes_a + 1
    retrieval = collision.bayesian_retrieval(writes_a, n_b, 1.0, **settings)
    ours = drift.jump_error(repeats.bayesian_gain(STEPS + 1, **settings), writes_a, 1.2, -0.7, NOISE_VAR)[writes_a:]
    assert_allclose(retrieval.squared_error(-0.7, 1.2, -0.7, NOISE_VAR), ours, 1e-9)


def test_lags():
    """The static lag grows with what was seen, that of a constant gain does not."""
    n_a = np.array([10, 1000, 10**6])
    assert_allclose(np.diff(drift.static_lag(0.1, n_a, 0.5)), 9 * np.diff(n_a), 1e-12)
    assert_allclose(drift.constant_gain_lag(0.1, n_a[1:], 0.3), math.log(0.1) / math.log(0.7), 1e-9)
    assert_allclose(drift.constant_gain_lag(0.1, n_a[1:], 1.7), math.log(0.1) / math.log(0.7), 1e-9)
    assert drift.constant_gain_lag(0.1, 3, 1.0) == 0
    assert drift.constant_gain_lag(0.5, 0, 0.3) == drift.static_lag(0.5, 0, 0.3) == 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: drift.tracking_error(np.ones((2, 2)), 1, 1, 1), "one row"),
        (lambda: drift.tracking_error(np.ones(2), 1, -1, 1), "drift_var is -1"),
        (lambda: drift.tracking_error(np.ones(2), 1, 1, 1, 1.2), "true_decay is 1.2"),
        (lambda: drift.random_walk_plateau(0.0, 1, 1), "gain is 0.0"),
        (lambda: drift.stationary_plateau(0.5, 1, -1, 1), "value_var is -1"),
        (lambda: drift.best_beta(-1, 1), "noise_var is -1"),
        (lambda: drift.best_retention(1, 1, 0), "prior_var is 0"),
        (lambda: drift.crossover(2.0, 1, 1, 1, 1), "gain is 2.0"),
        (lambda: drift.static_lag(0.0, 1, 1), "share is 0.0"),
        (lambda: drift.jump_error(np.ones(2), -1, 1, 1, 1), "writes_a is -1"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ValueError, match=words):
        call()

"""Calibration: true errors from the filter's own weights, exactly, against the variances that it reports."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from bayesmem.tasks.collision import CollisionConfig, make_collision
from bayesmem.theory import calibration, collision, load
from bayesmem.theory.beliefs import World, believed, error_cov

LENGTH, KEY_DIM = 20, 6
NOISE_VAR, VALUE_VAR = 0.4, 1.6
WRONG = [(NOISE_VAR, VALUE_VAR), (4.0, VALUE_VAR), (0.04, VALUE_VAR), (NOISE_VAR, 0.2), (3.0, 9.0)]


@pytest.fixture
def recalled(run, random_keys):
    """Random keys and queries, the filter's weights of every write in every recall, and its variances."""

    def make(length=LENGTH, **settings):
        k, q = random_keys(1, length, KEY_DIM, seed=0), 2.0 * random_keys(1, length, KEY_DIM, seed=1)
        impulses = torch.eye(length, dtype=torch.float64)[None, :, None]
        out = run("bayesian", q, k, impulses, outputs=("predictive_var",), **settings)
        arrays = (k[0, :, 0], q[0, :, 0], out.o[0, :, 0], out.predictive_var[0, :, 0])
        return tuple(x.numpy() for x in arrays)

    return make


def static_truth(k, q, weights, value_var=VALUE_VAR, noise_var=NOISE_VAR):
    """Expected squared error for a memory N(0, value_var I) that does not change."""
    missed = q - weights @ k
    return value_var * (missed**2).sum(-1) + noise_var * (weights**2).sum(-1)


@pytest.mark.parametrize(("obs_noise", "prior_var"), WRONG)
def test_any_keys_and_queries(recalled, obs_noise, prior_var):
    """The ratio at every time and query, and that it lies between the two mistakes."""
    k, q, weights, var = recalled(obs_noise=obs_noise, prior_var=prior_var)
    belief = believed(k, obs_noise, prior_var)
    assert_allclose(np.einsum("ti,tij,tj->t", q, belief.covs, q), var, 1e-9)
    share = calibration.prior_share(belief.covs, q, prior_var)
    ours = calibration.static_ratio(share, obs_noise, prior_var, NOISE_VAR, VALUE_VAR)
    assert_allclose(static_truth(k, q, weights) / var, ours, 1e-9)
    ends = sorted((VALUE_VAR / prior_var, NOISE_VAR / obs_noise))
    assert (ours > ends[0] - 1e-12).all() and (ours < ends[1] + 1e-12).all()


def test_the_right_assumptions(recalled):
    """The slope is 1 at every query and time; both variances off by f leave the recall as it is, and give 1 / f."""
    k, q, weights, var = recalled(obs_noise=NOISE_VAR, prior_var=VALUE_VAR)
    assert_allclose(static_truth(k, q, weights), var, 1e-9)
    for factor in (0.1, 10.0):
        *_, other, reported = recalled(obs_noise=factor * NOISE_VAR, prior_var=factor * VALUE_VAR)
        assert_allclose(other, weights, 1e-9, 1e-12)
        assert_allclose(static_truth(k, q, other) / reported, 1 / factor, 1e-9)
    ours = calibration.static_ratio(np.array([0.1, 1.0]), 10 * NOISE_VAR, 10 * VALUE_VAR, NOISE_VAR, VALUE_VAR)
    assert_allclose(ours, 0.1, 1e-12)


@pytest.mark.parametrize("factor", [10.0, 0.1])
def test_noise_alone_wrong(run, random_keys, factor):
    """One key, r off by 10: closed form at every n, from 1 before the first write to 1 / f after many."""
    k = random_keys(1, 1, KEY_DIM, seed=0).expand(1, LENGTH, 1, KEY_DIM)
    impulses = torch.eye(LENGTH, dtype=torch.float64)[None, :, None]
    settings = {"obs_noise": factor * NOISE_VAR, "prior_var": VALUE_VAR}
    out = run("bayesian", k, k, impulses, outputs=("predictive_var",), **settings)
    weights = out.o[0, :, 0].numpy()
    error = VALUE_VAR * (weights.sum(-1) - 1) ** 2 + NOISE_VAR * (weights**2).sum(-1)
    n = np.arange(1, LENGTH + 1)
    ours = calibration.repeat_ratio(n, *settings.values(), NOISE_VAR, VALUE_VAR)
    assert_allclose(error / out.predictive_var[0, :, 0].numpy(), ours, 1e-9)
    assert (np.diff(ours) * (1 - factor) > 0).all()
    ends = calibration.repeat_ratio(np.array([0, 10**12]), *settings.values(), NOISE_VAR, VALUE_VAR)
    assert_allclose(ends, [1, 1 / factor], 1e-9)


@pytest.mark.parametrize("cosine", [-0.5, 0.0, 0.7, 1.0])
@pytest.mark.parametrize(("obs_noise", "prior_var"), WRONG[:2])
def test_collision(recall_weights, cosine, obs_noise, prior_var):
    """Two keys, values correlated or not; with the correlation of a memory it is the general ratio."""
    writes_a, writes_b = 5, 8
    config = CollisionConfig(KEY_DIM, 1, cosine=cosine, writes_a=writes_a, writes_b=writes_b, rows=1)
    k = make_collision(config).k
    q = k[:, :1].expand_as(k)
    weights = recall_weights("bayesian", q, k, obs_noise=obs_noise, prior_var=prior_var)[0, -1].numpy()
    on_a, on_b = weights[:writes_a].sum() - 1, weights[writes_a:].sum()
    var = collision.bayesian_predictive_var(writes_a, writes_b, cosine, obs_noise, prior_var)
    for together in (0.0, 0.3, cosine):
        truth = VALUE_VAR * (on_a**2 + on_b**2 + 2 * together * on_a * on_b) + NOISE_VAR * (weights**2).sum()
        ours = calibration.collision_ratio(
            writes_a, writes_b, cosine, obs_noise, prior_var, NOISE_VAR, VALUE_VAR, together
        )
        assert_allclose(truth / var, ours, 1e-9)
    share = calibration.prior_share(
        believed(k[0, :, 0].numpy(), obs_noise, prior_var).covs[-1], k[0, 0, 0].numpy(), prior_var
    )
    assert_allclose(ours, calibration.static_ratio(share, obs_noise, prior_var, NOISE_VAR, VALUE_VAR), 1e-9)


def test_independent_values_are_not_expected_of_near_keys():
    """With r and p0 right, independent values at cosine .9 err more than reported, those of a memory do not."""
    right = (5, 5, 0.9, 0.1, 1.0, 0.1, 1.0)
    assert calibration.collision_ratio(*right) > 1.5
    assert_allclose(calibration.collision_ratio(*right, correlation=0.9), 1, 1e-9)


@pytest.mark.parametrize(
    ("fill", "ridge", "bound"),
    [(0.5, 0.1, 0.015), (1.0, 0.1, 0.015), (2.0, 0.1, 0.015), (1.0, 1.0, 0.015), (0.95, 0.01, 0.08), (2.0, 0.01, 0.01)],
)
def test_load(run, random_keys, fill, ridge, bound):
    """At K = 64: the variance within .5%, the ratio within what the docstring states, and 4 standard errors."""
    count, prior_var = int(fill * 64), 1.5
    keys = random_keys(6400 // count, count, 64, seed=0)
    noise_var = ridge * prior_var
    queries, silent = torch.cat([keys, keys], 1), torch.zeros(len(keys), 2 * count, 1, count, dtype=torch.float64)
    silent[:, :count, 0] = torch.eye(count)  # values are impulses, then zero keys write nothing while all are recalled
    written = torch.cat([keys, torch.zeros_like(keys)], 1)
    settings = {"obs_noise": noise_var, "prior_var": prior_var}
    out = run("bayesian", queries, written, silent, outputs=("predictive_var",), **settings)
    weights, var = out.o[:, count:, 0], out.predictive_var[:, count:, 0].mean(-1)
    error = prior_var * ((weights - torch.eye(count)) ** 2).sum(-1) + noise_var * (weights**2).sum(-1)
    ratio, spread = (error.mean(-1).mean() / var.mean()).item(), (error.mean(-1) / var).std() / len(keys) ** 0.5
    ours = calibration.load_variance(count, 64, noise_var, prior_var)
    assert abs(var.mean() - ours) < 0.005 * ours + 4 * var.std() / len(keys) ** 0.5
    ours = calibration.load_ratio(count, 64, noise_var, prior_var, noise_var, prior_var)
    assert abs(ratio - ours) < bound * ours + 4 * spread
    # And it is the error of theory.load over the variance, whatever is assumed.
    other = calibration.load_ratio(count, 64, noise_var, prior_var, NOISE_VAR, VALUE_VAR)
    error = load.bayesian_error(count, 64, noise_var, prior_var, NOISE_VAR, VALUE_VAR)
    assert_allclose(other * calibration.load_variance(count, 64, noise_var, prior_var), error, 1e-9)


def test_load_ends():
    """Calibrated at light load, overconfident as N p0 / (K r) beyond capacity."""
    assert_allclose(calibration.load_ratio(1, 10**9, 0.1, 1.0, 0.1), 1, 1e-6)
    assert_allclose(calibration.load_ratio(10**9, 1, 0.1, 1.0, 0.1), 10**10, 1e-6)


@pytest.mark.parametrize(("decay", "true_decay"), [(1.0, 1.0), (0.9, 0.9), (0.9, 0.7), (1.0, 0.95)])
@pytest.mark.parametrize("retention", [1.0, 0.8])
def test_error_cov(recalled, decay, true_decay, retention):
    """Any world against the filter's weights and the joint law of the memory at all times."""
    k, q, weights, var = recalled(obs_noise=0.7, prior_var=1.3, decay=decay, retention=retention)
    belief = believed(k, 0.7, 1.3, retention)
    assert_allclose(np.einsum("ti,tij,tj->t", q, belief.covs, q), var, 1e-9)
    half = np.random.default_rng(0).normal(size=(2, KEY_DIM, KEY_DIM))
    start, drift = half @ half.transpose(0, 2, 1)
    # cov(S_t, S_s) = phi^{|t - s|} cov(S_min), S_0 not seen.
    at, now = np.empty((LENGTH, KEY_DIM, KEY_DIM)), start
    for t in range(LENGTH):
        at[t] = now = true_decay**2 * now + drift
    apart = np.subtract.outer(np.arange(LENGTH), np.arange(LENGTH))
    joint = true_decay ** np.abs(apart)[..., None, None] * at[np.minimum.outer(np.arange(LENGTH), np.arange(LENGTH))]
    seen = np.einsum("ti,tsij,sj->ts", q, joint, k)
    between = np.einsum("ti,tsij,sj->ts", k, joint, k)
    truth = np.einsum("ti,tij,tj->t", q, at, q) - 2 * (weights * seen).sum(-1)
    truth += np.einsum("ts,sr,tr->t", weights, between, weights) + NOISE_VAR * (weights**2).sum(-1)
    ours = error_cov(k, belief.gains, World(start, NOISE_VAR, true_decay, drift), decay)
    assert_allclose(np.einsum("ti,tij,tj->t", q, ours, q), truth, 1e-9)


@pytest.mark.parametrize("factor", [1.0, 10.0])
def test_a_memory_of_its_own_making(recalled, factor):
    """In the world that the design assumes, section 2.2's noise, the error covariance is the reported one."""
    retention, decay = np.linspace(0.3, 1, LENGTH), 0.9
    k, *_ = recalled(obs_noise=NOISE_VAR)
    belief = believed(k, NOISE_VAR * factor, VALUE_VAR * factor, retention)
    assumed = np.concatenate([VALUE_VAR * np.eye(KEY_DIM)[None], belief.covs[:-1] / factor])
    kept = (retention**2)[:, None, None]
    drift = (kept - decay**2) * assumed + (1 - kept) * VALUE_VAR * np.eye(KEY_DIM)
    ours = error_cov(k, belief.gains, World(VALUE_VAR, NOISE_VAR, decay, drift), decay)
    assert_allclose(ours, belief.covs / factor, 1e-9, 1e-12)


def test_slope():
    """Gaussian errors of a known ratio: slope and coverage within 4 standard errors, its own within 5%."""
    generator = np.random.default_rng(0)
    variance = generator.uniform(0.1, 5, size=(4000, 3, 1))
    errors = np.sqrt(1.7 * variance) * generator.normal(size=(4000, 3, 2))
    measured = calibration.slope(variance, errors**2)
    assert abs(measured.value - 1.7) < 4 * measured.standard_error
    assert_allclose(measured.standard_error, 1.7 * (2 / errors.size) ** 0.5, 0.05)
    for level in (0.5, 0.95):
        share = calibration.gaussian_coverage(1.7, level)
        slack = 4 * (share * (1 - share) / errors.size) ** 0.5
        assert abs(calibration.interval_coverage(variance, errors**2, level) - share) < slack
        assert_allclose(calibration.gaussian_coverage(1.0, level), level, 1e-12)
    # Channels that repeat each other do not narrow the standard error.
    repeated = calibration.slope(variance[:, 0], np.repeat(errors[:, 0, :1] ** 2, 50, axis=1))
    once = calibration.slope(variance[:, 0, 0], errors[:, 0, 0] ** 2)
    assert_allclose([repeated.value, repeated.standard_error], [once.value, once.standard_error], 1e-9)
    assert np.isnan(calibration.slope(np.ones(1), np.ones(1)).standard_error)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: calibration.repeat_ratio(1, 0.0), "obs_noise is 0.0"),
        (lambda: calibration.static_ratio(1.2, 1), "prior_share is 1.2"),
        (lambda: calibration.collision_ratio(1, 1, 0.5, 1, correlation=2), "correlation is 2"),
        (lambda: calibration.slope(np.zeros(2), np.ones(2)), "variance is"),
        (lambda: calibration.slope(np.ones(2), np.array(1.0)), "at least one entry"),
        (lambda: calibration.interval_coverage(np.ones(2), np.ones(2), 1.0), "level is 1.0"),
        (lambda: calibration.gaussian_coverage(0), "ratio is 0"),
        (lambda: believed(np.ones(3), 1.0), "one sequence"),
        (lambda: believed(np.ones((3, 2)), 1.0, 1.0, 1.5), "retention is 1.5"),
        (lambda: error_cov(np.ones((3, 2)), np.ones((2, 2)), World(1.0, 1.0)), "one gain"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ValueError, match=words):
        call()

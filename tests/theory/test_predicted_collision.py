"""The controlled collision: every prediction is exact, and held to the filter at rtol 1e-9."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from bayesmem.tasks.collision import CollisionConfig, make_collision
from bayesmem.theory import collision

OBS_NOISE, PRIOR_VAR, BETA = 0.3, 1.4, 0.35
DESIGNS = {
    "bayesian": {"obs_noise": OBS_NOISE, "prior_var": PRIOR_VAR},
    "delta_rule": {"beta": BETA},
    "linear_attention": {},
}


def predicted(design, writes_a, writes_b, cosine, overlap=None):
    if design == "bayesian":
        return collision.bayesian_retrieval(writes_a, writes_b, cosine, OBS_NOISE, PRIOR_VAR, overlap)
    if design == "delta_rule":
        return collision.delta_rule_retrieval(writes_a, writes_b, cosine, BETA, overlap)
    return collision.linear_attention_retrieval(writes_a, writes_b, cosine, overlap)


def drawn(cosine, writes_a=5, writes_b=12, **options):
    options = {"key_dim": 8, "value_dim": 2, "rows": 3, **options}
    return make_collision(CollisionConfig(cosine=cosine, writes_a=writes_a, writes_b=writes_b, **options))


@pytest.mark.parametrize("cosine", [-0.6, 0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("query", ["a", "b", "elsewhere"])
def test_retrieval(recall_weights, random_keys, design, cosine, query):
    """Weights of both values and the noise gain, after every write, at either key and at any other query."""
    writes_a, batch = 5, drawn(cosine)
    overlap = {"a": None, "b": (cosine, 1.0)}.get(query)
    q = (batch.key_a if query == "a" else batch.key_b)[:, None, None].expand_as(batch.k)
    if query == "elsewhere":
        q = random_keys(3, 1, 8, seed=1).expand_as(batch.k)
        shares = ((q[:, 0, 0] * key).sum(-1)[:, None].numpy() for key in (batch.key_a, batch.key_b))
        overlap = tuple(shares)
    weights = recall_weights(design, q, batch.k, **DESIGNS[design]).numpy()
    count = np.arange(1, weights.shape[1] + 1)
    writes_b = np.maximum(count - writes_a, 0)
    recall = predicted(design, np.minimum(count, writes_a), writes_b, cosine, overlap)
    for ours, simulated in (
        (recall.weight_a, weights[..., :writes_a].sum(-1)),
        (recall.weight_b, weights[..., writes_a:].sum(-1)),
        (recall.noise_gain, (weights**2).sum(-1)),
    ):
        assert_allclose(simulated, np.broadcast_to(ours, simulated.shape), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("query", ["a", "b"])
def test_retrieval_without_noise(run, design, query):
    """Clean values of a real batch: the recall is the predicted mean."""
    batch = drawn(0.7, noise_std=0.0, query=query)
    o = run(design, batch.q, batch.k, batch.v, **DESIGNS[design]).o[:, -1, 0].numpy()
    recall = predicted(design, 5, 12, 0.7, None if query == "a" else (0.7, 1.0))
    assert_allclose(o, recall.mean(batch.value_a.numpy(), batch.value_b.numpy()), rtol=1e-9)


@pytest.mark.parametrize("design", DESIGNS)
def test_bands_hold_what_they_promise(run, design):
    """95% bands around the mean cover 95% of 16,000 noisy recalls, to 4 standard errors (.007)."""
    batch = drawn(0.7, rows=2000, value_dim=8, noise_std=0.5)
    o = run(design, batch.q, batch.k, batch.v, **DESIGNS[design]).o[:, -1, 0].numpy()
    recall = predicted(design, 5, 12, 0.7)
    off = o - recall.mean(batch.value_a.numpy(), batch.value_b.numpy())
    covered = (np.abs(off) < 1.96 * np.sqrt(recall.variance(0.25))).mean()
    assert abs(covered - 0.95) < 4 * (0.95 * 0.05 / off.size) ** 0.5
    goal = batch.value_a.numpy()
    errors = (o - goal) ** 2 - recall.squared_error(goal, batch.value_a.numpy(), batch.value_b.numpy(), 0.25)
    assert abs(errors.mean()) < 5 * errors.std() / errors.size**0.5


def test_bayesian_order_does_not_matter(run):
    batch = drawn(0.7)
    back = (x.flip(1) for x in (batch.q, batch.k, batch.v))
    first = run("bayesian", batch.q, batch.k, batch.v, **DESIGNS["bayesian"]).o[:, -1]
    assert_allclose(run("bayesian", *back, **DESIGNS["bayesian"]).o[:, -1], first, rtol=1e-9)


def test_predictive_var(run):
    batch = drawn(0.7, query="b")
    out = run("bayesian", batch.q, batch.k, batch.v, outputs=("predictive_var",), **DESIGNS["bayesian"])
    count = np.arange(1, 18)
    writes = np.minimum(count, 5), np.maximum(count - 5, 0)
    ours = collision.bayesian_predictive_var(*writes, 0.7, OBS_NOISE, PRIOR_VAR, overlap=(0.7, 1.0))
    assert_allclose(out.predictive_var[:, :, 0], np.broadcast_to(ours, (3, 17)), rtol=1e-9)


def test_limits_of_endless_writes():
    """The limits at n_b to infinity are those of the finite formulas, and Bayes keeps evidence, delta does not."""
    n_a, c = np.array([0, 1, 4, 1000]), 0.6
    pairs = (
        (
            collision.bayesian_retrieval(n_a, 10**12, c, OBS_NOISE, PRIOR_VAR),
            collision.bayesian_limit(n_a, c, OBS_NOISE, PRIOR_VAR),
        ),
        (collision.delta_rule_retrieval(n_a, 10**6, c, BETA), collision.delta_rule_limit(n_a, c, BETA)),
    )
    for finite, limit in pairs:
        for field in ("weight_a", "weight_b", "noise_gain"):
            assert_allclose(getattr(finite, field), getattr(limit, field), rtol=1e-9, atol=1e-11)
    bayes, delta = pairs[0][1].weight_a, pairs[1][1].weight_a
    assert (np.diff(bayes) > 0).all() and bayes[-1] > 0.999
    assert delta[-1] == pytest.approx(1 - c**2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: collision.bayesian_retrieval(1, 1, 1.2, 0.1), "cosine is 1.2"),
        (lambda: collision.bayesian_retrieval(1, 1, 0.2, 0.1, overlap=(2.0, 0.1)), "overlap is 2.0"),
        (lambda: collision.delta_rule_retrieval(-1, 1, 0.2, 0.1), "writes_a is -1"),
        (lambda: collision.linear_attention_retrieval(1, 1, 0.2).variance(-1), "noise_var is -1"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ValueError, match=words):
        call()


class TestTask:
    def test_what_is_written(self):
        config = CollisionConfig(key_dim=16, value_dim=3, cosine=0.4, writes_a=2, writes_b=3, noise_std=0.0, rows=4)
        batch = make_collision(config)
        assert batch.q.shape == batch.k.shape == (4, 5, 1, 16) and batch.v.shape == (4, 5, 1, 3)
        for key in (batch.key_a, batch.key_b):
            assert_allclose(key.norm(dim=-1), 1, rtol=1e-14)
        assert_allclose((batch.key_a * batch.key_b).sum(-1), 0.4, rtol=1e-13)
        for token, (key, value) in enumerate([(batch.key_a, batch.value_a)] * 2 + [(batch.key_b, batch.value_b)] * 3):
            assert torch.equal(batch.k[:, token, 0], key)
            assert torch.equal(batch.v[:, token, 0], value)
            assert torch.equal(batch.q[:, token, 0], batch.key_a)

    @pytest.mark.parametrize("cosine", [-1.0, -0.999, 0.0, 1 - 1e-9, 1.0])
    def test_extreme_cosines(self, cosine):
        batch = drawn(cosine, key_dim=2)
        assert_allclose((batch.key_a * batch.key_b).sum(-1), cosine, rtol=0, atol=1e-15)

    def test_pure_and_seeded(self):
        before = torch.get_rng_state()
        first, again, other = drawn(0.3), drawn(0.3), drawn(0.3, seed=1)
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(first.v, again.v) and not torch.equal(first.v, other.v)
        longer = drawn(0.3, writes_b=40, noise_std=0.0)
        assert torch.equal(first.key_b, longer.key_b) and torch.equal(first.value_a, longer.value_a)

    def test_noise(self):
        """Sample mean and variance of 240,000 draws, within 5 standard errors."""
        batch = drawn(0.3, rows=1000, value_dim=20, noise_std=0.5, writes_a=12, writes_b=0)
        noise = batch.v[:, :, 0] - batch.value_a[:, None]
        assert abs(noise.mean()) < 5 * 0.5 / noise.numel() ** 0.5
        assert abs(noise.var() / 0.25 - 1) < 5 * (2 / noise.numel()) ** 0.5

    def test_float32_is_the_same_draw(self):
        single, double = drawn(0.3, dtype=torch.float32), drawn(0.3)
        assert single.k.dtype == single.value_a.dtype == torch.float32
        assert torch.equal(single.v, double.v.float())

    @pytest.mark.parametrize(
        ("bad", "words"),
        [
            ({"cosine": 1.5}, "cosine is 1.5; expected a number in"),
            ({"cosine": float("nan")}, "cosine is nan"),
            ({"key_dim": 0}, "key_dim is 0"),
            ({"key_dim": 1}, "unit keys are parallel"),
            ({"rows": 0}, "rows is 0; expected at least 1"),
            ({"writes_a": -1}, "writes_a is -1"),
            ({"writes_a": 0, "writes_b": 0}, "write one of the two"),
            ({"noise_std": -0.1}, "noise_std is -0.1"),
            ({"noise_std": float("inf")}, "finite"),
            ({"dtype": torch.float16}, "float32 or float64"),
        ],
    )
    def test_refusals(self, bad, words):
        with pytest.raises(ValueError, match=words):
            CollisionConfig(**bad)

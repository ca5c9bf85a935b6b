"""Observations are what the configuration says, and their best predictor is Gaussian conditioning."""

import math
from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch

from bayesmem.tasks.observations import FILLER, OBSERVATION, QUERY, ObservationsConfig, make
from bayesmem.tasks.optimal import posterior

SMALL = ObservationsConfig(key_dim=3, value_dim=2, pairs=3, repeats=2, fillers=2, queries=4, noise_var=0.3)


@pytest.mark.parametrize("world", ["linear", "lookup"])
def test_rows_are_what_was_asked_for(world):
    config = replace(SMALL, world=world, strangers=0.5)
    data = make(config, 50, 1)
    assert data.features.shape == (50, 12, config.features) and data.features.dtype == torch.float32
    assert (data.kind[:, -4:] == QUERY).all() and ((data.kind == FILLER).sum(1) == 2).all()
    assert ((data.kind == OBSERVATION).sum(1) == 6).all()
    shown = data.item[:, :8]
    assert all(set(row.tolist()) == {-1, 0, 1, 2} for row in shown)
    real = data.item >= 0
    assert torch.allclose(data.keys.norm(dim=-1), real.double()) and (data.values[data.kind != OBSERVATION] == 0).all()
    assert 0.3 < data.stranger.double().mean() < 0.7
    noise = data.features[..., config.key_dim + config.value_dim]
    assert torch.allclose(noise, math.log(0.3) * (data.kind == OBSERVATION))
    again, other = make(config, 50, 1), make(config, 50, 2)
    assert torch.equal(again.values, data.values) and not torch.equal(other.values, data.values)


def test_keys_lean_together_as_asked():
    for similarity in (0.0, 0.5, 0.9):
        config = ObservationsConfig(key_dim=32, pairs=8, repeats=1, fillers=0, similarity=similarity)
        keys = make(config, 200, 0).keys[:, :8]
        cosines = (keys @ keys.mT).sum((1, 2)) - 8
        assert (cosines / 56).mean().item() == pytest.approx(similarity, abs=0.02)


def test_noise_drift_and_redraws_have_their_size():
    one = ObservationsConfig(world="lookup", pairs=1, repeats=2, fillers=0, queries=1, noise_var=0.3)
    first, second = make(one, 4000, 0).values.unbind(1)[:2]
    assert (first - second).square().mean().item() == pytest.approx(2 * 0.3, rel=0.05)
    first, second = make(replace(one, rate=0.2), 4000, 0).values.unbind(1)[:2]
    assert (first * second).mean().item() == pytest.approx(math.sqrt(0.8), abs=0.05)
    assert first.square().mean().item() == pytest.approx(1.3, rel=0.05)
    redrawn = make(replace(one, rate=0.25, change="redraw", noise_var=1e-9), 4000, 0)
    changed = (redrawn.values[:, 0] - redrawn.values[:, 1]).abs().amax(-1) > 1e-3
    assert changed.double().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.allclose(redrawn.targets[:, 0], redrawn.values[:, 1], atol=1e-3)


@pytest.mark.parametrize(("world", "rate"), [("linear", 0.0), ("linear", 0.1), ("lookup", 0.0), ("lookup", 0.1)])
def test_the_posterior_is_dense_gaussian_conditioning(world, rate):
    config = replace(SMALL, world=world, rate=rate, strangers=0.3, similarity=0.3)
    data = make(config, 5, 3)
    found = posterior(data)
    times = torch.arange(data.item.shape[1])
    decay = math.sqrt(1 - rate) ** (times[:, None] - times).abs().double()
    for b in range(5):
        same = (data.item[b][:, None] == data.item[b]).double()
        prior = decay * (data.keys[b] @ data.keys[b].T if world == "linear" else same)
        seen = torch.nonzero(data.kind[b] == OBSERVATION)[:, 0]
        asked = torch.arange(config.context, len(times))
        gain = torch.linalg.solve(
            prior[seen][:, seen] + 0.3 * torch.eye(len(seen), dtype=torch.float64), prior[seen][:, asked]
        ).T
        mean = gain @ data.values[b, seen]
        var = prior.diagonal()[asked] - (gain * prior[asked][:, seen]).sum(1)
        torch.testing.assert_close(found.mean[b], mean, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found.var[b], var, rtol=1e-10, atol=1e-12)
        normal = torch.distributions.Normal(mean, var.sqrt()[:, None])
        torch.testing.assert_close(found.nll[b], -normal.log_prob(data.targets[b]).mean(-1))


@pytest.mark.parametrize("rate", [0.2, 1.0])
def test_the_posterior_of_redraws_is_the_sum_over_all_histories(rate):
    config = replace(SMALL, world="lookup", change="redraw", rate=rate, repeats=2.4, strangers=0.3)
    data = make(config, 6, 5)
    found = posterior(data)
    for b, j in product(range(6), range(config.queries)):
        item = data.item[b, config.context + j]
        values = data.values[b][(data.item[b] == item) & (data.kind[b] == OBSERVATION)]
        logs, means, variances = [], [], []
        for redrawn in product((False, True), repeat=max(len(values) - 1, 0)):
            log = sum(math.log(rate) if r else (math.log(1 - rate) if rate < 1 else -math.inf) for r in redrawn)
            start = max([i + 1 for i, r in enumerate(redrawn) if r], default=0)
            runs = [0, *[i + 1 for i, r in enumerate(redrawn) if r], len(values)]
            for low, high in pairwise(runs):
                n = high - low
                if n:
                    cov = torch.ones(n, n, dtype=torch.float64) + 0.3 * torch.eye(n, dtype=torch.float64)
                    law = torch.distributions.MultivariateNormal(torch.zeros(n, dtype=torch.float64), cov)
                    log = log + law.log_prob(values[low:high].T).sum().item()
            kept = values[start:]
            logs.append(log)
            means.append(kept.sum(0) / (len(kept) + 0.3))
            variances.append(0.3 / (len(kept) + 0.3))
        weights = torch.tensor(logs, dtype=torch.float64).softmax(0)
        mean = (weights[:, None] * torch.stack(means)).sum(0)
        spread = torch.tensor(variances, dtype=torch.float64) + (torch.stack(means) - mean).square().mean(-1)
        torch.testing.assert_close(found.mean[b, j], mean, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.var[b, j], (weights * spread).sum(), rtol=1e-9, atol=1e-12)
        laws = torch.distributions.Normal(
            torch.stack(means), torch.tensor(variances, dtype=torch.float64).sqrt()[:, None]
        )
        density = (weights.log() + laws.log_prob(data.targets[b, j]).sum(-1)).logsumexp(0)
        torch.testing.assert_close(found.nll[b, j], -density / 2, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"world": "flat"}, "world is 'flat'"),
        ({"change": "redraw"}, "choose change='drift', or world='lookup'"),
        ({"pairs": 0}, "pairs is 0"),
        ({"repeats": 0.5}, "every association is seen"),
        ({"fillers": -1}, "fillers is -1"),
        ({"noise_var": 0}, "expected a positive variance"),
        ({"similarity": 1}, r"expected a cosine in \[0, 1\)"),
        ({"rate": 1.5}, "rate is 1.5"),
        ({"strangers": -0.1}, "strangers is -0.1"),
    ],
)
def test_what_cannot_be_made_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        replace(SMALL, **changes)


def test_rows_and_seed_are_checked():
    with pytest.raises(ValueError, match="at least one row"):
        make(SMALL, 0, 0)

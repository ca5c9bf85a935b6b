"""The recall study: its points and models are what it says, the best predictor gets full marks, runs resume."""

import math
from dataclasses import replace

import pytest
import torch

from bayesmem.design import ZOO
from bayesmem.experiments import recall_score, recall_study
from bayesmem.experiments.recall_config import AXES, DESIGNS, SCALES, RecallStudy, smoke
from bayesmem.experiments.recall_model import build
from bayesmem.layers import BayesianLayerConfig
from bayesmem.report.records import records_in
from bayesmem.tasks.observations import OBSERVATION, ObservationsConfig, make
from bayesmem.tasks.optimal import posterior
from bayesmem.train import TrainConfig


def tiny(**changes) -> RecallStudy:
    train = TrainConfig(steps=2, batch_size=8, save_every=2, log_every=1)
    return smoke(rows=16, test_rows=8, train=train, **changes)


def model(config: RecallStudy | None = None):
    config = config or smoke()
    sizes = {"vocab_size": 3, "hidden_size": 24, "num_hidden_layers": 1, "intermediate_size": 0}
    options = {"norm_eps": 10.0, "initializer_range": 0.2, "mixer": config.mixer("bayesian")}
    return build(0, config.base("linear").features, **sizes, **options)


def test_the_forgetting_filter_is_the_linear_worlds_best_predictor():
    config = ObservationsConfig(key_dim=5, value_dim=3, rate=0.1, noise_var=0.2)
    data = make(config, 4, 0)
    unseen = torch.full_like(data.keys[..., :1], 1e12)
    noise = torch.where((data.kind == OBSERVATION)[..., None], torch.full_like(unseen, 0.2), unseen)
    k, v = data.keys[:, :, None], data.values[:, :, None]
    decay = torch.full_like(noise, 0.5 * math.log(0.9))
    out = ZOO["bayesian_forgetting"].filter(k, k, v, log_decay=decay, obs_noise=noise, outputs=("predictive_var",))
    best = posterior(data)
    torch.testing.assert_close(out.o[:, config.context :, 0], best.mean, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(out.predictive_var[:, config.context :, 0], best.var, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("scale", SCALES)
def test_points_leave_the_trained_range_where_they_say(scale):
    config = SCALES[scale]()
    for world in ("linear", "lookup"):
        assert {one.context for one in config.trained(world)} == {config.context}
        for axis in AXES:
            points = config.tested(world, axis)
            assert any(beyond for _, beyond, _ in points)
        inside = [x for x, beyond, _ in config.tested(world, "pairs") if not beyond]
        assert max(inside) == max(config.pairs)
        assert [c.context for _, _, c in config.tested(world, "length")] == list(config.tested_length)
        rates = [c.rate for _, beyond, c in config.tested(world, "rate") if not beyond]
        assert rates == [config.base(world).rate]


def test_every_design_has_the_covariances_state_and_no_more_than_one_key_channel_above():
    config = RecallStudy()
    budget = 32 * (32 + 16)
    for design in DESIGNS:
        options = config.mixer(design)
        size = BayesianLayerConfig(hidden_size=64, **options).state_size
        below = BayesianLayerConfig(hidden_size=64, **options | {"head_dim": options["head_dim"] - 1}).state_size
        assert size >= budget > below


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"context": 7}, "4 pairs seen 2 times do not fit into context 7"),
        ({"tested_length": (7,)}, "do not fit"),
        ({"pairs": ()}, "pairs is empty"),
        ({"test_rows": 1}, "test_rows 1"),
        ({"noise": (0,)}, "expected a positive variance"),
    ],
)
def test_bad_settings_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        smoke(**changes)


def test_unknown_worlds_and_designs_are_refused_before_work(tmp_path):
    with pytest.raises(ValueError, match="there is no world flat"):
        recall_study.run(tiny(), tmp_path, worlds=("flat",))
    with pytest.raises(ValueError, match="there is no design lstm"):
        recall_study.run(tiny(), tmp_path, designs=("lstm",))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("world", ["linear", "lookup"])
def test_the_best_predictor_gets_full_marks(world, monkeypatch):
    def best(model, data):
        found = posterior(data)
        return recall_score.Answers(found.mean, 7 * found.var)

    monkeypatch.setattr(recall_score, "answers", best)
    figures = recall_score.score(model(), recall_score.tests(smoke(test_rows=200), world))
    assert figures["trained"][0] == 0 and all(p[2] == 0 for points in figures["axes"].values() for p in points)
    known = figures["variance"]
    assert 1 / known["scale"] == pytest.approx(7, rel=0.15)  # its own variance again
    for part in ("trained", "beyond"):
        assert known[part]["slope"] == pytest.approx(1, abs=0.15)
        assert known[part]["optimal_nll"] == pytest.approx(known[part]["nll"], abs=0.1)
    assert all(mine == theirs for *_, mine, theirs in known["auroc"])
    assert all(mine == theirs for _, mine, theirs in known["coverage"])
    risks = [risk for _, risk, _ in known["coverage"]]
    assert risks[0] < 0.7 * risks[-1]  # refusing strangers pays


def test_a_model_that_answers_nothing_has_the_excess_of_the_posteriors_own_spread(monkeypatch):
    def nothing(model, data):
        return recall_score.Answers(torch.zeros_like(data.targets), None)

    monkeypatch.setattr(recall_score, "answers", nothing)
    figures = recall_score.score(model(), recall_score.tests(smoke(test_rows=400), "lookup"))
    excess, half, least = figures["trained"]
    assert excess == pytest.approx(1 - least, abs=2 * half) and figures["variance"] is None


def test_the_model_learns_from_its_targets():
    config = smoke()
    data = make(config.base("linear"), 32, 0)
    learner = model(config)
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = learner(data.features, data.targets.float()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    said = recall_score.answers(learner, data)
    assert said.mean.shape == (32, 4, 3) and said.var.shape == (32, 4) and (said.var > 0).all()
    assert (said.mean - data.targets).square().mean().item() == pytest.approx(2 * losses[-1], rel=0.1)


def test_runs_end_in_records_and_a_page_and_resume(tmp_path, monkeypatch):
    config = tiny()
    designs = ("bayesian", "mamba2")
    recall_study.run(config, tmp_path, ("linear",), designs)
    records = records_in(tmp_path)
    found = {name: records.find("recall_study", name).figures for name in designs}
    assert found["mamba2"]["variance"] is None and len(found["bayesian"]["variance"]["coverage"]) == 20
    assert {len(points) for points in found["bayesian"]["axes"].values()} == {2}
    assert "`mamba2` | n/a" in (tmp_path / "recall.md").read_text()
    assert (tmp_path / "img" / "recall_linear_excess-dark.svg").is_file()
    monkeypatch.setattr(recall_study, "build", None)  # nothing is left to train
    recall_study.run(replace(config, train=replace(config.train, seed=5)), tmp_path, ("linear",), designs)
    assert len(records.all()) == 2

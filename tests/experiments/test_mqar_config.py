"""The MQAR study as data: what is compared with what, and in which order."""

import json
from dataclasses import replace

import pytest

from bayesmem.design import named
from bayesmem.experiments.mqar_ablations import ABLATIONS
from bayesmem.experiments.mqar_config import DATA, FULL, SMOKE, Job, Scale
from bayesmem.experiments.mqar_models import ATTENTION, FIRST, LARGEST_KEY, MODELS, head_sizes, mixer_parameters
from bayesmem.experiments.mqar_stages import SMOKE_SWEEP, Sweep, due
from bayesmem.models import BayesMemConfig
from bayesmem.report.records import Record

RATES = SMOKE_SWEEP.learning_rates


@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("model", [m for m in MODELS if m != ATTENTION])
def test_nobody_has_less_state_than_the_bayesian_layer_and_nobody_much_more(model, width):
    key, value = head_sizes(model, width, "state")
    state = named(model).recurrence.state_size(key, value).total
    assert 2 * width**2 <= state <= 1.14 * 2 * width**2
    assert key <= LARGEST_KEY


def test_the_bounds_of_the_issue():
    assert {m: head_sizes(m, 64, "state") for m in ("bayesian", "mesanet", "gated_deltanet", "deltanet")} == {
        "bayesian": (64, 64),
        "mesanet": (64, 64),
        "gated_deltanet": (96, 96),
        "deltanet": (96, 96),
    }
    assert named("deltanet").recurrence.state_size(96, 96).total == 9216
    assert named("bayesian").recurrence.state_size(64, 64).total == 8192
    assert head_sizes("deltanet", 256, "state") == (256, 512)


@pytest.mark.parametrize("model", MODELS)
def test_matched_parameters_differ_by_two_percent_at_most(model):
    target = mixer_parameters("bayesian", 64, 64)
    size, _ = head_sizes(model, 64, "parameters")
    assert mixer_parameters(model, 64, size) == pytest.approx(target, rel=0.02)
    assert size % 2 == 0


def test_a_job_is_its_settings():
    job = Job(model="bayesian", changes=ABLATIONS["prior_10"].fields["changes"], scale=SMOKE, batch_size=32)
    assert Job.of(json.loads(json.dumps(job.settings))) == job
    assert job.folder != Job(model="bayesian", scale=SMOKE, batch_size=32).folder
    with pytest.raises(ValueError, match="unknown settings"):
        Job.of(job.settings | {"lerning_rate": 1.0})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "transformer"}, "expected one of deltanet"),
        ({"model": "gla", "matched": "width"}, "expected one of state"),
        ({"model": "gla", "data": "real"}, "expected one of zoology"),
        ({"model": "gla", "precision": "fp8"}, "expected one of float32"),
        ({"model": "gla", "steps": 0}, "steps is 0"),
        ({"model": "gla", "learning_rate": 0.0}, "learning_rate is 0"),
        ({"model": "gla", "scale": SMOKE, "batch_size": 257}, "batch_size is 257"),
        ({"model": "gla", "changes": {"retention": 1}}, "retention"),
        ({"model": ATTENTION, "changes": {"retention_init": 0.5}}, "softmax attention"),
    ],
)
def test_bad_jobs_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Job(**options)


def test_bad_scales_are_refused():
    tight = Scale(vocab_size=64, trained=((512, 31, 4),), tested=((512, 31),), milestone=(512, 31))
    Job(model="bayesian", scale=tight, batch_size=4)
    with pytest.raises(ValueError, match="two-token keys"):
        Job(model="bayesian", scale=tight, batch_size=4, data="compositional")
    with pytest.raises(ValueError, match="milestone"):
        Scale(milestone=(512, 128))
    with pytest.raises(ValueError, match="at least 1024"):
        Scale(tested=((512, 256),))


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_ablation_is_a_model_that_differs_from_the_base(name):
    base, changed = Job(model="bayesian"), Job(model="bayesian", **ABLATIONS[name].fields)
    mixer = BayesMemConfig(**changed.options).layer_config()
    assert mixer.head_dim == 64
    assert (changed == base) == (name in ("base", "bf16"))


def test_all_models_start_alike():
    for model in MODELS:
        options = Job(model=model, decay_init=0.99).options
        config = BayesMemConfig(**options)
        assert config.tie_word_embeddings and config.initializer_range is None and config.embedding_range == 0.02
        assert model == ATTENTION or config.layer_config().decay_init == 0.99
    assert BayesMemConfig(**Job(model="bayesian").options).layer_config().decay_init is None


def record(job: Job, score: float, **figures) -> Record:
    choice = [[16, 2, score]]
    return Record("mqar", job.model, job.settings, {"choice": choice, "accuracy": choice} | figures)


def test_the_order_of_the_study():
    sweep = Sweep()
    jobs = due(sweep, ["learning-rates"], []).jobs
    assert [job.model for job in jobs[::4]] == list(FIRST)
    assert {(job.seed, job.hidden_size, job.matched, job.steps) for job in jobs} == {(0, 64, "state", 6000)}
    assert {job.scale for job in jobs} == {FULL}
    everything = due(sweep, ["widths", "others", "learning-rates"], []).jobs
    assert everything[: len(jobs)] == jobs
    assert [job.hidden_size for job in everything] == sorted(job.hidden_size for job in everything)
    assert len({job.folder for job in everything}) == len(everything) == 3 * 14 * 4


def test_seeds_wait_for_the_learning_rates_and_take_the_best():
    sweep, stages = SMOKE_SWEEP, ["learning-rates", "seeds"]
    low, high = (sweep.job("deltanet", learning_rate=rate) for rate in RATES)
    half = due(sweep, stages, [record(low, 0.9)])
    assert "seeds: the learning rates of deltanet" in half.waiting
    assert high in half.jobs and low not in half.jobs and half.done == 1
    both = due(sweep, stages, [record(low, 0.9), record(high, 0.8)])
    seeds = [job for job in both.jobs if job.model == "deltanet"]
    assert [(job.seed, job.learning_rate) for job in seeds] == [(1, RATES[0])]
    assert not any(word.rsplit(" ", 1)[1] == "deltanet" for word in both.waiting)


def test_the_speed_of_learning_takes_each_model_at_its_best_rate_and_looks_often():
    sweep = SMOKE_SWEEP
    low, high = (sweep.job("deltanet", learning_rate=rate) for rate in RATES)
    found = due(sweep, ["speed"], [record(low, 0.9), record(high, 0.8)])
    assert [(job.model, job.learning_rate, job.seed) for job in found.jobs] == [("deltanet", RATES[0], 0)]
    assert found.jobs[0].evaluate_every == sweep.speed_every < low.evaluate_every
    assert f"speed: the learning rates of {FIRST[1]}" in found.waiting
    assert not due(sweep, ["speed"], [record(low, 0.9), record(high, 0.8), record(found.jobs[0], 0.9)]).jobs


def test_a_training_that_diverged_is_never_the_best():
    sweep = SMOKE_SWEEP
    low, high = (sweep.job("deltanet", learning_rate=rate) for rate in RATES)
    found = due(sweep, ["seeds"], [record(low, 0.0), record(high, 1.0, diverged="by step 3")])
    assert [job.learning_rate for job in found.jobs] == [RATES[0]]


def test_ablations_and_other_data_start_at_the_best_rate():
    sweep = SMOKE_SWEEP
    assert due(sweep, ["ablations", "variants"], []).jobs == []
    records = [record(sweep.job("bayesian", learning_rate=rate), rate) for rate in RATES]
    ablations = due(sweep, ["ablations"], records)
    # The base at the first seed is one of the learning rates' own; bf16 or float32 is the base too.
    assert ablations.done == 1
    assert len(ablations.jobs) == len(sweep.seeds) * (len(ABLATIONS) - 1) - 1
    assert {job.learning_rate for job in ablations.jobs} == {RATES[1]}
    others = due(sweep, ["variants"], records).jobs
    assert [(job.data, job.seed) for job in others] == [(data, seed) for data in DATA[1:] for seed in (0, 1)]


def test_an_output_gate_for_all_and_an_ablation_that_changes_it():
    sweep = replace(SMOKE_SWEEP, output_gate="none")
    gates = {job.model: job.changes for job in due(sweep, ["learning-rates", "others"], []).jobs}
    assert gates.pop(ATTENTION) == {} and set(map(str, gates.values())) == {"{'output_gate': 'none'}"}
    records = [record(sweep.job("bayesian", learning_rate=rate), rate) for rate in RATES]
    jobs = due(sweep, ["ablations"], records).jobs
    assert {"output_gate": "none", "retention_init": 0.5} in [job.changes for job in jobs]
    assert {"output_gate": "sigmoid"} in [job.changes for job in jobs]
    assert replace(SMOKE_SWEEP, output_gate=None).job("bayesian").changes == {}


def test_what_is_no_stage_or_model_is_refused():
    with pytest.raises(ValueError, match="stage is 'all'"):
        due(SMOKE_SWEEP, ["all"], [])
    with pytest.raises(ValueError, match="unknown; expected some of deltanet"):
        Sweep(models=("lstm",))
    with pytest.raises(ValueError, match="each once"):
        Sweep(seeds=(0, 0))

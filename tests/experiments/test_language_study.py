"""The language study at work: equal models, tokens of any text, learning rates then seeds, stops and resumes."""

import io
import json
import os
import signal
import sys
from dataclasses import replace

import pytest

from bayesmem.experiments import job_process, language, language_job
from bayesmem.experiments.common import build
from bayesmem.experiments.language_config import SMOKE, Job, Recipe, Sweep
from bayesmem.experiments.language_models import (
    MATCHED,
    MODELS,
    PARAMETERS_WITHIN,
    STATE_WITHIN,
    Shape,
    fitted,
    model_options,
    same_either_way,
)
from bayesmem.experiments.language_stages import due
from bayesmem.layers import BayesianLayerConfig
from bayesmem.report.records import Record, records_in
from bayesmem.tasks.prepared import prepare
from bayesmem.tasks.tokenizer import byte_tokenizer, train_tokenizer
from bayesmem.train import Interrupted, TokenRows

SIZES = {"full": Shape(), "keys": Shape(widened="keys"), "smoke": SMOKE.shape, "other": Shape(num_heads=3, head_dim=40)}
TEXT = {"train": "a", "held_out": "b"}


@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("matched", MATCHED)
@pytest.mark.parametrize("model", MODELS)
def test_models_are_equally_large(model, matched, shape):
    base, own = fitted("bayesian", shape), fitted(model, shape, matched)
    assert base.head_dim == base.value_dim == shape.head_dim and base.intermediate_size == shape.mlp
    assert base.state == 2 * shape.num_heads * shape.head_dim**2
    assert abs(own.parameters / base.parameters - 1) <= PARAMETERS_WITHIN
    if matched == "state":
        assert abs(own.state / base.state - 1) <= STATE_WITHIN
        kept = own.head_dim if shape.widened == "values" else own.value_dim
        assert kept == shape.head_dim
    else:
        assert own.head_dim == own.value_dim == shape.head_dim


@pytest.mark.parametrize("matched", MATCHED)
@pytest.mark.parametrize("model", MODELS)
def test_sizes_are_those_of_the_model_that_is_built(model, matched):
    own = fitted(model, SMOKE.shape, matched)
    made = build(0, vocab_size=32, **model_options(model, SMOKE.shape, matched))
    (layer,) = made.layers
    assert sum(p.numel() for p in layer.parameters()) == own.parameters
    (mixer,) = made.config.mixer_configs()
    assert isinstance(mixer, BayesianLayerConfig) and mixer.state_size == own.state and mixer.design == model


def test_what_cannot_be_matched_is_refused():
    with pytest.raises(ValueError, match="model is 'transformer'; expected a design of the zoo, such as gated_delta"):
        fitted("transformer", SMOKE.shape)
    with pytest.raises(ValueError, match="matched is 'size'; expected one of state, parameters"):
        Job(model="kda", matched="size", shape=SMOKE.shape)
    with pytest.raises(ValueError, match="no width of the keys of kda that gives its layer the 524,288 numbers"):
        fitted("kda", Shape(head_dim=256, num_heads=4, widened="keys"))
    with pytest.raises(ValueError, match=r"no MLP that gives kda the .* parameters of a layer of bayesian"):
        fitted("kda", Shape(intermediate_size=8))
    with pytest.raises(ValueError, match="widened is 'all'"):
        Shape(widened="all")
    with pytest.raises(ValueError, match="mixer gives design, which the study sets"):
        Shape(mixer={"design": "kda"})
    with pytest.raises(ValueError, match=r"mixer options \{'gate': 1}"):
        Shape(mixer={"gate": 1})
    with pytest.raises(ValueError, match="choice_tokens is 10; expected at least a row's 64"):
        replace(SMOKE.recipe, choice_tokens=10)
    with pytest.raises(ValueError, match="schedule is 'sine'"):
        Recipe(schedule="sine")
    with pytest.raises(ValueError, match="seeds is \\(1, 1\\); expected one or more, each once"):
        replace(SMOKE, seeds=(1, 1))


def test_a_job_is_its_settings():
    job = SMOKE.job("kda", "state", TEXT, learning_rate=3e-3, seed=1)
    assert Job.of(json.loads(json.dumps(job.settings))) == job
    assert job.folder.startswith("kda-state-lr0.003-seed1-") and job.folder != replace(job, text={}).folder
    with pytest.raises(ValueError, match=r"unknown settings \['depth'\] of a Shape"):
        Job.of({"model": "kda", "shape": {"depth": 3}})


def recorded(job: Job, choice: float | None) -> Record:
    return Record("language", job.model, job.settings, {"diverged": ""} if choice is None else {"choice": choice})


def test_rates_come_first_then_seeds_at_the_best():
    sweep = replace(SMOKE, models=("kda", "bayesian"), learning_rates=(1e-3, 2e-3, 4e-3), seeds=(5, 6, 7))
    first = due(sweep, TEXT, [])
    # The Bayesian model is the same however the others are matched to it, and is trained once.
    assert same_either_way("bayesian", SMOKE.shape) and not same_either_way("kda", SMOKE.shape)
    assert [(j.model, j.matched) for j in first.jobs] == 3 * [("kda", "state")] + 3 * [("bayesian", "state")] + 3 * [
        ("kda", "parameters")
    ]
    assert {job.seed for job in first.jobs} == {5} and first.done == 0 and len(first.waiting) == 4
    records = [recorded(job, choice) for job, choice in zip(first.jobs[:3], (2.0, None, 1.5), strict=True)]
    second = due(sweep, TEXT, records)
    at_best = [job for job in second.jobs if job.seed > 5]
    assert [(j.model, j.seed, j.learning_rate) for j in at_best] == [("kda", 6, 4e-3), ("kda", 7, 4e-3)]
    assert second.done == 3 and "matched by state: learning rates of kda" not in second.waiting
    assert due(sweep, {"train": "other", "held_out": "b"}, records).done == 0


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A folder in which the smoke study's tokens are prepared, and their fingerprints."""
    out = tmp_path_factory.mktemp("language")
    return out, language.prepare(language.book(out), SMOKE, out, lambda _: None)


def beside(study, out):
    """The same, for a study of its own."""
    out.mkdir()
    for name in (language_job.TOKENIZER, language_job.PREPARED):
        (out / name).symlink_to(study[0] / name)
    return study[1]


def test_held_out_text_comes_back_from_its_tokens(tmp_path):
    texts = ["One night — a dark one.\n", "Ends with <|endoftext|> inside. " * 9, "é ü\n\n 12 345 " * 5]
    for tokenizer in (byte_tokenizer(), train_tokenizer(texts * 3, 300)):
        held = prepare(tmp_path / str(len(tokenizer)), "held_out", lambda: texts, tokenizer, {})
        assert list(language_job.held_texts(held, tokenizer)) == texts
        start = int(held.starts[1])
        assert list(language_job.held_texts(held, tokenizer, start)) == texts[1:]
        assert list(language_job.held_texts(held, tokenizer, start - 1)) == texts[1:]  # the end of text alone
        assert "".join(language_job.held_texts(held, tokenizer, 5)).encode() in "".join(texts).encode()
    held = prepare(tmp_path / "cut", "held_out", lambda: ["é!"], byte_tokenizer(), {})
    assert list(language_job.held_texts(held, byte_tokenizer(), 1)) == ["!"]  # no half letters


def test_texts_that_are_too_short_or_missing_are_refused(tmp_path):
    texts = language.book(tmp_path)
    with pytest.raises(ValueError, match=r"the held-out text has .* tokens, 131,072 of them for choosing"):
        language.prepare(texts, Sweep(), tmp_path, lambda _: None)
    with pytest.raises(ValueError, match="no held-out text"):
        language.prepare(replace(texts, held_out=()), SMOKE, tmp_path)
    with pytest.raises(ValueError, match="no file or folder at nowhere"):
        language.prepare(replace(texts, held_out=("nowhere",), prepared=str(tmp_path / "p")), SMOKE, tmp_path)
    # Tokens that were prepared are enough, wherever their files are now.
    moved = replace(texts, data=("gone.txt",), held_out=("gone too.txt",))
    assert language.prepare(moved, SMOKE, tmp_path, lambda _: None)["train"]


def test_the_queue_runs_the_study_to_its_end(study, tmp_path):
    out = tmp_path / "out"
    text, told = beside(study, out), []
    sweep = replace(SMOKE, models=("mamba2",), matched=("state",))
    outcome = language.run_study(sweep, text, out, tell=told.append)
    assert (outcome.finished, outcome.left, outcome.failed, outcome.waiting) == (3, 0, {}, [])
    records = records_in(out).all()
    assert [record.settings["seed"] for record in records] == [0, 0, 1]
    for record in records:
        figures = record.figures
        assert figures["state_of_base"] == 1 and abs(figures["parameters_of_base"] - 1) <= PARAMETERS_WITHIN
        assert [(b["from"], b["to"], b["tokens"]) for b in figures["bins"]] == [
            (0, 64, 256),
            (64, 128, 256),
            (128, 256, 512),
        ]
        assert figures["tested_tokens"] == figures["tested_bytes"] == 1024
        assert 5.5 < figures["bits_per_byte"] < 8.1 and figures["losses"][-1][1] < figures["losses"][0][1]
    assert not list((out / "jobs").iterdir()) and any("bits per byte" in line for line in told)
    assert language.run_study(sweep, text, out, tell=told.append).finished == 0


def test_a_job_that_was_stopped_goes_on_as_if_it_had_not_been(study, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    job = SMOKE.job("bayesian", "state", beside(study, whole), learning_rate=1e-2, seed=0)
    beside(study, broken)
    language_job.run(job, whole)
    item = TokenRows.__getitem__

    def stop(rows, i):
        if rows.seed is not None and i == 4 * 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return item(rows, i)

    with monkeypatch.context() as patch:
        patch.setattr(TokenRows, "__getitem__", stop)
        with pytest.raises(Interrupted):
            language_job.run(job, broken)
    with monkeypatch.context() as patch:  # a kill after the last step, before the record
        patch.setattr(language_job, "measure", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            language_job.run(job, broken)
    assert not records_in(broken).all() and list((broken / "jobs" / job.folder).glob("checkpoint-8"))
    monkeypatch.setattr(sys, "argv", ["language_job", str(broken)])
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(job.settings)))
    job_process.serve(Job.of, language_job.run)
    first, second = (records_in(place).all()[0].figures for place in (whole, broken))
    for name in ("losses", "choice", "bits_per_byte", "bins"):
        assert first[name] == second[name]
    assert second["resumed_from"] == 8


def test_a_training_that_diverges_is_recorded_as_such(study, tmp_path):
    out = tmp_path / "out"
    job = SMOKE.job("gated_deltanet", "state", beside(study, out), learning_rate=1e30, seed=0)
    language_job.run(job, out)
    (record,) = records_in(out).all()
    assert "by step" in record.figures["diverged"] and "choice" not in record.figures


def test_tokens_of_another_text_are_refused(study, tmp_path):
    out = tmp_path / "out"
    beside(study, out)
    job = SMOKE.job("bayesian", "state", TEXT, learning_rate=1e-2, seed=0)
    with pytest.raises(ValueError, match="holds train tokens of other texts"):
        language_job.run(job, out)

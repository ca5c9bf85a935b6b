"""The MQAR study at work: rows, loss, training and tests, the queue, stops and resumes."""

import json
import os
import signal
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch

from bayesmem.experiments import job_process, job_queue, mqar_data, mqar_job, mqar_queue, mqar_testing, mqar_training
from bayesmem.experiments.common import build
from bayesmem.experiments.mqar_config import SMOKE, Job
from bayesmem.experiments.mqar_models import MODELS
from bayesmem.experiments.mqar_stages import SMOKE_SWEEP, due
from bayesmem.report.records import Records, records_in
from bayesmem.tasks import mqar, mqar_variants
from bayesmem.train import Interrupted

CPU = torch.device("cpu")
JOB = SMOKE_SWEEP.job("bayesian", learning_rate=1e-2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mqar") / "data"
    mqar_data.prepare(folder, [JOB, replace(JOB, seed=1)], 1)
    return folder


def segments(folder, job=JOB):
    return [mqar_data.load(folder, part, CPU) for part in mqar_data.trained(job)]


def test_rows_are_those_of_the_generator(data):
    part = mqar_data.trained(JOB)[1]
    rows, batch = mqar_data.load(data, part, CPU), mqar.make(part.config, part.seed)
    some = [3, 200, 5]
    given = rows.rows(torch.tensor(some))
    targets = np.full((3, part.config.length), mqar.IGNORED)
    targets.reshape(-1)[given["places"]] = given["answers"]
    assert np.array_equal(given["input_ids"], batch.inputs[some])
    assert np.array_equal(targets, batch.targets[some])


def test_parts_are_made_once_and_training_rows_differ_by_seed(data):
    assert mqar_data.prepare(data, [JOB, replace(JOB, seed=1)], 1) == 0
    first, second = segments(data), segments(data, replace(JOB, seed=1))
    assert not any(torch.equal(a.inputs, b.inputs) for a, b in zip(first, second, strict=True))
    assert mqar_data.tested(JOB) == mqar_data.tested(replace(JOB, seed=1))


def test_a_part_made_in_a_process_of_its_own_is_the_same(data, tmp_path):
    part = mqar_data.tested(JOB)[0]
    mqar_data._make_beside(tmp_path, part)
    assert (tmp_path / part.name).read_bytes() == (data / part.name).read_bytes()


@pytest.mark.parametrize("kind", mqar_variants.VARIANTS)
def test_a_variants_rows_are_those_of_its_generator(kind, tmp_path):
    job = replace(JOB, data=kind)
    for part in (*mqar_data.trained(job), *mqar_data.tested(job), mqar_data.milestone(job)):
        few = replace(part, config=replace(part.config, rows=4))
        batch = mqar_variants.like(kind, few.config).make(few.seed)
        rows = mqar_data.load(tmp_path, few, CPU)
        assert np.array_equal(rows.inputs, batch.inputs)
        answered = np.take_along_axis(batch.targets, rows.places.numpy().astype(int), axis=1)
        assert np.array_equal(rows.answers, answered) and (answered != mqar.IGNORED).all()
        assert rows.answers.numel() == (batch.targets != mqar.IGNORED).sum()
        assert few.shown == mqar_variants.like(kind, few.config).shown <= rows.places.min()


def test_a_variant_is_trained_and_says_what_it_asked(tmp_path):
    mqar_job.run(replace(JOB, steps=1, log_every=1, num_layers=1, data="compositional"), tmp_path)
    figures = records_in(tmp_path).all()[0].figures
    assert figures["asked"] == [[16, 2, 1], [32, 4, 4], [64, 8, 4]]
    assert [row[:2] for row in figures["accuracy"]] == [row[:2] for row in figures["asked"]]


def test_every_batch_is_of_one_segment_and_an_epoch_takes_every_row_once(data):
    batches = mqar_data.Batches(segments(data), 32, 48, seed=0)
    lengths = [batches[step]["input_ids"].shape[1] for step in range(48)]
    assert len(batches) == 48 and sorted(lengths[:24]) == [16] * 16 + [32] * 8  # one epoch
    assert lengths[:24] != sorted(lengths[:24]) and lengths[:24] != lengths[24:]
    rows = torch.cat([batches[step]["input_ids"] for step in range(24) if lengths[step] == 32])
    assert torch.equal(rows.unique(dim=0), segments(data)[1].inputs.unique(dim=0).long())
    again = mqar_data.Batches(segments(data), 32, 48, seed=0)
    assert all(torch.equal(again[40][name], batches[40][name]) for name in batches[40])
    other = mqar_data.Batches(segments(data), 32, 48, seed=1)
    assert any(not torch.equal(other[i]["input_ids"], batches[i]["input_ids"]) for i in range(3))


def test_the_loss_is_the_models_own_and_so_are_its_gradients(data, tmp_path):
    part = mqar_data.trained(JOB)[1]
    batch, plain = mqar_data.load(data, part, CPU).rows(slice(0, 8)), mqar.make(part.config, part.seed)
    model = build(0, **JOB.options).double()
    args, rows = mqar_training._arguments(JOB, tmp_path), segments(data)[0]
    trainer = mqar_training.RecallTrainer(model=model, args=args, eval_dataset=[], milestone=rows, stop_below=None)
    whole = model.train()(torch.tensor(plain.inputs[:8]), shift_labels=torch.tensor(plain.targets[:8])).loss
    wanted = torch.autograd.grad(whole, model.parameters())
    asked = trainer.compute_loss(model, batch)
    torch.testing.assert_close(asked, whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.autograd.grad(asked, model.parameters()), wanted, rtol=1e-9, atol=1e-14)


def test_accuracy_counts_what_is_asked(data):
    model, part = build(0, **JOB.options), mqar_data.tested(JOB)[1]
    rows, batch = mqar_data.load(data, part, CPU), mqar.make(part.config, part.seed)
    logits = model.eval()(torch.tensor(batch.inputs)).logits
    where = batch.targets != mqar.IGNORED
    wanted = (logits.argmax(-1).numpy() == batch.targets)[where].mean()
    right = replace(rows, answers=logits.argmax(-1)[torch.tensor(where)].view(rows.answers.shape).int())
    assert mqar_testing.accuracy(model, rows, bf16=False) == pytest.approx(wanted)
    assert mqar_testing.accuracy(model, right, bf16=False) == 1.0


def test_gates_are_told_by_layer_and_by_what_a_token_is_for(data):
    gates = mqar_testing.learned_gates(
        build(0, **JOB.options), mqar_data.load(data, mqar_data.milestone(JOB), CPU), 8, bf16=False
    )
    assert len(gates) == 2 and set(gates[0]) == {"decay", "retention", "beta"}
    for part in ("shown", "asked", "rest"):
        (head,) = gates[0]["retention"][part]
        assert head["mean"] == pytest.approx(0.999, abs=1e-3)  # where it starts
        assert head["quantiles"] == sorted(head["quantiles"])
    fixed = replace(JOB, changes={"design": "rls"})
    gates = mqar_testing.learned_gates(build(0, **fixed.options), segments(data)[0], 4, bf16=False)
    assert gates[0]["discount"]["fixed"] == pytest.approx([0.999], rel=1e-4)


@pytest.mark.parametrize("model", MODELS)
def test_every_model_trains_and_is_tested(model, data, tmp_path):
    (tmp_path / "data").symlink_to(data)
    job = replace(SMOKE_SWEEP.job(model), steps=2, log_every=1, evaluate_every=1, num_layers=1)
    mqar_job.run(job, tmp_path)
    (record,) = records_in(tmp_path).all()
    assert record.settings == job.settings
    assert [step for step, _ in record.figures["losses"]] == [1, 2]
    assert [step for step, _, _ in record.figures["milestones"]] == [1, 2]
    assert [tuple(row[:2]) for row in record.figures["accuracy"]] == list(SMOKE.tested)
    assert all(0 <= right <= 1 for *_, right in record.figures["accuracy"] + record.figures["choice"])
    assert not list((tmp_path / "jobs").iterdir())


def test_mixed_precision_runs_too(data, tmp_path):
    (tmp_path / "data").symlink_to(data)
    mqar_job.run(replace(JOB, steps=2, log_every=1, precision="bf16"), tmp_path)
    losses = [loss for _, loss in records_in(tmp_path).all()[0].figures["losses"]]
    assert losses[0] == pytest.approx(np.log(64), rel=0.02)


def test_it_learns_and_says_when(data, tmp_path):
    (tmp_path / "data").symlink_to(data)
    job = replace(JOB, steps=60, changes={"design": "bayesian_static"}, log_every=1, learning_rate=3e-2)
    rows = segments(data)[0]
    few = mqar_data.Asked(rows.inputs[:32], rows.places[:32], rows.answers[:32])
    same = mqar_data.Batches([few], 32, 60, seed=0)
    training = mqar_training.train(build(0, **job.options), job, same, few, tmp_path / "jobs")
    assert training.losses[-1][1] < 0.5 * training.losses[0][1]
    assert training.milestones[-1][2] > 0.5
    told = mqar_training.Training([], [(10, 1.0, 0.5), (20, 2.0, 0.995), (30, 3.0, 0.98)], 30, 3.0)
    assert told.reached == (20, 2.0)
    assert mqar_training.Training([], [(10, 1.0, 0.5)], 10, 1.0).reached is None


def test_a_job_ends_early_where_asked(data, tmp_path):
    (tmp_path / "data").symlink_to(data)
    mqar_job.run(replace(JOB, log_every=2, stop_below=100.0), tmp_path)
    assert records_in(tmp_path).all()[0].figures["steps"] == 2


def test_a_training_that_diverges_is_recorded_as_such(data, tmp_path, monkeypatch):
    (tmp_path / "data").symlink_to(data)
    compute = mqar_training.RecallTrainer.compute_loss
    monkeypatch.setattr(
        mqar_training.RecallTrainer, "compute_loss", lambda *args, **options: compute(*args, **options) * torch.nan
    )
    mqar_job.run(JOB, tmp_path)
    (record,) = records_in(tmp_path).all()
    assert "by step" in record.figures["diverged"] and "accuracy" not in record.figures


def test_a_job_that_was_stopped_goes_on_as_if_it_had_not_been(data, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for place in (whole, broken):
        place.mkdir()
        (place / "data").symlink_to(data)
    mqar_job.run(JOB, whole)
    item = mqar_data.Batches.__getitem__

    def stop(batches, step):
        if step == 13:
            os.kill(os.getpid(), signal.SIGTERM)
        return item(batches, step)

    with monkeypatch.context() as patch:
        patch.setattr(mqar_data.Batches, "__getitem__", stop)
        with pytest.raises(Interrupted):
            mqar_job.run(JOB, broken)
    assert not records_in(broken).all()
    assert list((broken / "jobs" / JOB.folder).glob("checkpoint-*"))
    mqar_job.run(JOB, broken)
    first, second = (records_in(place).all()[0].figures for place in (whole, broken))
    for name in ("losses", "accuracy", "choice", "steps", "gates"):
        assert first[name] == second[name]
    mqar_job.run(JOB, broken)  # done already
    assert len(records_in(broken).all()) == 1


def test_the_queue_runs_stage_after_stage_in_one_process(data, tmp_path):
    (tmp_path / "data").symlink_to(data)
    sweep = replace(SMOKE_SWEEP, models=("deltanet",), steps=2)
    told = []
    outcome = mqar_queue.run_queue(sweep, ("learning-rates", "seeds"), tmp_path, tell=told.append)
    assert (outcome.finished, outcome.left, outcome.failed, outcome.waiting) == (3, 0, {}, [])
    assert [r.settings["seed"] for r in records_in(tmp_path).all()] == [0, 0, 1]
    assert sum("16,2" in line for line in told) == 3
    assert mqar_queue.run_queue(sweep, ("learning-rates", "seeds"), tmp_path, tell=told.append).finished == 0


def test_the_time_limit_stops_one_process_and_keeps_its_checkpoint(data, tmp_path):
    (tmp_path / "data").symlink_to(data)
    sweep = replace(SMOKE_SWEEP, models=("deltanet",), steps=100_000)
    told = []
    outcome = mqar_queue.run_queue(sweep, ("learning-rates",), tmp_path, time_limit=2.0, tell=told.append)
    assert (outcome.finished, outcome.left) == (0, 2)
    assert any("the time is up" in line for line in told)
    assert list((tmp_path / "jobs").glob("*/checkpoint-*"))


# In place of a job's process: it waits where the seed says so, fails where the rate says so, else appends a record.
STAND_IN = """
    import json, pathlib, sys, time
    job = json.load(sys.stdin)
    out = pathlib.Path(sys.argv[1])
    with (out / "began").open("a") as file:
        file.write(job["model"] + "\\n")
    if job["model"] == "kda":
        sys.exit("no such luck")
    if job["model"] == "gla":
        time.sleep(600)
    figures = {"choice": [[16, 2, 0.5]], "accuracy": [[16, 2, 0.5]], "losses": [[1, 2.0]]}
    record = {"experiment": "mqar", "name": job["model"], "settings": job, "figures": figures, "context": {}}
    with (out / "records.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\\n")
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch, data):
    script = tmp_path / "job.py"
    script.write_text(textwrap.dedent(STAND_IN))
    monkeypatch.setattr(mqar_queue, "COMMAND", (sys.executable, "-S", str(script)))
    out = tmp_path / "out"
    out.mkdir()
    (out / "data").symlink_to(data)
    return out


def test_processes_side_by_side_follow_the_records(stand_in):
    sweep = replace(SMOKE_SWEEP, models=("linear_attention", "kda"))
    told = []
    outcome = mqar_queue.run_queue(sweep, ("others",), stand_in, jobs=2, tell=told.append)
    records = Records(stand_in / "records.jsonl").all()
    # Two rates and then, of the one that did not fail, the other seed.
    assert [(r.name, r.settings["seed"]) for r in records] == [("linear_attention", s) for s in (0, 0, 1)]
    assert outcome.finished == 3 and outcome.left == 2 and len(outcome.failed) == 2
    assert all("no such luck" in log.read_text() for log in outcome.failed.values())
    assert "others: the learning rates of kda" in outcome.waiting
    assert (stand_in / "began").read_text().count("kda") == 2  # a failed one is not tried again and again


def test_the_time_limit_stops_processes(stand_in):
    told = []
    outcome = mqar_queue.run_queue(
        replace(SMOKE_SWEEP, models=("gla",)), ("others",), stand_in, jobs=2, time_limit=1.5, tell=told.append
    )
    assert (outcome.finished, outcome.left, outcome.failed) == (0, 2, {})
    assert "the time is up: 2 jobs save" in told


def test_what_has_a_checkpoint_goes_first(tmp_path):
    jobs = due(SMOKE_SWEEP, ["learning-rates"], []).jobs
    (tmp_path / "jobs" / jobs[5].folder / "checkpoint-10").mkdir(parents=True)
    work = job_queue.Work((), mqar_job.run, lambda: job_queue.Due(jobs, [], 0), str)
    assert job_queue._Queue(work, tmp_path, 2, print).ordered(jobs) == [jobs[5], *jobs[:5], *jobs[6:]]


def test_processes_share_the_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert [job_queue._environment(slot, 3)["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["4", "7", "4"]


def test_a_job_from_outside_is_its_settings(tmp_path, monkeypatch, data, capsys):
    (tmp_path / "data").symlink_to(data)
    job = replace(JOB, steps=1, num_layers=1)
    monkeypatch.setattr(sys, "argv", ["mqar_job", str(tmp_path)])
    monkeypatch.setattr(sys, "stdin", __import__("io").StringIO(json.dumps(job.settings)))
    job_process.serve(Job.of, mqar_job.run)
    assert Job.of(records_in(tmp_path).all()[0].settings) == job


def test_where_one_learning_rate_is_tried_no_seed_waits():
    one = replace(SMOKE_SWEEP, models=("bayesian",), learning_rates=(1e-2,))
    found = due(one, ["learning-rates", "seeds"], [])
    assert not found.waiting and sorted(job.seed for job in found.jobs) == [0, 1]
    two = due(replace(one, learning_rates=(1e-2, 3e-2)), ["learning-rates", "seeds"], [])
    assert two.waiting and {job.seed for job in two.jobs} == {0}

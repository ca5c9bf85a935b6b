"""A distillation end to end, its controls, a kill, and what is refused before work."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from bayesmem.commands import distill as command
from bayesmem.experiments import distill
from bayesmem.experiments.distill_config import DistillConfig, read_controls
from bayesmem.experiments.distill_measure import trained_as
from bayesmem.report.records import records_in
from bayesmem.tasks.tokenizer import byte_tokenizer, train_tokenizer
from bayesmem.train import DistillOptions, Interrupted, Mix, TokenRows
from models.test_convert_llama import written
from train.small import TEXT
from train.small_distill import settings, teacher

ENV = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
ARMS = ("student", "control-tokens", "control-flops")
APP = typer.Typer()
APP.command("distill")(command.distill)


def figures(out):
    return {record.name: record.figures for record in records_in(out).all()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder, seen = tmp_path_factory.mktemp("whole"), {}
    teacher(folder)
    row = TokenRows.__getitem__

    def noted(rows, index):
        if rows.seed is not None:
            # the rows are kept, or another arm's might get their id
            seen.setdefault(id(rows), (rows, []))[1].append(row(rows, index)["input_ids"].tolist())
        return row(rows, index)

    TokenRows.__getitem__ = noted
    try:
        found = distill.run(settings(folder), folder / "out")
    finally:
        TokenRows.__getitem__ = row
    return folder / "out", found, [taken for _, taken in seen.values()]


def test_every_arm_is_trained_recorded_and_loads(whole):
    out, found, _ = whole
    assert tuple(found) == ("teacher", *ARMS) and figures(out).keys() == found.keys()
    for name, record in found.items():
        model, tokenizer = (kind.from_pretrained(out / name) for kind in (AutoModelForCausalLM, AutoTokenizer))
        assert model.config.mixer["design"] == ("bayesian" if name == "student" else "gated_deltanet")
        assert record.figures["parameters"] == model.num_parameters() and len(tokenizer) == 257
        if name != "teacher":
            assert record.figures["perplexity"] < found["teacher"].figures["perplexity"]
            assert len(record.figures["losses"]) == record.figures["steps"] // 2
            assert record.figures["device_seconds"] > 0
    same = AutoModelForCausalLM.from_pretrained(out / "teacher").state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(out.parent / "theirs").state_dict()
    assert all(torch.equal(same[name], x) for name, x in theirs.items())
    student, control = found["student"].figures, found["control-tokens"].figures
    kept = [layer[0] for layer in student["beginning"]["retention"]]
    assert kept == pytest.approx([0.2, 0.2]) and student["ending"]["retention"] != student["beginning"]["retention"]
    assert student["beginning"]["kl"] > 0 and control["beginning"]["kl"] == 0 and "retention" not in control["ending"]
    assert sorted(path.name for path in (out / "runs/student").iterdir()) == ["log.jsonl"]
    logged = [json.loads(line) for line in (out / "runs/student/log.jsonl").read_text().splitlines()]
    assert {"align", "kl", "ce"} <= logged[0].keys() and "align" not in logged[-3]


def test_the_control_sees_the_same_rows_and_as_many_operations(whole):
    _, found, (student, tokens, flops) = whole
    assert student == tokens == flops[:40]
    arms = [found[name].figures for name in ARMS]
    assert arms[0]["steps"] == arms[1]["steps"] == 10 and arms[2]["steps"] == len(flops) // 4 > 10
    step = arms[1]["flops"] / 10
    assert arms[1]["flops"] < arms[0]["flops"] <= arms[2]["flops"] < arms[0]["flops"] + step


def test_a_finished_distillation_is_not_repeated(whole, monkeypatch):
    out, found, _ = whole
    monkeypatch.setattr(distill, "train_language", None)
    again = distill.run(settings(out.parent), out, resume=True)
    assert again == found
    with pytest.raises(ValueError, match="holds a run already"):
        distill.run(settings(out.parent), out)
    with pytest.raises(ValueError, match=r"holds a run with other settings: retention was 0.2 and is 0.3"):
        distill.run(settings(out.parent, retention=0.3), out, resume=True)


def test_killed_within_a_control_and_resumed_is_bit_for_bit_the_same(whole, tmp_path):
    teacher(tmp_path)
    killed = subprocess.run([sys.executable, "-m", "train.small_distill", tmp_path], env=ENV, capture_output=True)
    assert killed.returncode == -9 and b"not killed" not in killed.stdout, killed.stderr.decode()
    assert figures(tmp_path / "out").keys() == {"teacher", "student"}
    assert (tmp_path / "out/runs/control-tokens/checkpoint-6").is_dir()
    stamp = (tmp_path / "out/student/model.safetensors").stat().st_mtime_ns
    distill.run(settings(tmp_path), tmp_path / "out", resume=True)
    assert (tmp_path / "out/student/model.safetensors").stat().st_mtime_ns == stamp
    for name in ARMS:
        one, other = (AutoModelForCausalLM.from_pretrained(out / name) for out in (whole[0], tmp_path / "out"))
        assert all(torch.equal(x, y) for x, y in zip(one.parameters(), other.parameters(), strict=True))
        timed = ("tokens_per_second", "device_seconds")
        one, other = (
            {k: v for k, v in figures(out)[name].items() if k not in timed} for out in (whole[0], tmp_path / "out")
        )
        assert one == other


def test_a_time_limit_stops_and_the_rest_goes_on(tmp_path):
    teacher(tmp_path)
    short = settings(tmp_path, controls=())
    with pytest.raises(Interrupted, match="the time is up before student"):
        distill.run(short, tmp_path / "out", time_limit=0)
    row = TokenRows.__getitem__
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted, match=r"stopped at step \d of 10"):
        clock = [0.0]

        def slow(rows, index):
            clock[0] += 1.0 if rows.seed is not None else 0.0
            return row(rows, index)

        patch.setattr(TokenRows, "__getitem__", slow)
        patch.setattr("bayesmem.experiments.distill.time.monotonic", lambda: clock[0])
        distill.run(short, tmp_path / "out", resume=True, time_limit=15)
    assert distill.run(short, tmp_path / "out", resume=True).keys() == {"teacher", "student"}


def test_as_a_user_types_it(tmp_path):
    text = tmp_path / "a.txt"
    text.write_text(TEXT)
    (tmp_path / "b.txt").write_text(TEXT[:400])
    words = f"--teacher {teacher(tmp_path)} --data {text} --held-out {tmp_path / 'b.txt'} --out {tmp_path / 'out'}"
    words += " --tokens 384 --length 16 --batch-size 4 --log-every 2 --control seconds --trains mixers --gate-rate 3"
    words += " --align mixer --align-weight 1 --ce-weight 0:0,1:1 --retention 0.1"
    result = CliRunner().invoke(APP, words.split(), catch_exceptions=False)
    assert result.exit_code == 0 and "│ control-seconds │" in result.output
    found = figures(tmp_path / "out")
    assert found.keys() == {"teacher", "student", "control-tokens", "control-seconds"}
    student, same, seconds = (found[name] for name in ("student", "control-tokens", "control-seconds"))
    assert seconds["steps"] == max(1, round(6 * student["device_seconds"] / same["device_seconds"]))
    kept = json.loads((tmp_path / "out/run.json").read_text())
    assert kept["options"]["trains"] == "mixers" and kept["options"]["mix"]["align"] == [[0.0, 1.0]]
    assert kept["options"]["mix"]["ce"] == [[0, 0], [1, 1]] and kept["options"]["mix"]["kl"] == [[0, 1], [0.6, 0.2]]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out/student").state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs").state_dict()
    moved = {name for name, x in theirs.items() if not torch.equal(x, model[name])}
    assert moved and all(".mixer." in name for name in moved)
    result = CliRunner().invoke(APP, ["--out", str(tmp_path / "out"), "--resume"], catch_exceptions=False)
    assert result.exit_code == 0 and result.output.count("finished before") == 3


def test_a_softmax_teacher_in_bf16(tmp_path, unchecked):  # accelerate rebuilds bf16 outputs its way
    written(tmp_path / "theirs", vocab_size=257, num_hidden_layers=2)
    byte_tokenizer().save_pretrained(tmp_path / "theirs")
    mix = Mix(align=((0.0, 1.0),), kl=((0.0, 1.0),), ce=((0.0, 0.0),))
    options = DistillOptions(mix=mix, align="mixer")
    run = {"bf16": True, "tokens": 20 * 32, "batch_size": 2, "learning_rate": 2e-2, "recompute": True}
    config = settings(tmp_path, run, options=options, attention_every=2, controls=("tokens",), retention=None)
    found = distill.run(config, tmp_path / "out")
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "out/student")
    assert [type(block.mixer).__name__ for block in student.layers] == ["BayesianLayer", "SoftmaxAttention"]
    for name in ("student", "control-tokens"):
        logged = [json.loads(x) for x in (tmp_path / f"out/runs/{name}/log.jsonl").read_text().splitlines()]
        terms = [(row["align"], row["kl"]) for row in logged if "align" in row]
        assert terms[-1][0] < 0.9 * terms[0][0] and terms[-1][1] < 0.9 * terms[0][1]
        assert found[name].figures["beginning"]["kl"] > 0.01


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda f: (f / "theirs/tokenizer.json").unlink() or (f / "theirs/tokenizer_config.json").unlink(),
            "holds no tok",
        ),
        (lambda f: train_tokenizer([TEXT * 9], 270).save_pretrained(f / "theirs"), "has 270 tokens, the teacher's voc"),
        (lambda f: (f / "train.txt").write_text(""), "the train text is empty"),
        (lambda f: (f / "train.txt").write_text("abc"), "the text has 4 tokens; a row of 16"),
        (lambda f: (f / "train.txt").unlink(), "no file or folder at"),
        (lambda f: os.truncate(f / "theirs/model.safetensors", 5000), "ends .* bytes after the file does"),
        (lambda f: (f / "theirs/config.json").write_text('{"model_type": "mamba2"}'), "a teacher is one of"),
    ],
    ids=("tokenizer", "vocabulary", "empty", "short", "gone", "damaged", "unknown"),
)
def test_bad_input_is_refused_before_work(tmp_path, change, said):
    teacher(tmp_path)
    config = settings(tmp_path)
    change(tmp_path)
    with pytest.raises(ValueError, match=said):
        distill.run(config, tmp_path / "out")
    assert not (tmp_path / "out/runs").exists() and not (tmp_path / "out/records.jsonl").exists()


def test_another_tokenizer_or_teacher_is_refused(tmp_path):
    own = teacher(tmp_path)
    swapped = byte_tokenizer()
    swapped.add_tokens([])
    (tmp_path / "other").mkdir()
    train_tokenizer([TEXT], 257).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"is not the teacher's own in .*theirs: ids would change their"):
        distill.run(settings(tmp_path, tokenizer=str(tmp_path / "other")), tmp_path / "out")
    with pytest.raises(Interrupted):
        distill.run(settings(tmp_path, tokenizer=str(own)), tmp_path / "out", time_limit=0)
    (own / "model.safetensors").unlink()
    teacher(tmp_path, initializer_range=0.1)
    with pytest.raises(ValueError, match=r"holds a run with other settings: mark was "):
        distill.run(settings(tmp_path, tokenizer=str(own)), tmp_path / "out", resume=True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"run": {"held_out": ()}}, "nothing is held out"),
        ({"start": ""}, "no teacher given"),
        ({"controls": ("tokens", "time")}, "control 'time'; expected some of tokens, flops, seconds"),
        ({"controls": ("tokens", "seconds"), "run": {"log_every": 10}}, "too few to tell their speed by.* every 4"),
        ({"retention": 1.5}, "retention is 1.5; expected a share"),
    ],
)
def test_bad_options_are_refused(tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        if changes.get("start") == "":
            DistillConfig(run=replace(settings(tmp_path).run, start=None))
        settings(tmp_path, changes.pop("run", None), **changes)


def test_how_the_teacher_was_trained_is_told(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    assert trained_as(model) == {}
    run = replace(settings(tmp_path).run, data=("some/books.txt",), seed=3)
    (tmp_path / "run.json").write_text(run.to_json())
    told = trained_as(model)["trained_as"]
    assert (told["tokens"], told["length"], told["seed"], told["data"]) == (run.tokens, run.length, 3, ["books.txt"])
    assert trained_as(tmp_path) == {}  # a folder that is not `bayesmem train`'s
    (tmp_path / "run.json").write_text("[]")
    assert trained_as(model) == {}


def test_controls_as_typed():
    assert read_controls("all") == ("tokens", "flops", "seconds") and read_controls("none") == ()
    assert read_controls("both") == read_controls("seconds") == ("tokens", "seconds")
    assert read_controls("flops, tokens") == ("tokens", "flops")


def test_steps_are_matched_to_a_budget():
    for budget in (1.0, 99.5, 100.0, 103.1):
        steps = distill.matched_steps(budget, lambda n: 1.25 * n, 80)
        assert 1.25 * steps >= budget > 1.25 * (steps - 1)

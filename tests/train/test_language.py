"""Language modelling end to end: learning, loading, killing, refusing."""

import errno
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from bayesmem.experiments import pretrain
from bayesmem.models import BayesMemConfig, BayesMemForCausalLM
from bayesmem.train import Diverged, RunConfig, arguments, checkpoints, flops
from train.small import MODEL, TEXT, config

ENV = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}


def log(out):
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows if "loss" in row], [r for r in rows if "eval_loss" in r]


def weights(out):
    return AutoModelForCausalLM.from_pretrained(out / "model").state_dict()


def same(one, other):
    assert log(one)[0] == log(other)[0]
    assert [r["eval_loss"] for r in log(one)[1]] == [r["eval_loss"] for r in log(other)[1]]
    assert all(torch.equal(x, y) for x, y in zip(weights(one).values(), weights(other).values(), strict=True))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return pretrain.run(config(folder), folder / "out"), folder / "out"


def test_it_learns_evaluates_and_loads(whole):
    result, out = whole
    losses, evaluations = log(out)
    assert losses == result.language.training.losses and [step for step, _ in losses] == [2, 4, 6, 8, 10]
    assert losses[-1][1] < losses[0][1] - 0.1
    assert [row["step"] for row in evaluations] == [5, 10]
    model, tokenizer = (kind.from_pretrained(out / "model") for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert result.parameters == model.num_parameters() and result.state == 2 * 4 * 4
    ids = torch.tensor([*tokenizer(TEXT[:500]).input_ids, tokenizer.eos_token_id])
    rows = F.pad(ids[:-1], (0, -500 % 16)).view(-1, 16)  # every row by itself, as it was trained
    nats = F.cross_entropy(model(rows).logits.flatten(0, 1)[:500], ids[1:])
    assert evaluations[-1]["eval_loss"] == pytest.approx(nats.item(), rel=1e-5)
    assert evaluations[-1]["eval_bits_per_byte"] == pytest.approx(nats.item() / math.log(2) * 501 / 500, rel=1e-5)
    assert evaluations[-1]["eval_perplexity"] == pytest.approx(nats.exp().item(), rel=1e-5)
    assert evaluations[-1]["eval_tokens"] == 500
    text = tokenizer.decode(model.generate(**tokenizer("In", return_tensors="pt"), max_new_tokens=3)[0])
    assert text.startswith("In") and model.config.use_cache
    assert sorted(p.name for p in out.iterdir()) == ["checkpoint-10", "data", "log.jsonl", "model", "run.json"]


@pytest.mark.parametrize(
    ("where", "resumed"),
    [("write", 3)] + [pytest.param(*one, marks=pytest.mark.slow) for one in (("step", 6), ("first", 0), ("move", 3))],
)
def test_killed_and_resumed_is_bit_for_bit_the_same(whole, tmp_path, where, resumed):
    killed = subprocess.run([sys.executable, "-m", "train.small", tmp_path, where], env=ENV, capture_output=True)
    assert killed.returncode == -9 and b"not killed" not in killed.stdout, killed.stderr.decode()
    result = pretrain.run(config(tmp_path), tmp_path / "out", resume=True)
    assert result.language.training.resumed_from == resumed
    same(whole[1], tmp_path / "out")


def test_resumed_without_sources_when_all_is_done(whole, tmp_path):
    settings = config(tmp_path, tokens=3 * 64, held_out=(), save_every=2)
    pretrain.run(settings, tmp_path / "out")
    before = weights(tmp_path / "out")
    (tmp_path / "train.txt").unlink()
    again = pretrain.run(pretrain.saved_config(tmp_path / "out"), tmp_path / "out", resume=True)
    assert again.language.training.resumed_from == 3
    assert all(torch.equal(x, y) for x, y in zip(before.values(), weights(tmp_path / "out").values(), strict=True))


def test_accumulation_and_recomputation_change_nothing_but_rounding(whole, tmp_path):
    pretrain.run(config(tmp_path, micro_batch=1, recompute=True), tmp_path / "out")
    for (_, one), (_, other) in zip(log(whole[1])[0], log(tmp_path / "out")[0], strict=True):
        assert one == pytest.approx(other, abs=2e-5)


def test_isolated_documents_bpe_and_wsd_then_fine_tuning(
    tmp_path, unchecked
):  # accelerate rebuilds bf16 outputs its way
    lines = [json.dumps({"body": TEXT[i : i + 37]}) for i in range(0, 1500, 37)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    settings = config(
        tmp_path,
        data=(str(tmp_path / "train.jsonl"),),
        text_field="body",
        held_out=(),
        tokenizer="bpe",
        vocab=270,
        isolate=True,
        schedule="wsd",
        prepared=str(tmp_path / "shared"),
        bf16=True,
        model=MODEL | {"attention_every": 1, "attention": {"num_heads": 2, "head_dim": 4}},
    )
    first = pretrain.run(settings, tmp_path / "out")
    rates = [json.loads(line).get("learning_rate") for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    assert rates[1] == rates[2] == 1e-2 and rates[4] == pytest.approx(5.5e-3)
    tuned = config(tmp_path, start=str(first.language.folder), model={}, tokens=2 * 64)
    second = pretrain.run(tuned, tmp_path / "tuned")
    assert second.language.training.losses[0][1] < first.language.training.losses[0][1]
    assert len(AutoTokenizer.from_pretrained(second.language.folder)) == 270


def test_a_folder_belongs_to_one_run(whole, tmp_path):
    out = whole[1]
    own = pretrain.saved_config(out)
    with pytest.raises(ValueError, match="holds a run already; go on with it by --resume"):
        pretrain.run(own, out)
    with pytest.raises(ValueError, match=r"holds a run with other settings: learning_rate was 0.01 and is 0.02"):
        pretrain.run(replace(own, learning_rate=0.02), out, resume=True)
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(ValueError, match=r"holds checkpoint-3 and no run.json"):
        pretrain.run(own, tmp_path)
    (tmp_path / "run.json").write_text('{"data": ["x"], "speed": 3}')
    with pytest.raises(ValueError, match=r"run.json: unknown options speed"):
        pretrain.saved_config(tmp_path)


def test_a_full_disk_is_told_and_costs_no_checkpoint(tmp_path, monkeypatch):
    write, tried = torch.save, []

    def full(what, path, *rest, **options):
        tried.append(path)
        if len(tried) > 6:
            Path(path).write_bytes(b"half")
            raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")
        write(what, path, *rest, **options)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="the disk is full: checkpoint 6 could not be written") as told:
        pretrain.run(config(tmp_path), tmp_path / "out")
    assert told.value.errno == errno.ENOSPC
    assert sorted(path.name for path in (tmp_path / "out").glob("*i*g*")) == []
    monkeypatch.setattr(torch, "save", write)
    assert pretrain.run(config(tmp_path), tmp_path / "out", resume=True).language.training.resumed_from == 3


def test_too_small_a_disk_is_told_before_the_first_step(tmp_path, monkeypatch):
    usage = checkpoints.shutil.disk_usage
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: usage(path)._replace(free=99))
    with pytest.raises(OSError, match="the disk is full: checkpoints and the model take about"):
        pretrain.run(config(tmp_path), tmp_path / "out")


def test_a_loss_that_is_no_number_stops(tmp_path):
    with pytest.raises(Diverged, match=r"by step \d+ the loss is no number .* smaller --lr"):
        pretrain.run(config(tmp_path, learning_rate=1e30, warmup=0, clip=1e30), tmp_path / "out")
    assert not list((tmp_path / "out").glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tokens": 63}, "tokens is 63, less than one step's 64"),
        ({"micro_batch": 3}, "micro_batch is 3; expected a divisor of batch_size 4"),
        ({"schedule": "linear"}, "schedule is 'linear'; expected one of cosine, wsd, constant"),
        ({"schedule": "wsd", "warmup": 0.9}, "are more than the whole"),
        ({"warmup": 1.5}, "warmup is 1.5; expected a share"),
        ({"learning_rate": 0}, "learning_rate is 0; expected a positive"),
        ({"seed": -1}, "seed is -1"),
        ({"start": "x"}, "start .* and model options are both given"),
        ({"start": "x", "model": {}, "tokenizer": "bpe"}, "start .* and a tokenizer are both given"),
        ({"batch_size": 0}, "batch_size is 0; expected at least 1"),
    ],
)
def test_bad_options_are_refused(tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        config(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": ("gone.txt",)}, "no file or folder at gone.txt"),
        ({"model": {"hidden": 3}}, "unknown config keys .*hidden"),
        ({"model": {"mixer": {"design": "nonsense"}}}, "nonsense"),
        ({"model": {"vocab_size": 99}}, "vocab_size is 99, the tokenizer has 257"),
        ({"tokenizer": "gone"}, "no tokenizer at gone"),
        ({"length": 4096, "batch_size": 1, "tokens": 4096}, "the text has 2601 tokens; a row of 4096"),
    ],
)
def test_bad_runs_are_refused(tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        pretrain.run(config(tmp_path, **changes), tmp_path / "out")


def test_what_is_trained_on_is_not_held_out(tmp_path):
    own = config(tmp_path)
    with pytest.raises(ValueError, match=r"train.txt is trained on and held out"):
        pretrain.run(replace(own, held_out=(str(tmp_path),)), tmp_path / "out")


def test_a_batch_that_devices_cannot_share_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="batch_size 4 over 3 devices in parts of 1"):
        arguments(config(tmp_path), tmp_path)


def test_config_goes_through_json(tmp_path):
    own = config(tmp_path)
    assert RunConfig.from_json(own.to_json()) == own
    with pytest.raises(ValueError, match="no text given"):
        RunConfig.of({"tokens": 10})


def test_flops_are_counted_from_the_parts():
    options = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    mixer = {"num_heads": 2, "head_dim": 4, "conv_size": 0}
    delta, bayes = (
        BayesMemForCausalLM(BayesMemConfig(**options, mixer=mixer | {"design": name}))
        for name in ("gated_deltanet", "bayesian")
    )
    own = {
        name: flops.training_flops(model, 64) - 6 * (model.num_parameters() - 50 * 16)
        for name, model in (("delta", delta), ("bayes", bayes))
    }
    assert own["delta"] == 3 * 2 * 2 * 7 * 16  # layers, heads: M^T k, g e^T, M^T q (2 K V each), decay (K V)
    assert own["bayes"] - own["delta"] == 3 * 2 * 2 * 6 * 16
    attention = BayesMemConfig(
        **options, mixer=mixer, attention_every=1, attention={"num_heads": 2, "head_dim": 4}, tie_word_embeddings=True
    )
    softmax = BayesMemForCausalLM(attention)
    assert flops.training_flops(softmax, 63) == 6 * softmax.num_parameters() + 3 * 2 * 4 * 2 * 4 * 32


def test_peaks_are_known_by_name(monkeypatch):
    names = {
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H100 PCIe": 756e12,
        "NVIDIA A100-SXM4-80GB": 312e12,
        "GT 710": None,
    }
    for name, peak in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        assert flops.peak_flops(torch.device("cuda"), bf16=True) == peak
    assert flops.peak_flops(torch.device("cpu"), bf16=True) is None
    assert flops.peak_flops(torch.device("cuda"), bf16=False) is None

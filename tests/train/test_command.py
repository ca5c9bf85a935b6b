"""``bayesmem train`` as a user meets it."""

import json

import pytest
import typer
from typer.testing import CliRunner

from bayesmem.commands.train import train
from train.small import TEXT

APP = typer.Typer()
APP.command("train")(train)
TINY = "--hidden 16 --layers 1 --heads 1 --head-dim 4 --mlp 16 --tokens 256 --length 16 --batch-size 4 --log-every 1"


def said(*arguments):
    result = CliRunner().invoke(APP, [str(one) for one in arguments])
    if isinstance(result.exception, ValueError):
        return result.exit_code, str(result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_from_text_to_a_model_and_on(tmp_path):
    text, out = tmp_path / "a.txt", tmp_path / "out"
    text.write_text(TEXT)
    code, output = said(text, "--out", out, "--held-out", text.with_suffix(".md"), *TINY.split())
    assert code == 1 and "no file or folder at" in output
    code, output = said(text, "--out", out, *TINY.split(), "--attention-every", 1, "--tie")
    assert code == 0 and "nothing is evaluated" in output and "4 steps of 64 tokens" in output
    assert (out / "model" / "tokenizer.json").is_file()
    saved = json.loads((out / "run.json").read_text())["model"]
    assert saved["attention"] == {"num_heads": 1, "head_dim": 4} and saved["tie_word_embeddings"]
    assert "holds a run already" in said(text, "--out", out, *TINY.split())[1]
    code, output = said("--out", out, "--resume")
    assert code == 0 and "gone on from step 4" in output
    code, output = said("--out", out, "--resume", "--hidden", 32)
    assert "model was" in output and "'hidden_size': 32" in output
    assert "lr" in said("--out", out, "--resume", "--lr", 3)[1].replace("learning_rate", "lr")
    code, output = said(
        text, "--out", tmp_path / "tuned", "--from", out / "model", "--tokens", 64, "--length", 16, "--batch-size", 4
    )
    assert code == 0, output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "no text given"),
        (["{}", "--from", "x", "--hidden", "3"], "the model in that folder has its own"),
        (["{}", "--config", "{}", "--hidden", "3"], "--config with hidden: the file says the model's shape"),
        (["{}", "--config", "{}"], "is no JSON"),
        (["{}", "--config", "gone.json"], "gone.json cannot be read"),
        (["{}", "--design", "nonsense"], "nonsense"),
        (["{}", "--schedule", "linear"], "schedule is 'linear'"),
        (["{}", "--batch-size", "0"], "batch_size is 0"),
        (["{}", "--from", "gone"], "no tokenizer at gone"),
    ],
)
def test_bad_input_is_told(tmp_path, arguments, expected):
    text = tmp_path / "a.txt"
    text.write_text(TEXT)
    code, output = said(*(str(text) if one == "{}" else one for one in arguments), "--out", tmp_path / "out")
    assert code != 0 and expected in output
    assert not (tmp_path / "out" / "model").exists()


def test_a_config_file_says_the_shape(tmp_path):
    text, shape = tmp_path / "a.txt", tmp_path / "model.json"
    text.write_text(TEXT)
    mixer = {"num_heads": 1, "head_dim": 4, "design": "gated_deltanet"}
    shape.write_text(json.dumps({"model_type": "bayesmem", "hidden_size": 16, "num_hidden_layers": 1, "mixer": mixer}))
    code, output = said(
        text, "--out", tmp_path / "out", "--config", shape, "--tokens", 64, "--length", 16, "--batch-size", 4
    )
    assert code == 0, output
    saved = json.loads((tmp_path / "out" / "model" / "config.json").read_text())
    assert saved["mixer"] == mixer and saved["vocab_size"] == 257

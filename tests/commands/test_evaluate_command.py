"""``bayesmem eval``, as a user types it: write retrieval text, train on it, evaluate what came out."""

import os
from dataclasses import replace
from importlib import resources

import pytest
import typer
from typer.testing import CliRunner

from bayesmem.commands.evaluate import evaluations
from bayesmem.commands.train import train
from bayesmem.tasks.ruler import TASKS

BOOK = resources.files("bayesmem") / "data" / "the_invisible_man.txt"
SHAPE = ("--hidden", 16, "--layers", 1, "--heads", 1, "--head-dim", 8, "--mlp", 16)


def typed(app, *arguments):
    return CliRunner().invoke(app, [os.fspath(x) if isinstance(x, os.PathLike) else str(x) for x in arguments])


@pytest.mark.usefixtures("unchecked")
def test_from_text_to_table(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "s-niah-1", replace(TASKS["s-niah-1"], most_tokens=6))
    trainer = typer.Typer()
    trainer.command()(train)
    book = tmp_path / "book.txt"
    book.write_text(BOOK.read_text()[:150_000])
    needles = tmp_path / "needles.jsonl"
    out = typed(evaluations, "retrieval-text", needles, "--tokens", 20_000, "--longest", 300, "--haystack", book)
    assert out.exit_code == 0 and "documents, 20," in out.output, out.exception
    again = typed(evaluations, "retrieval-text", needles)
    assert "is there already" in str(again.exception)
    given = ("--tokenizer", "bpe", "--vocab", 400, "--length", 32, "--batch-size", 4, "--tokens", 512)
    out = typed(trainer, book, needles, "--out", tmp_path / "run", *given, *SHAPE)
    assert out.exit_code == 0, out.exception

    model, records = tmp_path / "run" / "model", tmp_path / "eval"
    asked = ("ruler", model, "--length", 512, "--documents", 2, "--out", records)
    out = typed(evaluations, *asked)
    assert out.exit_code == 0 and "run: s-niah-1 at 512, seed 0: 0.0 ± 0.0" in out.output, (out.output, out.exception)
    assert "seed 0" not in typed(evaluations, *asked).output  # recorded already
    twice = ("ruler", model, model, "--length", 512, "--documents", 2, "--out", records)
    out = typed(evaluations, *twice, "--label", "run", "--label", "again")
    assert "again: s-niah-1 at 512" in out.output and "run: s-niah-1" not in out.output, out.exception
    assert "checkpoints of one name (run, run)" in str(typed(evaluations, *twice).exception)
    assert "1 of --label for 2 checkpoints" in str(typed(evaluations, *twice, "--label", "a").exception)
    out = typed(evaluations, "text", model, book, "--length", 100, "--tokens", 500, "--out", records)
    assert out.exit_code == 0 and "over 500 tokens" in out.output and "position     64 to    100" in out.output
    page = (records / "ruler.md").read_text()
    assert "| s-niah-1 | 0.0 ± 0.0 |" in page and "| run | book.txt | 100 |" in page


def test_refusals_reach_the_user(tmp_path):
    for arguments, said in (
        (("ruler", tmp_path, "--task", "qa"), "qa: needs questions that RULER downloads; give --questions a file"),
        (("ruler", tmp_path, "--task", "none"), "no RULER task 'none'"),
        (("ruler", tmp_path), "holds no *.safetensors"),
        (("text", tmp_path, "none.txt", "--length", "1"), "length is 1"),
        (("retrieval-text", tmp_path / "x.txt"), "does not end in .jsonl"),
    ):
        out = typed(evaluations, *arguments)
        assert isinstance(out.exception, ValueError) and said in str(out.exception)

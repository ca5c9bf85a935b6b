"""``bayesmem run language`` from a shell's side: options reach the study, and its folder holds the page."""

import pytest
import typer
from typer.testing import CliRunner

from bayesmem.commands.language import run_language
from bayesmem.report.records import records_in

app = typer.Typer()
app.command()(run_language)
FEW = ("--model", "bayesian", "--model", "kda", "--matched", "state", "--lr", "1e-2", "--seeds", "1")


def invoke(*arguments):
    return CliRunner().invoke(app, [str(one) for one in arguments])


def test_a_smoke_run_leaves_records_and_a_page(tmp_path, unchecked):  # accelerate rebuilds bf16 outputs its way
    planned = invoke("--smoke", *FEW, "--out", tmp_path, "--plan")
    assert planned.exit_code == 0 and "2 due, 0 done; waiting: matched by state: learning" in planned.output
    assert "vocabulary 257" in planned.output and not records_in(tmp_path).all()
    done = invoke("--smoke", *FEW, "--out", tmp_path, "--output-gate", "none", "--tokens", 1024, "--bf16")
    assert done.exit_code == 0, done.output
    assert "2 finished, 0 left" in done.output
    first, second = records_in(tmp_path).all()
    assert (first.name, second.name) == ("bayesian", "kda")
    assert first.settings["shape"]["mixer"] == {"output_gate": "none"} and first.settings["recipe"]["bf16"] is True
    assert first.figures["steps"] == 4
    page = (tmp_path / "language.md").read_text()
    assert "**1,024 tokens**" in page and "mixers: output_gate none" in page
    drawn = {f"language_{what}-{theme}.svg" for what in ("losses", "position") for theme in ("light", "dark")}
    assert {p.name for p in (tmp_path / "img").iterdir()} == drawn


def test_options_that_do_not_fit_are_refused_before_any_work(tmp_path):
    for options, said in (
        (("--smoke", "--model", "lstm"), "design is 'lstm'"),
        (("--smoke", "--widened", "both"), "widened is 'both'"),
        (("--data", "text.txt"), "no held-out text"),
        (("--held-out", "text.txt"), "no text given"),
    ):
        result = invoke(*options, "--out", tmp_path)
        with pytest.raises(ValueError, match=said):
            raise result.exception
    assert not records_in(tmp_path).all()

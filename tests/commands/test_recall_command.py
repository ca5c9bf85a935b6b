"""``bayesmem run recall`` hands its options on, and refuses what the study does not have."""

import pytest
import typer
from typer.testing import CliRunner

from bayesmem.commands.recall import recall
from bayesmem.experiments import recall_study


@pytest.fixture
def command():
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(recall)
    return lambda *words: CliRunner().invoke(app, words)


def test_options_reach_the_study(command, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(recall_study, "run", lambda *given: asked.append(given))
    words = ("--scale", "smoke", "--world", "lookup", "--design", "deltanet", "--seeds", "2", "--seed", "3")
    done = command("--out", str(tmp_path), *words, "--steps", "7")
    assert done.exit_code == 0 and "recall.md" in done.output
    ((config, out, worlds, designs, seeds),) = asked
    assert config == recall_study.SCALES["smoke"](train=config.train) and config.train.steps == 7
    assert (out, worlds, designs, list(seeds)) == (tmp_path, ("lookup",), ("deltanet",), [3, 4])


def test_a_stop_is_told(command, tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt("stopped at step 2 of 3")

    monkeypatch.setattr(recall_study, "run", stopped)
    done = command("--out", str(tmp_path))
    assert (
        done.exit_code == 130 and "stopped at step 2 of 3" in done.output and "What was finished is kept" in done.output
    )


def test_an_unknown_scale_is_refused(command, tmp_path):
    done = command("--out", str(tmp_path), "--scale", "huge")
    assert isinstance(done.exception, ValueError) and "expected one of smoke, default, large" in str(done.exception)

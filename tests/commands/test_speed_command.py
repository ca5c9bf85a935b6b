"""``bayesmem bench-model`` at a tiny size: every figure is there, and what is recorded is not measured again."""

import pytest
from typer.testing import CliRunner

from bayesmem.cli import app
from bayesmem.experiments import speed
from bayesmem.report.records import records_in

SIZES = {"hidden": 16, "layers": 1, "heads": 1, "head-dim": 8, "vocab": 40, "length": 24, "batch-size": 2}
EFFORT = {"steps": 1, "prompt": 4, "generated": 2, "sequences": 2}
OPTIONS = [word for name, value in (SIZES | EFFORT).items() for word in (f"--{name}", str(value))]


@pytest.mark.usefixtures("unchecked")
def test_training_and_generation_are_timed_and_recorded(tmp_path, monkeypatch):
    done = CliRunner().invoke(app, ["bench-model", "--out", str(tmp_path), *OPTIONS])
    assert done.exit_code == 0, done.output
    assert "needs a GPU" in done.output.replace("need a GPU", "needs a GPU")
    found: dict[str, dict[str, float]] = {}
    for record in records_in(tmp_path).all():
        found.setdefault(record.name, {}).update(record.figures)
    assert set(found) == {"bayesian", "gated_deltanet"}
    for figures in found.values():
        assert figures["train_tokens_per_s"] > 0 and figures["generated_tokens_per_s"] > 0
    assert found["bayesian"]["parameters"] > found["gated_deltanet"]["parameters"]

    for part in speed.PARTS:
        monkeypatch.setattr(speed, part, lambda *_: pytest.fail("measured again"))
    again = CliRunner().invoke(app, ["bench-model", "--out", str(tmp_path), *OPTIONS])
    assert again.exit_code == 0 and again.output.count("recorded already") == 2


def test_bad_requests_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no model 'gpt'; expected of bayesian"):
        speed.run(speed.SpeedConfig(), tmp_path, ("gpt",))
    with pytest.raises(ValueError, match="no part 'decoding'; expected of training, generation"):
        speed.run(speed.SpeedConfig(), tmp_path, parts=("decoding",))
    with pytest.raises(ValueError, match="steps is 0; expected at least 1"):
        speed.SpeedConfig(steps=0)
    done = CliRunner().invoke(app, ["bench-model", "--prompt", "9", "--length", "8"])
    assert isinstance(done.exception, ValueError) and "longer than --length 8" in str(done.exception)


def test_the_mlp_is_as_wide_as_the_peers():
    assert speed.SpeedConfig().intermediate_size == 2816

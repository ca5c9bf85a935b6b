"""The command line as a user meets it, with tiny settings."""

import subprocess
import sys

import pytest
from matplotlib.figure import Figure
from typer.testing import CliRunner

from bayesmem import cli
from bayesmem.experiments import recall
from bayesmem.report.records import Records
from bayesmem.tasks import text


def bayesmem(*arguments, cwd=None):
    return subprocess.run([sys.executable, "-m", "bayesmem.cli", *arguments], capture_output=True, text=True, cwd=cwd)


def test_every_command_has_help():
    for command in (
        [],
        ["demo"],
        ["run"],
        ["run", "collision"],
        ["run", "recall"],
        ["run", "recall-discrete"],
        ["run", "mqar"],
        ["run", "language"],
        ["run", "text"],
        ["report"],
    ):
        result = CliRunner().invoke(cli.app, [*command, "--help"])
        assert result.exit_code == 0 and "Usage" in result.output


def test_collision_writes_records_and_a_page(tmp_path, monkeypatch):
    quick = ["run", "collision", "--out", str(tmp_path), "--quick", "--sweep", "collision", "--sweep", "noise"]
    result = CliRunner().invoke(cli.app, quick)
    assert result.exit_code == 0, result.output
    assert "holds" in result.output and "fails" not in result.output
    assert "data:image/svg+xml;base64," in (tmp_path / "report.html").read_text()
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **options: file.write("<svg/>"))  # once is enough
    drawn = CliRunner().invoke(cli.app, ["report", str(tmp_path), "--pictures", str(tmp_path / "img")])
    assert drawn.exit_code == 0
    names = {
        f"{name}-{theme}.svg" for name in ("collision_collision", "collision_noise") for theme in ("light", "dark")
    }
    assert {p.name for p in (tmp_path / "img").iterdir()} == names
    before = Records(tmp_path / "records.jsonl").all()
    assert [r.name for r in before] == ["collision", "noise", "verdicts"]
    CliRunner().invoke(cli.app, quick)
    assert Records(tmp_path / "records.jsonl").all() == before  # nothing is done twice


def test_recall_end_to_end(tmp_path):
    tiny = recall.RecallConfig(
        vocab_size=20,
        hidden_size=16,
        head_dim=4,
        trained=((16, 2),),
        tested=((16, 2), (16, 3)),
        rows=40,
        test_rows=10,
        train=recall.TrainConfig(steps=3, batch_size=8),
    )
    recall.run(tiny, tmp_path)
    records = Records(tmp_path / "records.jsonl")
    bayes, delta = (records.find("recall", name) for name in ("Bayesian Layer", "Gated DeltaNet"))
    assert [row[:2] for row in bayes.figures["accuracy"]] == [[16, 2], [16, 3]]
    assert sum(count for *_, count in bayes.figures["by_variance"]) == 30
    assert delta.figures["state_per_layer"] >= bayes.figures["state_per_layer"] == 32


def test_auroc():
    import numpy as np

    score, positive = np.array([0.1, 0.2, 0.2, 0.9]), np.array([False, False, True, True])
    assert recall.auroc(score, positive) == pytest.approx(3.5 / 4)
    assert recall.auroc(score, np.zeros(4, bool)) == 0.5


def test_text_end_to_end(tmp_path):
    book = tmp_path / "book.txt"
    book.write_bytes(text.load().train.tobytes()[:20_000])  # little to be measured on
    result = bayesmem("run", "text", "--steps", "2", "--out", str(tmp_path), "--text", str(book))
    assert result.returncode == 0, result.stderr
    html = (tmp_path / "report.html").read_text()
    assert "held-out bits per byte" in html
    assert 'class="passage"' in html


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["demo", "--text", "missing.txt"], "no text file at missing.txt"),
        (["run", "collision", "--noise", "-1"], "noise_var is -1"),
        (["run", "collision", "--precision", "3"], "precision is 3"),
        (["run", "collision", "--sweep", "nonsense"], "there is no sweep nonsense"),
        (["report", "records.jsonl"], "say what to draw from it"),
        (["report", "nowhere.jsonl", "--results", "results.md"], "has no sweep repeats"),
        (["report", "nowhere"], "no records at"),
        (["run", "recall-discrete", "--vocab-size", "40"], "too few to ask for as many strangers as 10 pairs"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bayesmem", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    stderr = capsys.readouterr().err
    assert ended.value.code == 2
    assert said in stderr.replace("\n", " ") and "Traceback" not in stderr and not list(tmp_path.glob("*"))


def test_bad_input_is_one_line_of_a_process(tmp_path):
    result = bayesmem("report", "nowhere", cwd=tmp_path)
    assert result.returncode == 2 and result.stdout == ""
    assert "no records at" in result.stderr.replace("\n", " ") and "Traceback" not in result.stderr


def test_an_interrupted_run_keeps_what_it_has(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt("stopped at step 3")

    monkeypatch.setattr(cli, "_recall", interrupted)
    part = cli._collision
    monkeypatch.setattr(cli, "_collision", lambda out, seed: part(out, seed, sweeps=["collision"]))
    result = CliRunner().invoke(cli.app, ["demo", "--out", str(tmp_path)])
    assert result.exit_code == 130
    assert "stopped at step 3" in result.output and "same command goes on" in result.output
    assert (tmp_path / "report.html").is_file()

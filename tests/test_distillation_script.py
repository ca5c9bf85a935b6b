"""The distillation run from text to records, as one command, at its smoke size."""

import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from bayesmem.report.records import Records

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_it_goes_from_text_to_records_and_goes_on_from_them(tmp_path):
    text = files("bayesmem").joinpath("data/the_invisible_man.txt").read_text(encoding="utf-8")
    size = len(text) // 8
    parts = [json.dumps({"text": text[i * size : (i + 1) * size]}) + "\n" for i in range(8)]
    books, held_out, out = tmp_path / "books.jsonl", tmp_path / "held.jsonl", tmp_path / "out"
    books.write_text("".join(parts[:6]))
    held_out.write_text("".join(parts[6:]))
    command = [sys.executable, ROOT / "benchmarks/distillation.py", books, held_out, out, "--smoke"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    arms = {"student", "control-tokens", "control-flops", "control-seconds"}
    assert {record.name for record in Records(out / "distill.jsonl").all()} == {"teacher", *arms}
    asked = Records(out / "ruler.jsonl").all()
    assert {record.name for record in asked} == {"teacher", *(f"{arm}-0" for arm in arms)} and len(asked) == 5 * 12
    (out / "needles2.jsonl").write_text("")  # another step's result is damaged: what needs it says so, and all stops
    (out / "prepared" / "train.json").unlink()
    (out / "teacher" / "model" / "config.json").unlink()
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode != 0 and "the same command goes on from it" in again.stdout

"""The distillation's section: every number from records, of several seeds and with RULER's beside."""

import pytest

from bayesmem.report import distill
from bayesmem.report.records import Records

RUN = {"seed": 0, "tokens": 640, "batch_size": 4, "length": 16, "data": ["a"], "held_out": ["b"], "start": "t", "lr": 1}
MIX = {"align": [[0, 1], [0.3, 0]], "kl": [[0, 1]], "ce": [[0, 0.5], [1, 1]]}
PERPLEXITY = {"teacher": (4.0, 4.0), "student": (4.1, 4.14), "control-tokens": (4.05, 4.06)}
SCORES = {"student": ("1110", "1100"), "control-tokens": ("1000", "1000")}


def write(path, seeds=(0, 1), ruler=True, fingerprint="f"):
    records = Records(path)
    for seed in seeds:
        for name, values in PERPLEXITY.items():
            tokens = 640 + 64 * (name == "control-tokens")
            settings = {"run": RUN | {"seed": seed, "tokens": tokens}, "options": {"mix": MIX, "trains": "all"}}
            settings |= {"devices": 1, "kind": "gated_deltanet", "mark": "m"}
            settings["options"]["align"] = "stream"
            figures = {"perplexity": values[seed], "bits_per_byte": values[seed] / 2, "weights": f"{name}{seed}"}
            if name != "teacher":
                kept = {"retention": [[0.5, 0.4, 0.5, 0.6], [0.7, 0.1, 0.7, 0.9]]} if name == "student" else {}
                figures |= {"parameters": 1234, "trained": 1000, "steps": 10, "flops": 1e9, "device_seconds": 2.0}
                figures |= {"evaluations": [[5, 2.2], [10, 2.1]], "beginning": {"kl": 0.01, **kept}, "ending": kept}
            records.add("distill", name, settings, figures)
        for name, scores in SCORES.items() if ruler else ():
            for length, held in ((16, "1111"), (32, scores[seed]), (64, scores[seed])):
                at = {"weights": f"{name}{seed}", "task": "s-niah-1", "length": length, "seed": 0}
                mark = fingerprint if name == "student" else "f"
                records.add("ruler", name, at, {"scores": held, "of": 1, "fingerprint": mark})
    return records


def test_numbers_are_the_records(tmp_path):
    records = write(tmp_path / "distill.jsonl")
    text = distill.section(records, tmp_path / "page.md", tmp_path / "img")
    assert "1,234 parameters, 640 tokens, 2 seeds" in text and "kept reset" in text
    assert "1 at 0%, 0 at 30%; KL 1;" in text
    rows = {
        line.split("|")[1].strip(): [x.strip() for x in line.split("|")[2:]]
        for line in text.splitlines()
        if "|" in line
    }
    # cost: 2.5% and 3.5% over the teacher's; t = 12.706 of one degree of freedom, s = 0.7071, over the root of 2
    assert "| student | 10 | 1e+09 | 2.0 | 2.0600 ± 0.1271 | 4.120 | +3.00% ± 6.35 | 0.600 |" in text
    assert "| control-tokens | +0.0325 ± 0.0953 |" in text.replace(" |\n", " |")
    assert rows["16"] == ["+0.0 [+0.0, +0.0]; seeds +0.0, +0.0", ""]
    # documents over seeds: 0, 1, 0.5, 0: mean 0.375, s = 0.4787, 1.96 s / 2 = 0.469
    assert rows["32"] == ["+37.5 [-9.4, +84.4]; seeds +50.0, +25.0", ""]
    assert rows["mean beyond 16"][0].startswith("+37.5 [+6.8, +68.2]")
    assert "| 32 | 62.5 | 25.0 |" in text
    drawn = distill.pictures(records)
    assert (
        list(drawn) == ["distill"] and drawn["distill"].light.startswith("<?xml") and "2 seeds" in drawn["distill"].alt
    )


def test_one_seed_has_no_interval_and_no_evaluation_no_table(tmp_path):
    text = distill.section(write(tmp_path / "a.jsonl", (0,), ruler=False), tmp_path / "page.md", tmp_path)
    assert "one seed" in text and "±" not in text and "Retrieval" not in text
    other = write(tmp_path / "b.jsonl", (0,))
    text = distill.section(Records(tmp_path / "a.jsonl"), tmp_path / "page.md", tmp_path, other)
    assert "Retrieval, s-niah-1" in text and "seeds +" not in text


def test_nothing_recorded_is_an_empty_section(tmp_path):
    records = Records(tmp_path / "none.jsonl")
    assert distill.section(records, tmp_path / "page.md", tmp_path) == "" and distill.pictures(records) == {}


def test_other_documents_are_refused(tmp_path):
    with pytest.raises(ValueError, match="the arms were asked different documents"):
        distill.section(write(tmp_path / "a.jsonl", fingerprint="g"), tmp_path / "page.md", tmp_path)


def test_intervals():
    assert distill.interval([3.0]) == (3.0, float("inf"))
    middle, half = distill.interval([1.0, 2.0, 3.0])
    assert middle == 2 and half == pytest.approx(4.303 / 3**0.5)
    assert distill.interval([0.0, 1.0] * 20)[1] == pytest.approx(2.0227 * 0.50637 / 40**0.5, rel=2e-3)  # t of 39

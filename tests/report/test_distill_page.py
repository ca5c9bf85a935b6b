"""The distillation's section: every number from records, of several seeds and with RULER's beside."""

from pathlib import Path

import numpy as np
import pytest

from bayesmem.report import distill, effects
from bayesmem.report.records import Records
from bayesmem.report.results import markdown

ROOT = Path(__file__).parents[2]
RUN = {
    "learning_rate": 3e-4,
    "seed": 0,
    "tokens": 640,
    "batch_size": 4,
    "length": 16,
    "data": ["a"],
    "held_out": ["b"],
    "start": "t",
}
MIX = {"align": [[0, 1], [0.3, 0]], "kl": [[0, 1]], "ce": [[0, 0.5], [1, 1]]}
PERPLEXITY = {
    "teacher": (4.0, 4.0), "student": (4.1, 4.14), "control-tokens": (4.05, 4.06), 
}  # fmt: skip
# Right or wrong, document by document: of every seed, then of the teacher.
SCORES = {"student": ("11101110", "11001110"), "control-tokens": ("10001000", "10001100")}
TEACHER = "10000000"


def write(
    path, seeds=(0, 1), ruler=True, fingerprint="f", perplexity=PERPLEXITY, documents=SCORES, trained_as=None,
    retention=0.5,
):  # fmt: skip
    """Records as `bayesmem distill` writes them, one seed after the other."""
    records = Records(path)
    for seed in seeds:
        for name, values in perplexity.items():
            tokens = 640 + 64 * (name == "control-tokens")
            settings = {
                "run": RUN | {"seed": seed, "tokens": tokens},
                "options": {"mix": MIX, "trains": "all"},
                "retention": retention,
            }
            settings |= {"devices": 1, "kind": "gated_deltanet", "mark": "m"}
            settings["options"]["align"] = "stream"
            weights = name if name == "teacher" else f"{name}{seed}"
            figures = {"perplexity": values[seed], "bits_per_byte": values[seed] / 2, "weights": weights}
            if name == "teacher" and trained_as:
                figures["trained_as"] = trained_as
            if name != "teacher":
                kept = {"retention": [[0.5, 0.4, 0.5, 0.6], [0.7, 0.1, 0.7, 0.9]]} if name == "student" else {}
                figures |= {"parameters": 1234, "trained": 1000, "steps": 10, "flops": 1e9, "device_seconds": 2.0}
                figures |= {"evaluations": [[5, 2.2], [10, 2.1]], "beginning": {"kl": 0.01, **kept}, "ending": kept}
            records.add("distill", name, settings, figures)
    if ruler:
        evaluate(path, documents, seeds, fingerprint)
    return records


def evaluate(path, documents, seeds, fingerprint="f", tasks=("s-niah-1",), tokens=None, teacher=TEACHER):
    """RULER's records as `bayesmem eval ruler` writes them, for all arms and the teacher, labels as one likes."""
    records = Records(path.with_name("ruler.jsonl"))
    arms = [(f"{n}-{seed}", f"{n}{seed}", n, s[seed]) for n, s in documents.items() for seed in seeds]
    for label, weights, name, held in [("teacher", "teacher", "teacher", teacher), *arms]:
        for task in tasks:
            for length in (16, 32, 64):
                at = {"weights": weights, "task": task, "length": length, "seed": 0, "lm_eval": "0"}
                shown = "1" * 8 if length == 16 else held
                figures = {"scores": shown, "of": 1, "tokens": (tokens or {}).get(length, 0.9 * length)}
                figures |= {"fingerprint": fingerprint if name == "student" else "f"}
                records.add("ruler", label, at, figures | {"mean": 0.0, "stderr": 0.0})
    return records


def page(records, tmp_path):
    return distill.section(records, tmp_path / "page.md", tmp_path / "img")


def flat(text):
    """Without line breaks and emphasis."""
    return " ".join(text.replace("*", "").split())


def table(text, heading):
    """Rows of the table whose first line starts so."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(heading))
    rows = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        rows[cells[0]] = cells[1:]
    return rows


def test_numbers_are_the_records(tmp_path):
    records = write(tmp_path / "distill.jsonl")
    text = page(records, tmp_path)
    assert (
        "1,234 parameters, 640 tokens, retention from 0.5, learning rate 0.0003, 2 seeds" in text
        and "kept reset" in text
    )
    assert "1 at 0%, 0 at 30%; KL 1;" in flat(text)
    # cost: 2.5% and 3.5% over the teacher's; t = 12.706 of one degree of freedom, s = 0.7071, over the root of 2
    assert "| student | 10 | 1e+09 | 2.0 | 2.0600 ± 0.1271 | 4.120 | +3.00% ± 6.35 | 0.600 |" in text
    # over the control's: 1.2346% and 1.9704%, half their distance times 12.706
    costs = table(text, "| | bits per byte | perplexity |")
    assert costs["control-tokens"] == ["+0.0325 ± 0.0953", "+1.60% ± 4.68"] and next(iter(costs)) == "teacher"
    means = table(text, "| tokens | teacher | student | control-tokens |")
    # of 8 documents the student has 6 and 5 right, the control 2 and 3, the teacher 1
    assert means["32"] == ["12.5", "68.8", "31.2"] == means["all beyond 16"] and means["16"] == ["100.0"] * 3
    gains = table(text, "| tokens | teacher | control-tokens |")
    assert gains["16"] == ["+0.0 [+0.0, +0.0]; seeds +0.0, +0.0"] * 2
    differences = np.array(
        [[float(a) - float(b) for a, b in zip(x, y, strict=True)] for x, y in zip(*SCORES.values(), strict=True)]
    )
    for name, length in (("32", 1), ("all beyond 16", 2)):
        found = effects.crossed(np.tile(differences, length))
        told = f"{100 * found.mean:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]; seeds +50.0, +25.0"
        assert gains[name][1] == told and found.mean == 0.375
    assert "covers both what documents were drawn and the seeds" in flat(text)
    drawn = distill.pictures(records)
    assert set(drawn) == {"distill", "distill_retrieval", "distill_ruler"} and "2 seeds" in drawn["distill"].alt
    for name, picture in drawn.items():
        assert picture.light.startswith("<?xml") and picture.light != picture.dark
        assert f"{name}-light.svg" in text and f'alt="{picture.alt}"' in text
    assert "student" in drawn["distill_ruler"].alt and "16 tokens" in drawn["distill_retrieval"].alt


@pytest.mark.parametrize(
    ("student", "control", "cost", "said"),
    [
        ("1111111111111110", "0" * 15 + "1", 4.0, ("The student retrieves more, by more than the interval", "Held:")),
        ("1111111111111110", "0" * 15 + "1", 5.0, ("retrieves more", "a cost of more than 3%", "Not held:")),
        ("0" * 16, "1" * 15 + "0", 4.0, ("The student retrieves less, by more than the interval", "Not held:")),
        ("10" * 8, "01" * 8, 4.0, ("Within the interval: no gain is shown", "a cost of at most 3%", "Not held:")),
    ],
)
def test_sentences_say_whether_it_is_so(tmp_path, student, control, cost, said):
    perplexity = {"teacher": (4.0, 4.0), "student": (cost, cost * 1.001), "control-tokens": (4.0, 4.0)}
    scores = {"student": (student, student), "control-tokens": (control, control)}
    records = write(tmp_path / "distill.jsonl", perplexity=perplexity, ruler=False)
    evaluate(records.path, scores, (0, 1), teacher=control)
    text = flat(page(records, tmp_path))
    assert all(words in text for words in said)
    assert ("Held:" in text) == ("Held:" in said)
    assert "One seed" not in text


def test_one_seed_says_so_and_nothing_evaluated_claims_nothing(tmp_path):
    text = page(write(tmp_path / "a" / "distill.jsonl", (0,), ruler=False), tmp_path)
    assert "one seed" in text and "±" not in text and "nothing is claimed" in flat(text)
    assert "held that" not in text and "retrieval" not in distill.pictures(Records(tmp_path / "a" / "distill.jsonl"))
    text = page(write(tmp_path / "b" / "distill.jsonl", (0,)), tmp_path)
    assert "interval is over documents alone" in flat(text) and "seeds +" not in text


def test_documents_that_are_no_longer_than_the_rows_are_not_beyond(tmp_path):
    records = write(tmp_path / "distill.jsonl", ruler=False)
    evaluate(records.path, SCORES, (0, 1), tokens={32: 15.0, 64: 20.0})
    text = page(records, tmp_path)
    assert "all beyond" not in text and "accuracy is 68.8% for the student and 31.2% for control-tokens" in flat(text)
    assert "s-niah-1 at 32 (15), s-niah-1 at 64 (20)" in flat(text)


def test_a_control_that_was_asked_less_is_blank_where_it_was_not(tmp_path):
    records = write(tmp_path / "distill.jsonl")
    kept = [line for line in (tmp_path / "ruler.jsonl").read_text().splitlines() if "control-tokens1" not in line]
    (tmp_path / "ruler.jsonl").write_text("\n".join(kept) + "\n")
    means = table(page(records, tmp_path), "| tokens | teacher | student | control-tokens |")
    assert means["32"] == ["12.5", "68.8", "25.0 (1 of 2 seeds)"]


def test_other_tasks_are_beside_the_claim_and_other_checkpoints_have_a_part(tmp_path):
    records = write(tmp_path / "distill.jsonl", ruler=False)
    evaluate(records.path, SCORES, (0, 1), tasks=("s-niah-1", "vt"))
    at = {"weights": "else", "task": "vt", "length": 32, "seed": 0, "lm_eval": "0"}
    shown = {"scores": "10", "of": 1, "tokens": 30.0, "fingerprint": "f", "mean": 0.5, "stderr": 0.5}
    Records(tmp_path / "ruler.jsonl").add("ruler", "stranger", at, shown)
    text = page(records, tmp_path)
    assert "mean S-NIAH accuracy" in flat(text) and "(s-niah-1; `bayesmem eval ruler`)" in text
    assert list(table(text, "| task | teacher |")) == ["s-niah-1", "vt"]
    assert "## RULER, other checkpoints" in text and "**stranger**" in text and "**student-0**" not in text
    assert "stranger" in distill.pictures(records)["ruler"].alt


def test_arms_in_one_file_with_their_evaluations(tmp_path):
    write(tmp_path / "distill.jsonl", trained_as={"tokens": 5000, "length": 8, "data": ["books"]})
    both = "".join((tmp_path / name).read_text() for name in ("distill.jsonl", "ruler.jsonl"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "records.jsonl").write_text(both)
    records = Records(tmp_path / "out" / "records.jsonl")
    assert distill.write(records, tmp_path / "out") == tmp_path / "out" / "distill.md"
    text = (tmp_path / "out" / "distill.md").read_text()
    assert "trained by `bayesmem train` on 5,000 tokens in rows of 8 (books)" in flat(text)
    assert "+37.5" in text and (tmp_path / "out" / "img" / "distill_retrieval-dark.svg").is_file()


def test_it_is_a_part_of_the_results(tmp_path):
    (tmp_path / "collision.jsonl").write_text((ROOT / "docs" / "records" / "collision.jsonl").read_text())
    write(tmp_path / "distill.jsonl")
    text = markdown(Records(tmp_path / "collision.jsonl"), tmp_path / "results.md", tmp_path / "img")
    assert page(Records(tmp_path / "distill.jsonl"), tmp_path).strip() in text


def test_nothing_recorded_is_an_empty_section(tmp_path):
    records = Records(tmp_path / "none.jsonl")
    assert (
        page(records, tmp_path) == "" and distill.pictures(records) == {} and distill.write(records, tmp_path) is None
    )
    assert distill.beside(records).path == tmp_path / "distill.jsonl"


def test_other_documents_are_refused(tmp_path):
    records = write(tmp_path / "distill.jsonl", fingerprint="g")
    with pytest.raises(ValueError, match="student-0 and teacher were asked different documents"):
        page(records, tmp_path)


def test_documents_that_only_the_teacher_was_asked_count_for_another_study(tmp_path):
    records = write(tmp_path / "distill.jsonl")
    alone = table(page(records, tmp_path), "| tokens | teacher | student | control-tokens |")
    asked = Records(tmp_path / "ruler.jsonl")
    for length in (16, 32, 64):  # by a study of other documents, of the same teacher
        at = {"weights": "teacher", "task": "s-niah-1", "length": length, "seed": 7, "lm_eval": "0"}
        figures = {"scores": "0" * 8, "of": 1, "tokens": 0.9 * length, "fingerprint": "f", "mean": 0.0, "stderr": 0.0}
        asked.add("ruler", "teacher", at, figures)
    assert table(page(records, tmp_path), "| tokens | teacher | student | control-tokens |") == alone


def test_a_default_retention_is_told_as_the_student_had_it(tmp_path):
    text = page(write(tmp_path / "distill.jsonl", retention=None), tmp_path)
    assert "640 tokens, retention from 0.6, learning rate" in text  # layers of .5 and .7

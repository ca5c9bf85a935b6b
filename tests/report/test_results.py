"""``docs/results.md`` says what its record says, and the record of the study bears out every claim."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from bayesmem.report import bench_plots, distill, language, mqar, recall_study, verdicts
from bayesmem.report.bench_data import beside
from bayesmem.report.collision_words import Reader
from bayesmem.report.records import Record, Records
from bayesmem.report.results import markdown

ROOT = Path(__file__).parents[2]
RECORDS = Records(ROOT / "docs" / "records" / "collision.jsonl")
PAGE = ROOT / "docs" / "results.md"


def unrendered(figure, file, **options):
    """Most of the seconds; what is drawn, and what is said of it, does not depend on it."""
    file.write("<svg/>")


def test_the_page_is_that_of_the_record(monkeypatch):
    monkeypatch.setattr(Figure, "savefig", unrendered)
    monkeypatch.chdir(ROOT)
    assert PAGE.read_text() == markdown(RECORDS, PAGE, ROOT / "docs" / "img")


@pytest.mark.parametrize("rendered", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_its_pictures_are_there(monkeypatch, rendered):
    if not rendered:
        monkeypatch.setattr(Figure, "savefig", unrendered)
    names = [line.split('"')[-2] for line in PAGE.read_text().splitlines() if "src" in line]
    others = [
        bench_plots.pictures(beside(RECORDS)),
        *(part.pictures(part.beside(RECORDS)) for part in (mqar, recall_study, distill, language)),
    ]
    assert len(names) == 2 * (len(verdicts.SWEEPS) + sum(map(len, others)))
    assert all((PAGE.parent / name).is_file() for name in names)


def test_every_claim_holds_at_full_precision():
    found = verdicts.sweeps(RECORDS)
    assert all(record.settings["precision"] == 0.02 for record in found.values())
    rows = verdicts.verdicts(found)
    assert len(rows) == 8 and all(row.holds for row in rows)
    assert sum(len(c["points"]) for r in found.values() for c in r.figures["curves"] if c["kind"] == "exact") > 500


def test_a_study_not_finished_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no sweep repeats, collision"):
        markdown(Records(tmp_path / "records.jsonl"), tmp_path / "results.md", tmp_path)


def test_numbers_in_words():
    record = Record("collision", "repeats", {"noise_var": 0.25}, {"curves": []})
    assert [Reader.text(x) for x in (2083.4, 41234.0, 0.03141, 1.0)] == ["2,080", "41,200", "0.0314", "1"]
    assert Reader(record).setting("noise_var") == "0.25"

"""Records survive a kill; the page is drawn from them, with whatever is there."""

import pytest

from bayesmem.experiments import collision
from bayesmem.report import page
from bayesmem.report.records import Records


def test_records_come_back_as_they_went(tmp_path):
    records = Records(tmp_path / "deep" / "records.jsonl")
    assert records.all() == []
    records.add("e", "n", {"seed": 0, "pair": (1, 2)}, {"x": 1.5})
    found = records.find("e", "n", {"seed": 0, "pair": (1, 2)})
    assert found is not None and found.figures == {"x": 1.5}
    assert {"command", "commit", "device", "versions", "time"} <= set(found.context)
    assert records.find("e", "n", {"seed": 1}) is None


def test_a_torn_last_line_is_dropped(tmp_path):
    records = Records(tmp_path / "records.jsonl")
    records.add("e", "a", {}, {})
    with records.path.open("a") as file:
        file.write('{"experiment": "e", "na')
    assert [r.name for r in records.all()] == ["a"]
    records.add("e", "b", {}, {})
    assert [r.name for r in records.all()] == ["a", "b"]


def test_a_damaged_line_is_named(tmp_path):
    records = Records(tmp_path / "records.jsonl")
    records.path.write_text("nonsense\n{}\n")
    with pytest.raises(ValueError, match="line 1 is no record"):
        records.all()


def test_a_page_of_one_part(tmp_path):
    collision.run(collision.quick(precision=0.5), tmp_path, ["collision", "noise"])
    records = Records(tmp_path / "records.jsonl")
    html = page.write(records, tmp_path / "report.html").read_text()
    assert html.count("data:image/svg+xml;base64,") == 4
    assert "<b>The delta rule overwrites:</b>" in html and "binomial p" in html
    assert "http://" not in html and "https://" not in html  # self-contained
    assert "bayesmem run recall" in html  # what has not run is named


def test_no_records_no_page(tmp_path):
    with pytest.raises(ValueError, match="no records at"):
        page.write(Records(tmp_path / "records.jsonl"), tmp_path / "report.html")

"""RULER's records: scores kept a document, paired differences, tables and pictures from records alone."""

import numpy as np
import pytest

from bayesmem.report import ruler, ruler_plots
from bayesmem.report.records import records_in


def add(records, label, length, values, seed=0, mark="x", tokens=None, parts=1):
    values = np.array(values, dtype=float)
    settings = {"weights": label, "task": "s-niah-1", "length": length, "seed": seed, "lm_eval": "0"}
    figures = ruler.packed(values, [parts] * len(values)) | {
        "mean": float(values.mean()),
        "stderr": ruler.stderr(values),
        "tokens": tokens or 0.9 * length,
        "fingerprint": mark,
    }
    return records.add(ruler.RULER, label, settings, figures)


@pytest.mark.parametrize(("parts", "held"), [([4] * 5, "01234"), ([1, 2, 4, 4, 4], [0, 0.25, 0.5, 0.75, 1])])
def test_scores_come_back(tmp_path, parts, held):
    values = np.array([0, 0.25, 0.5, 0.75, 1])
    figures = ruler.packed(values, parts)
    assert figures["scores"] == held
    record = records_in(tmp_path).add(ruler.RULER, "a", {}, figures)
    np.testing.assert_array_equal(ruler.scores(record), values)


def test_the_interval_covers_as_often_as_it_says():
    """Two models that answer the same documents, one with 10 points more."""
    rng, hits, inside = np.random.default_rng(0), [], []
    for _ in range(1000):
        hard = rng.random(100)
        a, b = (hard < 0.6).astype(float), (hard < 0.5).astype(float)
        flips = rng.random(100) < 0.1
        found = ruler.paired(np.where(flips, b, a), np.where(flips, a, b))  # expected difference 0.1 * (1 - 2 * 0.1)
        hits.append(found.mean)
        inside.append(found.low <= 0.08 <= found.high)
    assert np.mean(hits) == pytest.approx(0.08, abs=0.005)
    assert 0.90 < np.mean(inside) < 0.97


def test_pairs_are_narrower_than_strangers(tmp_path):
    records, rng = records_in(tmp_path), np.random.default_rng(0)
    base = (rng.random(200) < 0.5).astype(float)
    better = np.maximum(base, rng.random(200) < 0.1)
    a = [add(records, "a", 1024, better[:100]), add(records, "a", 1024, better[100:], seed=1)]
    b = [
        add(records, "b", 1024, base[:100]),
        add(records, "b", 1024, base[100:], seed=1),
        add(records, "b", 2048, base),
    ]
    found = ruler.paired_records(a, b)
    assert found.documents == 200 and found.mean == pytest.approx(better.mean() - base.mean())
    assert (found.high - found.low) / 2 < 1.96 * np.hypot(ruler.stderr(better), ruler.stderr(base))
    assert found.low > 0 and str(found).startswith("+")


@pytest.mark.usefixtures("unchecked")
def test_other_documents_are_refused(tmp_path):
    records = records_in(tmp_path)
    a, b = add(records, "a", 1024, [0, 1]), add(records, "b", 1024, [0, 1], mark="y")
    with pytest.raises(ValueError, match="s-niah-1 at 1024 tokens, seed 0: the documents differ"):
        ruler.paired_records([a], [b])
    with pytest.raises(ValueError, match="no task, length and seed in common"):
        ruler.paired_records([a], [add(records, "b", 2048, [0, 1])])
    for sizes in ((3, 4), (1, 1)):
        with pytest.raises(ValueError, match="of the same documents, two or more"):
            ruler.paired(*map(np.ones, sizes))


def test_the_page_says_what_the_records_hold(tmp_path):
    records = records_in(tmp_path)
    add(records, "base", 1024, [1, 0, 1, 0])
    add(records, "base", 8192, [0, 0, 0, 0], tokens=3000.0)
    ours = add(records, "ours", 1024, [1, 1, 1, 0])
    bins = [{"from": 0, "to": 64, "bits_per_byte": 2.5}, {"from": 64, "to": 100, "bits_per_byte": 1.5}]
    records.add(
        ruler.TEXT,
        "ours",
        {"files": ["book.txt"], "length": 100},
        {"bits_per_byte": 1.75, "perplexity": 9.5, "tokens": 1000, "bins": bins},
    )
    page = ruler.section(records, tmp_path / "page.md", tmp_path / "img", "base")
    for line in (
        "| tokens | 1024 | 8192 |",
        "| s-niah-1 | 50.0 ± 28.9 | 0.0 ± 0.0 |",
        "| s-niah-1 | 75.0 ± 25.0 |",
        "s-niah-1 at 8192 (3000).",
        "| ours | s-niah-1 | 1024 | +25.0 [-24.0, +74.0] |",
        "| ours | book.txt | 100 | 1.7500 | 9.500 | 1000 |",
        "| bits | 2.5000 | 1.5000 |",
    ):
        assert line in page, page
    drawn = ruler_plots.pictures(records)
    assert set(drawn) == {"ruler", "eval_text"}
    assert "base" in drawn["ruler"].alt and drawn["ruler"].light != drawn["ruler"].dark
    with pytest.raises(ValueError, match="no checkpoint 'none' among base, ours"):
        ruler.section(records, tmp_path / "page.md", tmp_path / "img", "none")
    records.add(ruler.RULER, "ours", {**records.find(ruler.RULER, "ours").settings, "weights": "other"}, ours.figures)
    assert list(ruler.labels(records)) == ["base", "ours (ours)", "ours (other)"]  # of one label, other weights
    assert list(ruler.labels(records, {"other", "base"})) == ["ours"]
    empty = records_in(tmp_path / "empty")
    assert not ruler.section(empty, tmp_path / "p.md", tmp_path).strip() and not ruler_plots.pictures(empty)

"""The recall study's tables and pictures say what its records say."""

import copy

import pytest

from bayesmem.report import recall_study
from bayesmem.report.recall_data import AXES, worlds
from bayesmem.report.records import Records

POINTS = {"pairs": (4, 8, 64), "length": (20, 40), "noise": (0.1, 3.0), "repeats": (2, 16)}
POINTS |= {"similarity": (0.0, 0.8), "rate": (0.01, 0.1)}
CURVE = [[share / 4, 0.1 * share, 0.05 * share] for share in (1, 2, 3, 4)]
BINS = [[0.1 * i, 0.2 * i, 5] for i in range(1, 4)]
SETTINGS = {
    "world": "linear", "change": "drift", "rate": 0.01, "queries": 8, "key_dim": 16, "value_dim": 8, "num_layers": 1,
    "hidden_size": 64, "head_dim": 32, "head_value_dim": 16, "norm_eps": 10.0, "pairs": [4, 8], "repeats": [1, 2],
    "noise": [0.1], "context": 20, "train": {"steps": 600, "batch_size": 64, "learning_rate": 0.01, "seed": 0},
}  # fmt: skip


def figures(excess: float, variance: bool = True) -> dict:
    axes = {
        axis: [[x, i == len(points) - 1, excess * (i + 1), 0.001, 0.2] for i, x in enumerate(points)]
        for axis, points in POINTS.items()
    }
    part = {"slope": 1.25, "nll": 0.5, "optimal_nll": 0.4, "bins": BINS, "optimal_bins": BINS}
    known = {"scale": 2.0, "trained": part, "beyond": part | {"slope": 3.5}, "coverage": CURVE}
    known["auroc"] = [[4, False, 0.9, 0.95], [64, True, 0.75, 0.85]]
    sizes = {"losses": [], "seconds": 60.0, "parameters": 9000, "state_per_layer": 1536}
    return sizes | {"trained": [excess, 0.001, 0.1], "axes": axes, "variance": known if variance else None}


@pytest.fixture
def records(tmp_path):
    found = Records(tmp_path / "recall.jsonl")

    def add(name, excess, seed=0, variance=True, **changes):
        settings = copy.deepcopy(SETTINGS) | changes
        settings["train"]["seed"] = seed
        found.add("recall_study", name, settings, figures(excess, variance))

    add("bayesian", 9.0, context=10)  # other settings, older: left out
    add("bayesian", 0.01)
    add("bayesian", 0.03, seed=1)
    add("deltanet", 0.04)
    add("mamba2", 0.05, variance=False)
    add("bayesian", 0.01, world="lookup", change="redraw", rate=0.1)
    return found


def test_the_tables(records, tmp_path):
    text = recall_study.section(records, tmp_path / "page.md", tmp_path / "img")
    lines = text.splitlines()
    assert any(
        "| trained | pairs 64 | length 40 | noise 3 | repeats 16 | similarity 0.8 | rate 0.1 |" in x for x in lines
    )
    bayes = next(line for line in lines if line.startswith("| `bayesian` | 1,536 | 9,000 |"))
    assert "**0.0200** (0.0100 to 0.0300) | **0.0600** (0.0300 to 0.0900) |" in bayes
    delta = next(line for line in lines if line.startswith("| `deltanet` | 1,536 |"))
    assert delta.endswith("| 1,536 | 9,000 | 0.0400 | 0.1200 | 0.0800 | 0.0800 | 0.0800 | 0.0800 | 0.0800 |")
    assert "| `bayesian` | 1.250 | 0.500 | 0.400 | 3.500 | 0.500 | 0.400 | 0.750 | 0.850 |" in lines
    assert "| `mamba2` | n/a | n/a | n/a | n/a | n/a | n/a | n/a | n/a |" in lines
    assert "5 minutes of training" in text and "context 10" not in text
    assert "mesanet (linear)" in text and "deltanet (lookup)" in text and " deltanet (linear)" not in text


def test_worlds_hold_the_newest_settings_and_every_seed(records):
    linear, lookup = worlds(records)
    assert (linear.name, lookup.name) == ("linear", "lookup") and linear.trained("bayesian") == [0.01, 0.03]
    assert (
        linear.known("pairs") == (4, 8) and linear.farthest("pairs") == 2 and set(linear.excess("mamba2")) == set(AXES)
    )


def test_pictures(records):
    drawn = recall_study.pictures(records)
    assert set(drawn) == {f"recall_{w}_{p}" for w in ("linear", "lookup") for p in ("excess", "variance")}
    for picture in drawn.values():
        assert picture.light.lstrip().startswith("<?xml") and picture.light != picture.dark


def test_nothing_run_is_an_empty_part(tmp_path):
    records = Records(tmp_path / "none.jsonl")
    assert recall_study.section(records, tmp_path / "page.md", tmp_path) == ""
    assert recall_study.pictures(records) == {} and recall_study.write(records, tmp_path / "out") is None
    assert recall_study.beside(records).path == tmp_path / "recall.jsonl"

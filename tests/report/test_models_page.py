"""Whole models on the page: a ratio is of figures that one commit and device measured."""

import json

from bayesmem.report import models
from bayesmem.report.records import Records

SHAPE = {"num_layers": 2, "hidden_size": 64, "num_heads": 1, "head_dim": 64, "batch_size": 2, "length": 128}
SHAPE |= {"sequences": 2, "prompt": 8}


def _page(folder, *rows):
    lines = [
        {
            "experiment": "speed",
            "name": name,
            "settings": SHAPE,
            "figures": figures,
            "context": {"device": "X"} | {"commit": c},
        }
        for name, figures, c in rows
    ]
    (folder / "speed.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return models.section(Records(folder / "any.jsonl"), folder / "page.md")


def test_a_ratio_is_of_one_commit_even_where_a_newer_figure_stands_alone(tmp_path):
    page = _page(
        tmp_path,
        ("bayesian", {"train_tokens_per_s": 80.0}, "a"),
        (models.PEER, {"train_tokens_per_s": 100.0}, "a"),
        ("bayesian", {"train_tokens_per_s": 95.0}, "b"),
        ("bayesian", {"generated_tokens_per_s": 7.0}, "b"),
    )
    assert "| bayesian | 80 (0.80) | 7 |" in page
    assert f"| {models.PEER} | 100 | not measured |" in page


def test_without_the_peer_the_newest_figure_stands(tmp_path):
    page = _page(
        tmp_path, ("bayesian", {"train_tokens_per_s": 80.0}, "a"), ("bayesian", {"train_tokens_per_s": 95.0}, "b")
    )
    assert "| bayesian | 95 | not measured |" in page


def test_what_failed_says_why(tmp_path):
    assert "`bayesian` did not run: no memory." in _page(tmp_path, ("bayesian", {"failed": "no memory"}, "a"))

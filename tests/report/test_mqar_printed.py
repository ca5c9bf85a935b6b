"""Printed figures are told with their seeds, and as what they are."""

import json
from pathlib import Path

from bayesmem.report.mqar_printed import NAME, SHOWN, section


def _line(model: str, rate: float, seed: int, right: float) -> str:
    accuracy = [[*at, right] for at in SHOWN]
    return json.dumps(
        {"model": model, "learning_rate": rate, "seed": seed, "accuracy": accuracy, "device": "GPU", "commit": "abc"}
    )


def test_the_chosen_rate_counts_with_its_spread(tmp_path: Path) -> None:
    lines = [_line("bayesian", 0.1, 0, 0.5), _line("bayesian", 0.2, 0, 0.6), _line("bayesian", 0.2, 1, 0.8)]
    (tmp_path / NAME).write_text("\n".join([*lines, _line("kda", 0.1, 0, 0.25), _line("kda", 0.2, 0, 0.125)]))
    text = section(tmp_path)
    assert "| `bayesian` | 0.2 | 2 | 0.700 (0.600 to 0.800)" in text
    assert "0.500" not in text  # a rate that the run did not go on with
    assert "| `kda` | 0.1 | 1 | 0.250" in text and "| `kda` | 0.2 | 1 | 0.125" in text
    assert "lost" in text


def test_nothing_without_a_file(tmp_path: Path) -> None:
    assert section(tmp_path) == ""

"""MQAR rows against what Zoology's own generator gave for the same seeds."""

import re
from pathlib import Path

import numpy as np
import pytest

from bayesmem.tasks.mqar import IGNORED, MQARConfig, make, with_strangers

FIXTURE = np.load(Path(__file__).parents[1] / "data" / "zoology_mqar.npz")
CASES = sorted(name.removeprefix("inputs_") for name in FIXTURE if name.startswith("inputs_"))


@pytest.mark.parametrize("case", CASES)
def test_equal_to_zoology(case):
    vocab, length, pairs, rows, seed = map(int, re.findall(r"\d+", case))
    batch = make(MQARConfig(vocab, length, pairs, rows), seed)
    assert np.array_equal(batch.inputs, FIXTURE[f"inputs_{case}"])
    assert np.array_equal(batch.targets, FIXTURE[f"labels_{case}"])


def test_every_key_is_asked_once_for_its_own_value():
    batch = make(MQARConfig(64, 40, 6, 20), seed=3)
    for row, targets in zip(batch.inputs, batch.targets, strict=True):
        stored = dict(zip(row[0:12:2], row[1:12:2], strict=True))
        asked = {row[t]: targets[t] for t in np.flatnonzero(targets != IGNORED)}
        assert asked == stored


def test_fillers_touch_nothing_else():
    plain, filled = (make(MQARConfig(64, 40, 6, 20, random_fillers=f), seed=3) for f in (False, True))
    assert np.array_equal(plain.targets, filled.targets)
    kept = plain.inputs != 0
    assert np.array_equal(plain.inputs[kept], filled.inputs[kept])
    assert (filled.inputs[~kept] != 0).mean() > 0.9


def test_strangers_were_never_shown():
    inputs, kind = with_strangers(MQARConfig(64, 40, 6, 50), seed=3)
    for row, asked in zip(inputs, kind, strict=True):
        shown = set(row[0:12:2])
        assert all((row[t] in shown) == (asked[t] == 0) for t in np.flatnonzero(asked != IGNORED))
    assert 0.4 < (kind == 1).sum() / (kind != IGNORED).sum() < 0.6
    with pytest.raises(ValueError, match="at least 26"):
        with_strangers(MQARConfig(16, 40, 6, 1), seed=0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((64, 15, 2, 1), "even"),
        ((64, 16, 5, 1), "at least 20"),
        ((10, 64, 5, 1), "at least 12"),
        ((64, 16, 0, 1), "num_pairs is 0"),
        ((64, 16, 2, 1, 0.0), "power_a"),
    ],
)
def test_bad_settings_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        MQARConfig(*options)

"""Overwriting and two-token keys against what Zoology's own code gave for the same seeds; noisy values by count."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bayesmem.tasks.mqar import IGNORED, MQARConfig
from bayesmem.tasks.mqar_variants import VARIANTS, CompositionalConfig, ForgettingConfig, NoisyConfig, like

# From the numpy part of zoology/data/forgetting_mqar.py (commit dbcb60d) and compositional_ar.py (6fcfd35).
FIXTURE = np.load(Path(__file__).parents[1] / "data" / "zoology_mqar_variants.npz")
CASES = sorted(name.removeprefix("inputs_") for name in FIXTURE if name.startswith("inputs_"))
FORGETS = ForgettingConfig(64, 60, 8, 4, 50)
COMPOSES = CompositionalConfig(64, 60, 9, 50)
NOISY = NoisyConfig(64, 80, 8, 50, repeats=4, disagreeing=2)
ALL = (FORGETS, COMPOSES, NOISY)


@pytest.mark.parametrize("case", CASES)
def test_equal_to_zoology(case):
    vocab, rows, length, pairs, updates, seed = map(int, re.findall(r"\d+", case))
    if case.startswith("forgetting"):
        batch = ForgettingConfig(vocab, length, pairs, updates, rows).make(seed)
    else:
        batch = CompositionalConfig(vocab, length, pairs, rows).make(seed)
    assert np.array_equal(batch.inputs, FIXTURE[f"inputs_{case}"])
    assert np.array_equal(batch.targets, FIXTURE[f"labels_{case}"])


def asked(row, targets, width=1):
    """Answers by key."""
    return {tuple(row[t - width + 1 : t + 1]): targets[t] for t in np.flatnonzero(targets != IGNORED)}


def test_the_last_value_counts():
    batch, changed = FORGETS.make(3), 0
    for row, targets in zip(batch.inputs, batch.targets, strict=True):
        shown = row[: FORGETS.shown].reshape(-1, 2)
        first, last = dict(shown[::-1].tolist()), dict(shown.tolist())
        assert len(last) == 8 and asked(row, targets) == {(key,): value for key, value in last.items()}
        changed += sum(first[key] != last[key] for key in last)
    assert 0.9 * 4 * 50 < changed <= 4 * 50  # Zoology's way of choosing lets some updates repeat what was there


def test_neither_token_of_a_key_gives_its_value():
    batch = COMPOSES.make(3)
    for row, targets in zip(batch.inputs, batch.targets, strict=True):
        shown = row[:27].reshape(-1, 3)
        assert asked(row, targets, 2) == {(a, b): value for a, b, value in shown.tolist()}
        for column in (0, 1):
            assert sorted(Counter(shown[:, column].tolist()).values()) == [3, 3, 3]
        assert len(set(shown[:, 2].tolist())) == 9


def test_the_most_frequent_value_counts():
    batch, last_right = NOISY.make(3), 0
    for row, targets in zip(batch.inputs, batch.targets, strict=True):
        shown = row[: NOISY.shown].reshape(-1, 2).tolist()
        answers = asked(row, targets)
        assert len(answers) == 8
        for (key,), answer in answers.items():
            counts = Counter(value for k, value in shown if k == key)
            assert counts.pop(answer) == 2 and sorted(counts.values()) == [1, 1]
            assert all(32 <= value < 64 for value in counts)
            last_right += [value for k, value in shown if k == key][-1] == answer
    assert last_right / 400 == pytest.approx(0.5, abs=0.08)
    certain = replace(NOISY, repeats=2, disagreeing=0).make(3)
    assert len(set(map(tuple, certain.inputs[0, :32].reshape(-1, 2).tolist()))) == 8


def test_other_values_are_drawn_evenly():
    found = Counter()
    for row in NoisyConfig(12, 8, 1, 2000, 3, 1).make(0).inputs:
        (odd,) = (value for value, count in Counter(row[1:6:2].tolist()).items() if count == 1)
        found[odd] += 1
    assert sorted(found) == [6, 7, 8, 9, 10, 11] and min(found.values()) > 250


@pytest.mark.parametrize("config", ALL)
def test_seeds_and_fillers(config):
    plain, again, other = config.make(3), config.make(3), config.make(4)
    assert np.array_equal(plain.inputs, again.inputs) and not np.array_equal(plain.inputs, other.inputs)
    filled = replace(config, random_fillers=True).make(3)
    kept = plain.inputs != 0
    assert np.array_equal(plain.targets, filled.targets) and np.array_equal(plain.inputs[kept], filled.inputs[kept])
    assert (filled.inputs[~kept] != 0).mean() > 0.9


def test_beside_a_plain_segment():
    plain = MQARConfig(8192, 256, 64, 5)
    assert like("forgetting", plain) == ForgettingConfig(8192, 256, 43, 21, 5)
    assert like("compositional", plain) == CompositionalConfig(8192, 256, 36, 5)
    assert like("noisy", plain) == NoisyConfig(8192, 256, 21, 5)
    for data in VARIANTS:
        for length, pairs in ((16, 2), (64, 4), (64, 16), (128, 32), (512, 64), (512, 128), (1024, 256)):
            batch = like(data, MQARConfig(8192, length, pairs, 2)).make(0)
            assert batch.inputs.shape == (2, length)
    with pytest.raises(ValueError, match="expected one of forgetting"):
        like("fillers", plain)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: replace(FORGETS, num_updates=9), "num_updates 9"),
        (lambda: replace(FORGETS, length=38), "give at least 40"),
        (lambda: replace(FORGETS, length=61), "even"),
        (lambda: replace(FORGETS, vocab_size=16), "give at least 18"),
        (lambda: replace(FORGETS, rows=0), "rows is 0"),
        (lambda: replace(COMPOSES, num_pairs=8), "a square number"),
        (lambda: replace(COMPOSES, length=52), "give at least 54"),
        (lambda: replace(COMPOSES, vocab_size=24), "give at least 27"),
        (lambda: replace(NOISY, disagreeing=3), "at least 2 repeats"),
        (lambda: replace(NOISY, repeats=0, disagreeing=0), "repeats is 0"),
        (lambda: replace(NOISY, length=78), "give at least 80"),
        (lambda: replace(NOISY, power_a=0.0), "power_a"),
    ],
)
def test_bad_settings_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()

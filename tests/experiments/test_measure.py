"""The statistics of the study: quantiles, the binomial tail, and intervals that cover as often as they say."""

from math import comb

import numpy as np
import pytest

from bayesmem.experiments.measure import measure, seed_of, student_quantile
from bayesmem.report.verdicts import binomial_tail


@pytest.mark.parametrize(("freedom", "quantile"), [(7, 2.3646), (24, 2.0639), (127, 1.9788), (100_000, 1.9600)])
def test_student_quantile(freedom, quantile):
    assert student_quantile(freedom) == pytest.approx(quantile, abs=1e-3)


@pytest.mark.parametrize(("count", "trials"), [(8, 10), (0, 3), (10, 10), (930, 1000), (180, 200)])
def test_binomial_tail(count, trials):
    exact = sum(comb(trials, i) * 0.95**i * 0.05 ** (trials - i) for i in range(count + 1))
    assert binomial_tail(count, trials, 0.95) == pytest.approx(exact, rel=1e-9)


def test_binomial_tail_of_a_table():
    assert binomial_tail(8, 10, 0.95) == pytest.approx(0.0861, abs=1e-4)
    with pytest.raises(ValueError, match="0 <= count <= trials"):
        binomial_tail(11, 10, 0.95)


def skewed(rows, seed):
    """Means of 16 squares of standard normals, of expectation 1."""
    return np.random.default_rng(seed).standard_normal((rows, 16)).__pow__(2).mean(1)


def test_intervals_cover_and_reach_their_precision():
    found = [measure(skewed, 0.05, 48, 20_000, f"test/{i}") for i in range(600)]
    covered = sum(abs(m.mean - 1) <= m.half_width for m in found)
    assert binomial_tail(covered, 600, 0.95) > 1e-3
    assert 1 - binomial_tail(covered - 1, 600, 0.95) > 1e-3  # and not more often than they say
    assert max(m.half_width / m.mean for m in found) <= 0.05
    assert {m.rows for m in found} != {48}


def test_the_size_has_its_bounds():
    assert measure(skewed, 0.001, 48, 200, "most").rows == 200
    assert measure(skewed, 0.5, 48, 200, "least").rows == 48


def test_the_same_words_give_the_same_sample():
    assert measure(skewed, 0.05, 48, 2000, "a") == measure(skewed, 0.05, 48, 2000, "a")
    assert seed_of("a", "b") != seed_of("ab") != seed_of("a", "c")

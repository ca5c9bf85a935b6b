"""Intervals cover as often as they say, over seeds and documents together."""

import numpy as np
import pytest
from scipy.stats import t

from bayesmem.report.effects import crossed, interval, quantile


def test_the_quantile_is_students():
    for freedom in (1, 2, 3, 5, 9, 10, 20, 40, 300):
        assert quantile(freedom) == pytest.approx(t.ppf(0.975, freedom), rel=2e-3)


def test_interval_over_seeds():
    assert interval([3.0]) == (3.0, float("inf"))
    middle, half = interval([1.0, 2.0, 3.0])
    assert middle == 2 and half == pytest.approx(4.303 / 3**0.5, rel=1e-3)
    assert interval([0.0, 1.0] * 20)[1] == pytest.approx(2.0227 * 0.50637 / 40**0.5, rel=2e-3)  # t of 39


@pytest.mark.parametrize("of_seed", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("of_document", [0.0, 1.0])
def test_seeds_and_documents_are_both_in_it(of_seed, of_document):
    """Against the draw of both: the seeds' spread alone, or the documents' alone, would miss far more often."""
    rng, inside, alone = np.random.default_rng(0), [], []
    for _ in range(1000):
        seeds, documents = rng.normal(size=(3, 1)), rng.normal(size=(1, 100))
        found = crossed(0.5 + of_seed * seeds + of_document * documents + 0.5 * rng.normal(size=(3, 100)))
        inside.append(found.low <= 0.5 <= found.high)
        middle, half = interval(found.each)
        alone.append(abs(middle - 0.5) <= half)
    assert np.mean(inside) > 0.935
    if of_document and not of_seed:
        assert np.mean(alone) < 0.9  # what one would get from the seeds' means


def test_one_seed_one_document_and_none():
    one = crossed(np.array([[0.0, 1.0, 1.0, 0.0]]))
    assert (one.mean, one.each, one.documents) == (0.5, (0.5,), 4)
    assert one.half == pytest.approx(3.182 * np.std([0, 1, 1, 0], ddof=1) / 2)
    assert crossed(np.array([[0.5], [0.5]])).half == float("inf")  # one document: no interval
    assert crossed(np.ones((2, 5))).half == 0
    with pytest.raises(ValueError, match=r"shape \(0, 3\); expected at least one seed and one document"):
        crossed(np.ones((0, 3)))

"""Measuring a mean to a given precision, with an honest 95% interval."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Simulate = Callable[[int, int], np.ndarray]

BATCH = 512
MARGIN = 1.15  # so that few samples need extending: those that do are chosen by what they show


@dataclass(frozen=True, slots=True)
class Measured:
    """A simulated mean.

    Attributes:
        mean: over independent rows.
        half_width: of its 95% interval.
        rows: how many.
    """

    mean: float
    half_width: float
    rows: int


def measure(simulate: Simulate, precision: float | int, least: int, most: int, seed: str) -> Measured:
    """Mean of what ``simulate`` draws, to a half-width of ``precision`` times the mean.

    A pilot, thrown away, sets the number of rows, so that the sample's size does not depend on the
    sample. Where its own interval is still too wide it is extended by a quarter at a time.

    Args:
        simulate: ``simulate(rows, seed)`` gives one independent number a row.
        precision: half-width aimed at, relative to the mean.
        least: rows of the pilot, and the fewest.
        most: the most rows.
        seed: any text; the same gives the same numbers, another an independent sample.
    """
    pilot = _interval(simulate(least, seed_of(seed, "pilot")))
    wanted = least * (MARGIN * pilot.half_width / (precision * abs(pilot.mean))) ** 2
    goal = min(max(math.ceil(wanted), least), most)
    drawn: list[np.ndarray] = []
    count = 0
    while True:
        while count < goal:
            rows = min(BATCH, goal - count)
            drawn.append(simulate(rows, seed_of(seed, str(count))))
            count += rows
        result = _interval(np.concatenate(drawn))
        if result.half_width <= precision * abs(result.mean) or count >= most:
            return result
        goal = min(math.ceil(1.25 * count), most)


def seed_of(*parts: str) -> int:
    """A generator's seed from any words, by a hash: other words, an independent stream."""
    return int.from_bytes(hashlib.sha256("/".join(parts).encode()).digest()[:6], "big")


def student_quantile(freedom: int) -> float:
    """The 97.5% quantile of Student's t, by the Cornish-Fisher expansion: to 1e-3 from 8 degrees of freedom on."""
    z, nu = 1.959963984540054, float(freedom)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / nu + second / nu**2 + third / nu**3


def _interval(numbers: np.ndarray) -> Measured:
    count = len(numbers)
    spread = float(numbers.std(ddof=1)) / math.sqrt(count)
    return Measured(float(numbers.mean()), student_quantile(count - 1) * spread, count)

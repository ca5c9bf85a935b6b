"""How sure a mean is: over seeds of training, and over seeds and documents at once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from jaxtyping import Float
from numpy import ndarray

# 97.5% quantiles, by degrees of freedom; beyond, an expansion in their inverse that is right to 0.2%.
STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True, slots=True)
class Effect:
    """A mean difference of two arms on the same documents.

    Attributes:
        mean: over documents and seeds.
        half: of the 95% interval; infinite where there is but one document.
        each: mean of every seed.
        documents: that were compared.
    """

    mean: float
    half: float
    each: tuple[float, ...]
    documents: int

    @property
    def low(self) -> float:
        """End of the interval."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """The other end."""
        return self.mean + self.half


def quantile(freedom: int) -> float:
    """Student's t at 97.5%, of one degree of freedom or more."""
    return STUDENT_T[freedom - 1] if freedom <= len(STUDENT_T) else 1.95996 + 2.372 / freedom + 2.823 / freedom**2


def interval(values: Sequence[float | int]) -> tuple[float, float]:
    """Mean, and half of a 95% interval by Student's t; infinite for a single value."""
    count = len(values)
    if count < 2:
        return mean(values), math.inf
    return mean(values), quantile(count - 1) * stdev(values) / math.sqrt(count)


def crossed(differences: Float[ndarray, "S N"]) -> Effect:
    """Mean difference with an interval over seeds and documents, where every seed was asked the same documents.

    Seeds share their documents, so that neither the spread of the seeds' means nor that of the documents' holds the
    whole chance: a difference is mean + what the seed adds + what the document adds + the rest, all random. The half
    width is the root of the sum of two squares, Student's over the seeds' means and Student's over the documents'
    means. The rest is counted in both, so that it is rather too wide; by Satterthwaite's degrees of freedom in place
    of the sum, 90 to 93% of the intervals hold the truth where few seeds differ much. With one seed the interval
    covers the documents alone.

    Args:
        differences: of two arms, a row a seed, a column a document.

    Raises:
        ValueError: no seed or no document.
    """
    seeds, documents = differences.shape
    if not differences.size:
        raise ValueError(f"differences of shape {differences.shape}; expected at least one seed and one document.")
    each = tuple(map(float, differences.mean(1)))
    halves = [interval(each)[1]] if seeds > 1 else []
    halves.append(interval(differences.mean(0).tolist())[1])
    half = math.hypot(*halves)
    return Effect(float(differences.mean()), half, each, documents)

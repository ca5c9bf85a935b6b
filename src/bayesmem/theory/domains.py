"""The arguments of the predictions: their types, where they may lie, and the error where they do not."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = float | int | np.number | np.ndarray
Floats = NDArray[np.float64] | np.float64


@dataclass(frozen=True, slots=True)
class Domain:
    """An interval, the ends excluded where ``open_low`` or ``open_high``, and how to mend a miss."""

    low: float | int
    high: float | int = math.inf
    open_low: bool = False
    open_high: bool = False
    whole: bool = False
    mend: str = ""

    def words(self) -> str:
        """The interval in words, such as ``whole numbers in [1, inf)``."""
        left = "(" if self.open_low else "["
        right = ")" if self.open_high or math.isinf(self.high) else "]"
        return f"{'whole ' if self.whole else ''}numbers in {left}{self.low:g}, {self.high:g}{right}"

    def holds(self, x: NDArray[np.float64]) -> bool:
        """Whether all of ``x`` lies inside."""
        above = (x > self.low) if self.open_low else (x >= self.low)
        below = (x < self.high) if self.open_high else (x <= self.high)
        return bool((above & below & np.isfinite(x) & (not self.whole or x == np.round(x))).all())


_COUNT = Domain(0, whole=True, mend="count the writes of the key")
_POSITIVE_VAR = Domain(0, open_low=True, mend="pass a variance, not its logarithm; raise a zero to, say, 1e-4")
_VARIANCE = Domain(0, mend="pass a variance, not its logarithm or a standard deviation")
_FACTOR = Domain(0, 1, mend="pass the factor itself, exp of its logarithm")
_COSINE = Domain(-1, 1, mend="divide keys and query by their norms first")
_ANY = Domain(-math.inf, mend="look for an overflow upstream")

DOMAINS = {
    "writes": _COUNT,
    "writes_a": _COUNT,
    "writes_b": _COUNT,
    "nth": Domain(1, whole=True, mend="the first write is number 1"),
    "obs_noise": _POSITIVE_VAR,
    "prior_var": _POSITIVE_VAR,
    "noise_var": _VARIANCE,
    "value_var": _VARIANCE,
    "beta": Domain(0, 2, open_low=True, open_high=True, mend="outside, the delta rule learns nothing or diverges"),
    "gain": Domain(0, 2, open_low=True, open_high=True, mend="outside, the recall of a repeated key does not settle"),
    "gains": Domain(0, 2, mend="pass what each write moves the recall at its own key by"),
    "retention": _FACTOR,
    "decay": _FACTOR,
    "cosine": _COSINE,
    "overlap": _COSINE,
    "key_dim": Domain(1, whole=True, mend="pass the number of key channels"),
    "associations": Domain(1, whole=True, mend="count the stored keys"),
    "age": Domain(0, whole=True, mend="count the writes since; the newest association has age 0"),
    "value": _ANY,
    "value_a": _ANY,
    "value_b": _ANY,
    "target": _ANY,
    "tokens": Domain(0, mend="count the tokens since"),
    "share": Domain(0, 1, open_low=True, open_high=True, mend="pass a share, strictly between none and all"),
    "var": _POSITIVE_VAR,
    "discount": _FACTOR,
    "floor": Domain(0, 1, mend="pass the floor as a fraction of the prior's precision"),
    "factor": _FACTOR,
    "target_error": Domain(0, mend="pass a squared error"),
    "drift_var": _VARIANCE,
    "true_decay": _FACTOR,
    "correlation": Domain(-1, 1, mend="pass a correlation, not a covariance"),
    "prior_share": _FACTOR,
    "variance": _POSITIVE_VAR,
    "squared_error": Domain(0, mend="square the errors first"),
    "ratio": Domain(0, open_low=True, mend="pass the squared error over the reported variance"),
    "level": Domain(0, 1, open_low=True, open_high=True, mend="pass the coverage meant, such as .95"),
    "keys": _ANY,
    "gain_vectors": _ANY,
    "cov": _ANY,
    "query": _ANY,
    "start_cov": _ANY,
    "drift_cov": _ANY,
}


def checked(**arguments: Numbers) -> tuple[NDArray[np.float64], ...]:
    """The arguments as float64 arrays, in order, each refused unless in the domain of its name.

    Args:
        arguments: numbers or arrays under the names of ``DOMAINS``.

    Raises:
        ValueError: a number outside its domain, NaN or infinity.
    """
    arrays = []
    for name, given in arguments.items():
        array = np.asarray(given, dtype=np.float64)
        domain = DOMAINS[name]
        if not domain.holds(array):
            raise ValueError(f"{name} is {given}; expected {domain.words()} ({domain.mend}).")
        arrays.append(array)
    return tuple(arrays)

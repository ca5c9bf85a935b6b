"""Multi-query associative recall, as Zoology makes it (Arora et al. 2023, arXiv 2312.04927).

A row shows ``num_pairs`` keys each followed by its value, then asks for every key once, at gaps
drawn from a power law; the target stands at the query's position. The generator follows
HazyResearch/zoology's, draw for draw, with an explicit seed in place of numpy's global one.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from numpy import ndarray

IGNORED = -100


@dataclass(frozen=True, slots=True)
class MQARConfig:
    """One segment of MQAR data.

    Attributes:
        vocab_size: tokens; keys come from the lower half (0 is the filler), values from the upper.
        length: tokens a row, T.
        num_pairs: associations a row.
        rows: number of rows.
        power_a: exponent of the gaps' power law; small asks soon after the pairs.
        random_fillers: whether random tokens stand where nothing is asked, in place of 0.
    """

    vocab_size: int
    length: int
    num_pairs: int
    rows: int
    power_a: float | int = 0.01
    random_fillers: bool = False

    def __post_init__(self) -> None:
        if self.num_pairs < 1 or self.rows < 1:
            raise ValueError(f"num_pairs is {self.num_pairs} and rows {self.rows}; expected at least 1 of each.")
        if self.length % 2:
            raise ValueError(f"length is {self.length}; MQAR rows are made of pairs: give an even number.")
        if self.length < 4 * self.num_pairs:
            raise ValueError(
                f"length {self.length} cannot hold {self.num_pairs} pairs and ask for each: "
                f"give at least {4 * self.num_pairs}."
            )
        if self.vocab_size // 2 - 1 < self.num_pairs:
            raise ValueError(
                f"vocab_size {self.vocab_size} has {self.vocab_size // 2 - 1} keys, fewer than num_pairs "
                f"{self.num_pairs}: give at least {2 * self.num_pairs + 2}."
            )
        if not self.power_a > 0:
            raise ValueError(f"power_a is {self.power_a}; expected a positive exponent.")


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of tokens and targets; a target stands where it is to be predicted, else -100."""

    inputs: Int[ndarray, "B T"]
    targets: Int[ndarray, "B T"]


def make(config: MQARConfig, seed: int) -> Batch:
    """Draw ``config.rows`` rows; the same seed gives the same rows, and Zoology's."""
    c, rng = config, np.random.RandomState(seed)
    context = 2 * c.num_pairs
    half = c.vocab_size // 2

    def draw(choices: ndarray, p: ndarray | None = None) -> ndarray:
        return np.stack([rng.choice(choices, size=c.num_pairs, replace=False, p=p) for _ in range(c.rows)])

    keys, values = draw(np.arange(1, half)), draw(np.arange(half, c.vocab_size))
    space = (c.length - context) // 2
    gap_odds = c.power_a * np.arange(1, space + 1) ** (c.power_a - 1)
    gaps = 2 * draw(np.arange(space), gap_odds / gap_odds.sum())
    tokens = np.zeros((c.rows, c.length + 1), dtype=np.int64)
    tokens[:, 0:context:2], tokens[:, 1:context:2] = keys, values
    np.put_along_axis(tokens, gaps + context, keys, axis=1)
    targets = np.full((c.rows, c.length + 1), IGNORED, dtype=np.int64)
    np.put_along_axis(targets, gaps + context + 1, values, axis=1)
    inputs = tokens[:, :-1]
    if c.random_fillers:
        inputs = np.where(inputs == 0, rng.randint(c.vocab_size, size=inputs.shape), inputs)
    return Batch(inputs.copy(), targets[:, 1:].copy())


def with_strangers(config: MQARConfig, seed: int) -> tuple[Int[ndarray, "B T"], Int[ndarray, "B T"]]:
    """Rows in which about half of the queries ask for keys that were never shown.

    Returns:
        The rows, and for each position 1 where a stranger is asked for, 0 where a shown key is, -100
        where nothing is asked.

    Raises:
        ValueError: a vocabulary whose keys are all shown.
    """
    keys = np.arange(1, config.vocab_size // 2)
    if len(keys) < 2 * config.num_pairs:
        raise ValueError(
            f"vocab_size {config.vocab_size} has {len(keys)} keys, too few to ask for as many strangers as "
            f"{config.num_pairs} pairs: give at least {4 * config.num_pairs + 2}."
        )
    batch, rng = make(config, seed), np.random.default_rng(seed)
    inputs, kind = batch.inputs.copy(), np.where(batch.targets == IGNORED, IGNORED, 0)
    for row, asked in zip(inputs, kind, strict=True):
        places = np.flatnonzero(asked == 0)
        places = places[rng.random(len(places)) < 0.5]
        unseen = np.setdiff1d(keys, row[: 2 * config.num_pairs : 2])
        row[places] = rng.choice(unseen, size=len(places), replace=False)
        asked[places] = 1
    return inputs, kind

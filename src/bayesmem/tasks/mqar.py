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
    half = c.vocab_size // 2
    keys = draw(rng, np.arange(1, half), c.rows, c.num_pairs)
    values = draw(rng, np.arange(half, c.vocab_size), c.rows, c.num_pairs)
    gaps = draw_gaps(rng, c.rows, c.num_pairs, (c.length - 2 * c.num_pairs) // 2, c.power_a)
    shown = np.stack([keys, values], axis=-1).reshape(c.rows, -1)
    batch = row_of(shown, keys[..., None], values, gaps, c.length)
    return fill(batch, c.vocab_size, rng) if c.random_fillers else batch


def draw(
    rng: np.random.RandomState, choices: Int[ndarray, "C"], rows: int, size: int, p: ndarray | None = None
) -> Int[ndarray, "B N"]:
    """``size`` different ones of ``choices`` for every row."""
    return np.stack([rng.choice(choices, size=size, replace=False, p=p) for _ in range(rows)])


def draw_gaps(
    rng: np.random.RandomState, rows: int, size: int, space: int, power_a: float | int
) -> Int[ndarray, "B N"]:
    """Different places for every row's queries, of ``space`` there are; small ``power_a`` favours the first."""
    odds = power_a * np.arange(1, space + 1) ** (power_a - 1)
    return draw(rng, np.arange(space), rows, size, odds / odds.sum())


def row_of(
    shown: Int[ndarray, "B S"],
    keys: Int[ndarray, "B N W"],
    answers: Int[ndarray, "B N"],
    gaps: Int[ndarray, "B N"],
    length: int,
) -> Batch:
    """Rows that show, then ask for each key at its gap; the answer is due at a key's last token."""
    rows, context = shown.shape
    width = keys.shape[2]
    tokens = np.zeros((rows, length + 1), dtype=np.int64)
    tokens[:, :context] = shown
    starts = gaps * (width + 1) + context
    for i in range(width):
        np.put_along_axis(tokens, starts + i, keys[..., i], axis=1)
    targets = np.full((rows, length + 1), IGNORED, dtype=np.int64)
    np.put_along_axis(targets, starts + width, answers, axis=1)
    return Batch(tokens[:, :-1].copy(), targets[:, 1:].copy())


def fill(batch: Batch, vocab_size: int, rng: np.random.RandomState) -> Batch:
    """The rows with random tokens in place of 0."""
    inputs = batch.inputs
    return Batch(np.where(inputs == 0, rng.randint(vocab_size, size=inputs.shape), inputs), batch.targets)


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

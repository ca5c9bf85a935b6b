"""Associative recall that asks for more than Zoology's plain rows: overwriting, keys of two tokens, disagreeing values.

``ForgettingConfig`` and ``CompositionalConfig`` follow HazyResearch/zoology's generators (``forgetting_mqar.py``,
``compositional_ar.py``) draw for draw, random fillers apart, with an explicit seed in place of numpy's global one.
Zoology has random fillers by default there; here they are off by default, as on the plain rows. ``NoisyConfig`` is
ours, and so is ``like``, which says how large a variant stands beside a plain segment.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from bayesmem.tasks.mqar import Batch, MQARConfig, draw, draw_gaps, fill, row_of

FORGETTING, COMPOSITIONAL, NOISY = "forgetting", "compositional", "noisy"
VARIANTS = (FORGETTING, COMPOSITIONAL, NOISY)


def _check(rows: int, length: int, context: int, asked: int, power_a: float | int) -> None:
    """Refuse what no variant can be: ``context`` tokens shown, ``asked`` tokens, gaps included, to ask in."""
    if rows < 1:
        raise ValueError(f"rows is {rows}; expected at least 1.")
    if length % 2:
        raise ValueError(f"length is {length}; expected an even number.")
    if length < context + asked:
        raise ValueError(
            f"length {length} cannot hold {context} tokens that show and {asked} that ask: "
            f"give at least {context + asked}."
        )
    if not power_a > 0:
        raise ValueError(f"power_a is {power_a}; expected a positive exponent.")


@dataclass(frozen=True, slots=True)
class ForgettingConfig:
    """Zoology's overwriting: after all pairs some keys are shown again with another value, and the last one counts.

    As in Zoology, the new value differs from that of the key at the update's own place in the row, not of the key that
    is updated: now and then an update repeats what was there.

    Attributes:
        vocab_size: tokens; keys come from the lower half (0 is the filler), values from the upper.
        length: tokens a row, T.
        num_pairs: keys a row; each is asked for once.
        num_updates: how many of them get a second value.
        rows: number of rows.
        power_a: exponent of the gaps' power law.
        random_fillers: whether random tokens stand where nothing is shown or asked, in place of 0.
    """

    vocab_size: int
    length: int
    num_pairs: int
    num_updates: int
    rows: int
    power_a: float | int = 0.01
    random_fillers: bool = False

    def __post_init__(self) -> None:
        if self.num_pairs < 1 or not 0 <= self.num_updates <= self.num_pairs:
            raise ValueError(
                f"num_pairs is {self.num_pairs} and num_updates {self.num_updates}; expected at least 1 pair and "
                "between no update and one a pair."
            )
        _check(self.rows, self.length, self.shown, 2 * self.num_pairs, self.power_a)
        _check_halves(self.vocab_size, self.num_pairs, 2)

    @property
    def shown(self) -> int:
        """Tokens of a row that show."""
        return 2 * (self.num_pairs + self.num_updates)

    def make(self, seed: int) -> Batch:
        """Draw all rows; the same seed gives the same rows."""
        rng, half = np.random.RandomState(seed), self.vocab_size // 2
        keys = draw(rng, np.arange(1, half), self.rows, self.num_pairs)
        values = draw(rng, np.arange(half, self.vocab_size), self.rows, self.num_pairs)
        news = rng.randint(0, self.vocab_size - half - 1, size=(self.rows, self.num_updates)) + half
        news += news >= values[:, : self.num_updates]  # one of the others
        again = draw(rng, np.arange(self.num_pairs), self.rows, self.num_updates)
        final = values.copy()
        np.put_along_axis(final, again, news, axis=1)
        gaps = draw_gaps(rng, self.rows, self.num_pairs, (self.length - self.shown) // 2, self.power_a)
        all_keys = np.concatenate([keys, np.take_along_axis(keys, again, axis=1)], axis=1)
        all_values = np.concatenate([values, news], axis=1)
        shown = np.stack([all_keys, all_values], axis=-1).reshape(self.rows, -1)
        batch = row_of(shown, keys[..., None], final, gaps, self.length)
        return fill(batch, self.vocab_size, rng) if self.random_fillers else batch


@dataclass(frozen=True, slots=True)
class CompositionalConfig:
    """Zoology's compositional recall: a key is two tokens, of a grid in which neither alone gives the value.

    Attributes:
        vocab_size: tokens; first tokens come from the lowest third (0 is the filler), second ones from the middle,
            values from the rest.
        length: tokens a row, T.
        num_pairs: keys a row, all pairs of as many first as second tokens: a square number.
        rows: number of rows.
        power_a: exponent of the gaps' power law.
        random_fillers: whether random tokens stand where nothing is shown or asked, in place of 0.
    """

    vocab_size: int
    length: int
    num_pairs: int
    rows: int
    power_a: float | int = 0.01
    random_fillers: bool = False

    def __post_init__(self) -> None:
        if self.num_pairs < 1 or math.isqrt(self.num_pairs) ** 2 != self.num_pairs:
            raise ValueError(f"num_pairs is {self.num_pairs}; expected a square number, such as 4, 9 or 16.")
        _check(self.rows, self.length, self.shown, self.shown, self.power_a)
        third = self.vocab_size // 3
        if third - 1 < math.isqrt(self.num_pairs) or self.vocab_size - 2 * third < self.num_pairs:
            least = 3 * max(math.isqrt(self.num_pairs) + 1, self.num_pairs)
            raise ValueError(
                f"vocab_size {self.vocab_size} is too small for {self.num_pairs} pairs of two-token keys: "
                f"give at least {least}."
            )

    @property
    def shown(self) -> int:
        """Tokens of a row that show."""
        return 3 * self.num_pairs

    def make(self, seed: int) -> Batch:
        """Draw all rows; the same seed gives the same rows."""
        rng, third, side = np.random.RandomState(seed), self.vocab_size // 3, math.isqrt(self.num_pairs)
        firsts = draw(rng, np.arange(1, third), self.rows, side)
        seconds = draw(rng, np.arange(third, 2 * third), self.rows, side)
        grid = np.stack([np.repeat(firsts, side, axis=1), np.tile(seconds, side)], axis=-1)
        order = np.stack([rng.permutation(self.num_pairs) for _ in range(self.rows)])
        keys = np.take_along_axis(grid, order[..., None], axis=1)
        values = draw(rng, np.arange(2 * third, self.vocab_size), self.rows, self.num_pairs)
        gaps = draw_gaps(rng, self.rows, self.num_pairs, (self.length - self.shown) // 3, self.power_a)
        shown = np.concatenate([keys, values[..., None]], axis=-1).reshape(self.rows, -1)
        batch = row_of(shown, keys, values, gaps, self.length)
        return fill(batch, self.vocab_size, rng) if self.random_fillers else batch


@dataclass(frozen=True, slots=True)
class NoisyConfig:
    """Noisy values, ours: every key is shown several times, in random order among the others, and not always alike.

    A key's answer is the value that it was shown with most often; each of its other values was shown once. Who trusts
    the last one is right in ``(repeats - disagreeing) / repeats`` of the queries.

    Attributes:
        vocab_size: tokens; keys come from the lower half (0 is the filler), values from the upper.
        length: tokens a row, T.
        num_pairs: keys a row; each is asked for once.
        rows: number of rows.
        repeats: times that a key is shown.
        disagreeing: how many of them show another value, each a different one.
        power_a: exponent of the gaps' power law.
        random_fillers: whether random tokens stand where nothing is shown or asked, in place of 0.
    """

    vocab_size: int
    length: int
    num_pairs: int
    rows: int
    repeats: int = 3
    disagreeing: int = 1
    power_a: float | int = 0.01
    random_fillers: bool = False

    def __post_init__(self) -> None:
        if self.num_pairs < 1:
            raise ValueError(f"num_pairs is {self.num_pairs}; expected at least 1.")
        if self.disagreeing < 0 or self.repeats - self.disagreeing < (2 if self.disagreeing else 1):
            raise ValueError(
                f"repeats is {self.repeats} and disagreeing {self.disagreeing}; expected at least 2 repeats that "
                "agree beside those that disagree, so that the answer is the most frequent value."
            )
        _check(self.rows, self.length, self.shown, 2 * self.num_pairs, self.power_a)
        _check_halves(self.vocab_size, self.num_pairs, self.disagreeing + 1)

    @property
    def shown(self) -> int:
        """Tokens of a row that show."""
        return 2 * self.num_pairs * self.repeats

    def make(self, seed: int) -> Batch:
        """Draw all rows; the same seed gives the same rows."""
        rng, half = np.random.RandomState(seed), self.vocab_size // 2
        keys = draw(rng, np.arange(1, half), self.rows, self.num_pairs)
        values = draw(rng, np.arange(half, self.vocab_size), self.rows, self.num_pairs)
        given = np.repeat(values[..., None], self.repeats, axis=2)
        for i in range(self.disagreeing):
            other = rng.randint(0, self.vocab_size - half - 1 - i, size=values.shape) + half
            taken = np.sort(np.concatenate([values[..., None], given[..., :i]], axis=2), axis=2)
            for place in range(i + 1):  # the drawn rank among the values that are not taken
                other += other >= taken[..., place]
            given[..., i] = other
        slots = np.stack([np.repeat(keys[..., None], self.repeats, axis=2), given], axis=-1)
        slots = slots.reshape(self.rows, -1, 2)
        order = np.stack([rng.permutation(slots.shape[1]) for _ in range(self.rows)])
        shown = np.take_along_axis(slots, order[..., None], axis=1).reshape(self.rows, -1)
        gaps = draw_gaps(rng, self.rows, self.num_pairs, (self.length - self.shown) // 2, self.power_a)
        batch = row_of(shown, keys[..., None], values, gaps, self.length)
        return fill(batch, self.vocab_size, rng) if self.random_fillers else batch


def _check_halves(vocab_size: int, num_pairs: int, values: int) -> None:
    if vocab_size // 2 - 1 < num_pairs or vocab_size - vocab_size // 2 < max(num_pairs, values):
        least = 2 * max(num_pairs + 1, values)
        raise ValueError(f"vocab_size {vocab_size} is too small for {num_pairs} pairs: give at least {least}.")


Variant = ForgettingConfig | CompositionalConfig | NoisyConfig


def like(data: str, plain: MQARConfig) -> Variant:
    """The variant that stands beside a plain segment: as long, and showing about as many associations.

    Of ``plain.num_pairs`` slots, *forgetting* gives a third to second values (one update for two keys, as Zoology's
    own default), and *noisy* shows a third as many keys three times, one of them with another value. *Compositional*
    has the largest square number of keys up to ``plain.num_pairs`` that the row has room for.

    Args:
        data: of ``VARIANTS``.
        plain: the plain segment.

    Raises:
        ValueError: a variant that there is not, or that does not fit.
    """
    common: dict[str, Any] = {"power_a": plain.power_a, "random_fillers": plain.random_fillers}
    size, slots = (plain.vocab_size, plain.length), plain.num_pairs
    if data == FORGETTING:
        return ForgettingConfig(*size, slots - slots // 3, slots // 3, plain.rows, **common)
    if data == COMPOSITIONAL:
        side = max(1, math.isqrt(min(slots, plain.length // 6)))
        return CompositionalConfig(*size, side * side, plain.rows, **common)
    if data == NOISY:
        return NoisyConfig(*size, max(1, slots // 3), plain.rows, **common)
    raise ValueError(f"data is {data!r}; expected one of {', '.join(VARIANTS)}.")

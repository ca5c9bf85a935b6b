"""What a distillation minimises, over which weights: plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

TERMS = ("align", "kl", "ce")
TRAINED = ("gates", "mixers", "all")
ALIGNED = ("stream", "mixer")
Knots = tuple[tuple[float | int, float | int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """Weights of the losses over the budget: piecewise linear, constant before the first knot and after the last.

    Attributes:
        align: of hidden states, layer by layer: squared distance over the teacher's own square, averaged over layers.
        kl: of ``KL(teacher || student)`` of the logits, in nats, times the squared temperature.
        ce: of the text's own cross-entropy, in nats.

    Each is (share of the budget, weight) pairs, shares rising.

    Raises:
        ValueError: knots out of order or bounds, or a moment at which nothing has a weight.
    """

    align: Knots = ((0.0, 1.0), (0.3, 0.0))
    kl: Knots = ((0.0, 1.0), (0.6, 0.2))
    ce: Knots = ((0.0, 0.5), (0.6, 1.0))

    def __post_init__(self) -> None:
        for name in TERMS:
            knots = getattr(self, name)
            shares = [share for share, _ in knots]
            if not knots or shares != sorted(set(shares)) or not all(0 <= share <= 1 for share in shares):
                raise ValueError(f"{name} has knots at {shares}; expected rising shares of the budget within [0, 1].")
            if not all(0 <= weight < float("inf") for _, weight in knots):
                raise ValueError(f"{name} has weights {[weight for _, weight in knots]}; expected 0 or more.")
        for share in sorted({share for name in TERMS for share, _ in getattr(self, name)} | {0.0, 1.0}):
            if not any(self.at(share).values()):
                raise ValueError(f"at {share:g} of the budget no loss has a weight; give one to align, kl or ce there.")

    def at(self, share: float | int) -> dict[str, float | int]:
        """Weight of every term at a share of the budget."""
        return {name: _interpolated(getattr(self, name), share) for name in TERMS}

    def asks_teacher(self, share: float | int) -> bool:
        """Whether the teacher is run there at all."""
        weights = self.at(share)
        return bool(weights["align"] or weights["kl"])

    def teacher_steps(self, steps: int) -> int:
        """Of so many steps, how many run the teacher."""
        return sum(self.asks_teacher(step / steps) for step in range(steps))


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillOptions:
    """How a student learns from its teacher.

    Attributes:
        mix: of the losses.
        temperature: of the logits that KL compares.
        align: what hidden states are: the ``stream`` after every block (and the final norm), or the ``mixer``'s own
            outputs, which of a softmax teacher are its attention outputs.
        trains: ``gates`` (retention and the noises), ``mixers`` (all of their weights), or ``all``.
        gate_rate: learning rate of the retention gates, as a multiple of the others'. Large, it lets training shut
            them before the other weights have made use of the covariance.

    Raises:
        ValueError: an option out of its bounds.
    """

    mix: Mix = field(default_factory=Mix)
    temperature: float | int = 1.0
    align: str = "stream"
    trains: str = "all"
    gate_rate: float | int = 1.0

    def __post_init__(self) -> None:
        for name, known in (("align", ALIGNED), ("trains", TRAINED)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(known)}.")
        for name in ("temperature", "gate_rate"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; expected a positive number.")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "DistillOptions":
        """Options of plain data, such as JSON.

        Raises:
            ValueError: options that are unknown or refused.
        """
        known = {one.name for one in fields(cls)}
        if unknown := sorted(set(given) - known):
            raise ValueError(f"unknown options {', '.join(unknown)}; a distillation has {', '.join(sorted(known))}.")
        options = dict(given)
        if isinstance(options.get("mix"), Mapping):
            mix = options["mix"]
            if unknown := sorted(set(mix) - set(TERMS)):
                raise ValueError(f"unknown losses {', '.join(unknown)}; a mix has {', '.join(TERMS)}.")
            options["mix"] = Mix(**{name: tuple((a, b) for a, b in knots) for name, knots in mix.items()})
        return cls(**options)


def read_knots(name: str, text: str) -> Knots:
    """A weight's schedule as typed: ``1``, or ``0:1,0.3:0``, which falls from 1 to 0 over three tenths of the budget.

    Raises:
        ValueError: anything else.
    """
    try:
        parts = [[float(number) for number in part.split(":")] for part in text.split(",")]
        if len(parts) == 1 and len(parts[0]) == 1:
            return ((0.0, parts[0][0]),)
        return tuple((share, weight) for share, weight in parts)
    except ValueError as error:
        raise ValueError(
            f"{name} is {text!r}; expected a weight, such as 1, or shares of the budget and weights, such as 0:1,0.3:0."
        ) from error


def _interpolated(knots: Knots, share: float | int) -> float | int:
    before = knots[0]
    for knot in knots:
        if share <= knot[0]:
            width = knot[0] - before[0]
            return knot[1] if width == 0 else before[1] + (knot[1] - before[1]) * (share - before[0]) / width
        before = knot
    return before[1]

"""What ``bayesmem bench`` measures: shapes, and one job a contender, shape and kind of measurement."""

from dataclasses import asdict, dataclass
from typing import Any

WHATS = ("forward", "backward", "decode")
PRESETS = ("quick", "headline", "grid")
CEILINGS = "ceilings"


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of one measurement.

    Attributes:
        B: sequences.
        T: tokens of each; in decoding, tokens that attention looks back on.
        H: heads, of keys and of values.
        K: channels of a key.
        V: channels of a value.
    """

    B: int
    T: int
    H: int
    K: int
    V: int


@dataclass(frozen=True, slots=True)
class Job:
    """One measurement.

    Attributes:
        contender: a name of ``bench_contenders.contenders``, or ``ceilings``.
        what: ``forward`` (no gradients), ``backward`` (forward and backward), ``decode`` (one token
            more, from a state), or of the ceilings ``matmul`` and ``copy``.
        shape: sizes; ``None`` for the ceilings.
        dtype: of queries, keys and values.
        seed: of the inputs.
    """

    contender: str
    what: str
    shape: Shape | None
    dtype: str
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain data; ``from_dict`` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Job":
        """The job that ``as_dict`` wrote."""
        return cls(**data | {"shape": data["shape"] and Shape(**data["shape"])})

    def settings(self) -> dict[str, Any]:
        """What stands in the record: all but the contender, which names the record."""
        sizes = asdict(self.shape) if self.shape else {}
        return {"what": self.what} | sizes | {"dtype": self.dtype, "seed": self.seed}


def shapes(preset: str, what: str, device: str) -> list[Shape]:
    """The shapes of a preset, the most telling first.

    Args:
        preset: ``quick`` (one small shape), ``headline``, or ``grid``, which goes on to 64k tokens, B H
            from 8 to 512 and K from 64 to 256, each from the headline's shape.
        what: of ``WHATS``.
        device: ``cuda`` or ``cpu``, which gets smaller ones.
    """
    return (_decode if what == "decode" else _filter)(preset, device)


def _filter(preset: str, device: str) -> list[Shape]:
    if device == "cpu":
        if preset == "quick":
            return [Shape(1, 64, 2, 16, 16)]
        headline = [Shape(2, 1024, 4, 64, 64)]
        if preset == "headline":
            return headline
        longer = [Shape(2, length, 4, 64, 64) for length in (2048, 4096, 8192, 16_384)]
        return headline + longer + [Shape(2, 1024, 4, size, size) for size in (32, 128)]
    if preset == "quick":
        return [Shape(1, 256, 2, 64, 64)]
    headline = [Shape(batch, 4096, 8, 128, 128) for batch in (8, 32, 2)]
    if preset == "headline":
        return headline
    sizes = [Shape(batch, 4096, 8, size, size) for size in (64, 256) for batch in (8, 32)]
    batches = [Shape(batch, 4096, 8, 128, 128) for batch in (1, 4, 16, 64)]
    longer = [Shape(2, 1024 * thousands, 8, 128, 128) for thousands in (1, 2, 8, 16, 32, 64)]
    return headline + sizes + batches + longer


def _decode(preset: str, device: str) -> list[Shape]:
    if device == "cpu":
        size = 16 if preset == "quick" else 64
        return [Shape(batch, 4 * size, 4, size, size) for batch in ((1,) if preset == "quick" else (1, 16))]
    if preset == "quick":
        return [Shape(2, 256, 2, 64, 64)]
    headline = [Shape(batch, 4096, 8, 128, 128) for batch in (1, 4, 16, 64, 256)]
    if preset == "headline":
        return headline
    return headline + [Shape(batch, 4096, 8, size, size) for size in (64, 256) for batch in (1, 16, 256)]

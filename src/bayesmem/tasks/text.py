"""Bytes of real text, cut into training and held-out parts."""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

BOOK = "the_invisible_man.txt"  # H. G. Wells, 1897; public domain
LEAST_BYTES = 20_000


@dataclass(frozen=True, slots=True)
class Text:
    """A text as bytes.

    Attributes:
        name: where it came from.
        train: the first part.
        held_out: the rest, never trained on.
    """

    name: str
    train: UInt8[ndarray, "S"]
    held_out: UInt8[ndarray, "R"]


def load(path: Path | None = None, held_out: float = 0.1) -> Text:
    """Read a file, or the book the package carries.

    Args:
        path: a text file of any encoding (it is read as bytes); ``None`` takes the book.
        held_out: fraction at the end that is kept from training.

    Raises:
        ValueError: no such file, one that is too short, or a fraction outside (0, 1).
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out is {held_out}; expected a fraction between 0 and 1.")
    if path is None:
        raw = (resources.files("bayesmem") / "data" / BOOK).read_bytes()
    elif not path.is_file():
        raise ValueError(f"no text file at {path}; give the path of a text file, or leave it out for the book.")
    else:
        raw = path.read_bytes()
    if len(raw) < LEAST_BYTES:
        raise ValueError(f"{path or BOOK} has {len(raw)} bytes; a model needs at least {LEAST_BYTES} to learn from.")
    data = np.frombuffer(raw, dtype=np.uint8)
    cut = int(len(data) * (1 - held_out))
    return Text(path.name if path else "The Invisible Man, H. G. Wells", data[:cut], data[cut:])


def windows(data: UInt8[ndarray, "S"], length: int, count: int, seed: int) -> UInt8[ndarray, "count L"]:
    """``count`` random windows of ``length + 1`` bytes: inputs and, one later, their targets."""
    starts = np.random.default_rng(seed).integers(0, len(data) - length, size=count)
    return data[starts[:, None] + np.arange(length + 1)]


def blocks(data: UInt8[ndarray, "S"], length: int) -> UInt8[ndarray, "N L"]:
    """The data in order, cut into blocks of ``length + 1`` bytes that overlap by one."""
    count = (len(data) - 1) // length
    return data[(np.arange(count) * length)[:, None] + np.arange(length + 1)]

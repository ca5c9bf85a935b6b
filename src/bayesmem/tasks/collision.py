"""The controlled collision: two associations under keys at a known cosine, one written, then the other.

Every row holds its own two unit keys, in random directions at the given cosine, and its own two clean
values. The first association is written ``writes_a`` times, then the second ``writes_b`` times, each
time with fresh noise; every token queries at one of the keys, so the outputs are the recall after
each write. ``bayesmem.theory.collision`` predicts it.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

Query = Literal["a", "b"]
DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True, slots=True)
class CollisionConfig:
    """What a controlled collision is made of. Refuses bad numbers when made.

    Attributes:
        key_dim: key channels K, at least 2 (1 where the keys are parallel).
        value_dim: value channels V.
        cosine: between the two unit keys, in [-1, 1].
        writes_a: times the first association is written.
        writes_b: times the second is written, after the first.
        noise_std: standard deviation of the noise on every written value.
        rows: sequences B, each with its own keys, values and noise.
        query: the key at which every token queries.
        seed: of a generator of its own; the same configuration makes the same batch.
        dtype: float32 or float64; drawn in float64 either way.
    """

    key_dim: int = 64
    value_dim: int = 64
    cosine: float | int = 0.7
    writes_a: int = 8
    writes_b: int = 32
    noise_std: float | int = 0.1
    rows: int = 16
    query: Query = "a"
    seed: int = 0
    dtype: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        for name in ("key_dim", "value_dim", "rows"):
            _refuse_unless(getattr(self, name) >= 1, name, getattr(self, name), "at least 1", "ask for one or more")
        for name in ("writes_a", "writes_b", "seed"):
            _refuse_unless(getattr(self, name) >= 0, name, getattr(self, name), "0 or more", "leave the sign out")
        _refuse_unless(
            self.writes_a + self.writes_b > 0, "writes_a + writes_b", 0, "at least 1", "write one of the two"
        )
        _refuse_unless(
            -1 <= self.cosine <= 1, "cosine", self.cosine, "a number in [-1, 1]", "divide by the keys' norms first"
        )
        _refuse_unless(
            self.key_dim > 1 or abs(self.cosine) == 1,
            "key_dim",
            self.key_dim,
            f"at least 2 for keys at cosine {self.cosine}",
            "in one dimension unit keys are parallel: raise key_dim, or set cosine to 1 or -1",
        )
        _refuse_unless(
            math.isfinite(self.noise_std) and self.noise_std >= 0,
            "noise_std",
            self.noise_std,
            "a finite number, 0 or more",
            "pass a standard deviation, not a logarithm",
        )
        _refuse_unless(self.query in get_args(Query), "query", self.query, "'a' or 'b'", "name one of the two keys")
        _refuse_unless(self.dtype in DTYPES, "dtype", self.dtype, "float32 or float64", "cast the batch afterwards")


@dataclass(frozen=True, slots=True)
class Collision:
    """A batch of collisions, laid out for ``bayesian_filter`` with one head, and what was written.

    Attributes:
        q: queries, the same key at every token.
        k: keys, the first ``writes_a`` times, then the second.
        v: clean values plus noise.
        key_a: first unit key of every row.
        key_b: second unit key, at the cosine to the first.
        value_a: clean value of the first association, standard normal in every channel.
        value_b: clean value of the second.
    """

    q: Float[Tensor, "B T 1 K"]
    k: Float[Tensor, "B T 1 K"]
    v: Float[Tensor, "B T 1 V"]
    key_a: Float[Tensor, "B K"]
    key_b: Float[Tensor, "B K"]
    value_a: Float[Tensor, "B V"]
    value_b: Float[Tensor, "B V"]


def make_collision(config: CollisionConfig) -> Collision:
    """Draw the batch that ``config`` describes. Pure: the same configuration gives the same numbers.

    Keys and values do not depend on the numbers of writes, nor on the noise's size, so that curves over
    those compare like with like.

    Args:
        config: sizes, cosine, writes, noise and seed.

    Returns:
        Sequences of ``writes_a + writes_b`` tokens on the CPU.
    """
    generator = torch.Generator().manual_seed(config.seed)
    rows, length = config.rows, config.writes_a + config.writes_b

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    key_a, other = torch.nn.functional.normalize(draw(2, rows, config.key_dim), dim=-1)
    value_a, value_b = draw(2, rows, config.value_dim)
    noise = config.noise_std * draw(rows, length, config.value_dim)
    # Twice, since one pass leaves a rounding error that normalising a short remainder would magnify.
    for _ in range(2):
        other = other - (other * key_a).sum(-1, keepdim=True) * key_a
        other = torch.nn.functional.normalize(other, dim=-1)
    sine = math.sqrt((1 - config.cosine) * (1 + config.cosine))
    key_b = config.cosine * key_a + sine * other
    is_b = (torch.arange(length) >= config.writes_a)[:, None]
    k = torch.where(is_b, key_b[:, None], key_a[:, None])
    v = torch.where(is_b, value_b[:, None], value_a[:, None]) + noise
    q = (key_a if config.query == "a" else key_b)[:, None].expand_as(k)
    streams = (x[:, :, None].to(config.dtype).contiguous() for x in (q, k, v))
    return Collision(*streams, *(x.to(config.dtype) for x in (key_a, key_b, value_a, value_b)))


def _refuse_unless(fits: bool, name: str, came: object, expected: str, mend: str) -> None:
    if not fits:
        raise ValueError(f"{name} is {came}; expected {expected} ({mend}).")

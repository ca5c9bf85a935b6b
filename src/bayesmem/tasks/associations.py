"""Many associations in one memory: keys of random direction, each written once, in order."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class AssociationsConfig:
    """How many associations, and how noisy. Refuses bad numbers when made.

    Attributes:
        key_dim: key channels K.
        value_dim: value channels V.
        associations: N, each written once.
        noise_var: variance of the noise on every written value.
        rows: sequences B, each with its own keys, values and noise.
        seed: of a generator of its own.
    """

    key_dim: int = 64
    value_dim: int = 32
    associations: int = 64
    noise_var: float | int = 0.25
    rows: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("key_dim", "value_dim", "associations", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1 (ask for one or more).")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; expected 0 or more (leave the sign out).")
        if not (math.isfinite(self.noise_var) and self.noise_var >= 0):
            raise ValueError(f"noise_var is {self.noise_var}; expected a finite number, 0 or more (not a logarithm).")


@dataclass(frozen=True, slots=True)
class Associations:
    """A batch of sequences, laid out for a filter with one head, and the clean values.

    Attributes:
        k: unit keys of uniformly random direction.
        v: clean values plus noise.
        values: clean values, standard normal.
    """

    k: Float[Tensor, "B N 1 K"]
    v: Float[Tensor, "B N 1 V"]
    values: Float[Tensor, "B N V"]


def make_associations(config: AssociationsConfig) -> Associations:
    """Draw the batch that ``config`` describes, in float64. Pure: the same configuration gives the same numbers."""
    generator = torch.Generator().manual_seed(config.seed)

    def draw(channels: int) -> Tensor:
        return torch.randn(config.rows, config.associations, channels, generator=generator, dtype=torch.float64)

    k = torch.nn.functional.normalize(draw(config.key_dim), dim=-1)
    values = draw(config.value_dim)
    v = values + math.sqrt(config.noise_var) * draw(config.value_dim)
    return Associations(k[:, :, None], v[:, :, None], values)

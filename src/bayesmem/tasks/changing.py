"""A memory that changes while it is measured: a linear-Gaussian one, drawn as the design models assume it.

``S_t = a S_{t-1} + W_t`` from ``S_0 ~ N(0, 1)``, measured through a key at every token. ``walk_var`` is the variance
of ``W_t`` in every direction, ``refill_var`` what comes on top along the key last written: with
``a^2 / (1 + r)`` there and ``1 - a^2`` everywhere it is the memory of which the (gated) delta rule is the exact filter.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ChangingConfig:
    """How a memory changes. Refuses bad numbers when made.

    Attributes:
        key_dim: key channels K.
        value_dim: value channels V.
        tokens: T.
        one_key: every token has the same key, else each its own of random direction.
        decay: a, in [0, 1].
        walk_var: variance of the memory's noise at each token, in every direction.
        refill_var: variance of its noise along the key last written.
        noise_var: variance of the values' noise.
        rows: sequences B.
        seed: of a generator of its own.
    """

    key_dim: int = 16
    value_dim: int = 32
    tokens: int = 32
    one_key: bool = False
    decay: float | int = 1.0
    walk_var: float | int = 0.0
    refill_var: float | int = 0.0
    noise_var: float | int = 0.25
    rows: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("key_dim", "value_dim", "tokens", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1 (ask for one or more).")
        for name in ("walk_var", "refill_var", "noise_var", "seed"):
            number = getattr(self, name)
            if not (math.isfinite(number) and number >= 0):
                raise ValueError(f"{name} is {number}; expected a finite number, 0 or more (leave the sign out).")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay is {self.decay}; expected a factor in [0, 1] (not its logarithm).")


@dataclass(frozen=True, slots=True)
class Changing:
    """A batch of measured memories, laid out for a filter with one head.

    Attributes:
        q: one unit query a row, the same at every token: the one key, or a random direction.
        k: unit keys.
        v: what was measured.
        clean: the memory at the query, after the last token.
    """

    q: Float[Tensor, "B T 1 K"]
    k: Float[Tensor, "B T 1 K"]
    v: Float[Tensor, "B T 1 V"]
    clean: Float[Tensor, "B V"]


def make_changing(config: ChangingConfig) -> Changing:
    """Draw the batch that ``config`` describes, in float64. Pure: the same configuration gives the same numbers."""
    generator = torch.Generator().manual_seed(config.seed)
    rows, length, channels = config.rows, config.tokens, config.value_dim

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    keys = torch.nn.functional.normalize(draw(rows, 1 if config.one_key else length, config.key_dim), dim=-1)
    keys = keys.expand(rows, length, config.key_dim)
    if config.one_key:  # only the memory along the key is ever seen: one number a channel
        query, seen = keys[:, 0], torch.ones(rows, length, 1, dtype=torch.float64)
    else:
        query, seen = torch.nn.functional.normalize(draw(rows, config.key_dim), dim=-1), keys
    memory = draw(rows, seen.shape[-1], channels)
    values = []
    for t in range(length):
        memory = config.decay * memory
        if config.walk_var:
            memory = memory + math.sqrt(config.walk_var) * draw(*memory.shape)
        if config.refill_var and t:
            memory = memory + math.sqrt(config.refill_var) * seen[:, t - 1, :, None] * draw(rows, 1, channels)
        values.append((seen[:, t, :, None] * memory).sum(1))
    v = torch.stack(values, 1) + math.sqrt(config.noise_var) * draw(rows, length, channels)
    clean = memory[:, 0] if config.one_key else (query[..., None] * memory).sum(1)
    q = query[:, None].expand_as(keys)
    return Changing(q[:, :, None].contiguous(), keys[:, :, None].contiguous(), v[:, :, None], clean)

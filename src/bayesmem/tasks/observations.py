"""Continuous associative recall: noisy observations of associations, some repeated, some changed, then queries.

Two worlds, each with a known best predictor (``tasks.optimal``). In the *linear* world the values are those of a
Gaussian matrix, ``v = S^T k``, and it drifts: what a linear memory assumes. In the *lookup* world every key has an
independent Gaussian value of its own, however similar the keys are: more than a linear memory can hold.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

WORLDS, CHANGES = ("linear", "lookup"), ("drift", "redraw")
FILLER, OBSERVATION, QUERY = 0, 1, 2

Draw = Callable[..., Tensor]


@dataclass(frozen=True, slots=True)
class ObservationsConfig:
    """What a row shows and asks. Refuses what cannot be made when made.

    Attributes:
        world: ``linear`` or ``lookup``.
        key_dim: key channels K; keys are unit vectors.
        value_dim: value channels V; a clean value has variance 1 in each.
        pairs: associations N.
        repeats: observations of an association on average, 1 or more: each is seen once, the rest at random.
        fillers: tokens that say nothing, at random places among the observations.
        queries: tokens at the end that ask, each for a random association.
        noise_var: variance of the noise on every observed value. It is told with each observation.
        similarity: about the mean cosine of two keys, in [0, 1): all lean to one direction of the row; 0 is uniform.
        change: ``drift``, at every token each value moves as an AR(1) process of stationary variance 1; or ``redraw``
            (lookup only), an association's value may be drawn anew just before it is seen again.
        rate: of a drift, ``1 - a^2`` a token; of redraws, their probability an observation after the first.
        strangers: share of queries whose key was never shown.
    """

    world: str = "linear"
    key_dim: int = 16
    value_dim: int = 8
    pairs: int = 8
    repeats: float | int = 2
    fillers: int = 4
    queries: int = 8
    noise_var: float | int = 0.1
    similarity: float | int = 0.0
    change: str = "drift"
    rate: float | int = 0.0
    strangers: float | int = 0.0

    def __post_init__(self) -> None:
        for name, known in (("world", WORLDS), ("change", CHANGES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected {' or '.join(map(repr, known))}.")
        for name in ("key_dim", "value_dim", "pairs", "queries"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if self.fillers < 0:
            raise ValueError(f"fillers is {self.fillers}; expected 0 (none) or more.")
        if not (math.isfinite(self.repeats) and self.repeats >= 1):
            raise ValueError(f"repeats is {self.repeats}; every association is seen: expected 1 or more.")
        if not (math.isfinite(self.noise_var) and self.noise_var > 0):
            raise ValueError(f"noise_var is {self.noise_var}; its logarithm is told: expected a positive variance.")
        if not 0 <= self.similarity < 1:
            raise ValueError(f"similarity is {self.similarity}; expected a cosine in [0, 1); at 1 keys are all one.")
        for name in ("rate", "strangers"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a share in [0, 1].")
        if self.world == "linear" and self.change == "redraw":
            raise ValueError(
                "change is 'redraw' in the linear world, whose values are all of one matrix and none can be redrawn by "
                "itself; choose change='drift', or world='lookup'."
            )

    @property
    def observations(self) -> int:
        """Observations a row."""
        return round(self.pairs * self.repeats)

    @property
    def context(self) -> int:
        """Tokens before the first query."""
        return self.observations + self.fillers

    @property
    def features(self) -> int:
        """Channels of a token: key, value, the noise's log variance, and what kind of token it is."""
        return self.key_dim + self.value_dim + 4


@dataclass(frozen=True, slots=True)
class Observations:
    """A batch of rows; queries are the last Q tokens.

    Attributes:
        config: what was drawn.
        kind: of every token, filler, observation or query.
        item: which association a token is of, -1 at fillers; strangers are numbered on from N.
        keys: unit keys, 0 at fillers.
        values: observed values, 0 where nothing is observed.
        targets: clean values at the queries, when they are asked.
    """

    config: ObservationsConfig
    kind: Int[Tensor, "B T"]
    item: Int[Tensor, "B T"]
    keys: Float[Tensor, "B T K"]
    values: Float[Tensor, "B T V"]
    targets: Float[Tensor, "B Q V"]

    @property
    def stranger(self) -> Bool[Tensor, "B Q"]:
        """Which queries ask for a key that was never shown."""
        return self.item[:, -self.config.queries :] >= self.config.pairs

    @property
    def features(self) -> Float[Tensor, "B T F"]:
        """The tokens as a model sees them, float32."""
        kinds = torch.nn.functional.one_hot(self.kind, 3).to(self.keys.dtype)
        noise = math.log(self.config.noise_var) * kinds[..., OBSERVATION, None]
        return torch.cat([self.keys, self.values, noise, kinds], -1).float()


def make(config: ObservationsConfig, rows: int, seed: int, device: str | torch.device = "cpu") -> Observations:
    """Draw rows in float64 from a generator of their own, on ``device``; the same arguments give the same rows.

    Raises:
        ValueError: fewer than one row, or a negative seed.
    """
    if rows < 1 or seed < 0:
        raise ValueError(f"rows is {rows} and seed {seed}; expected at least one row and a seed of 0 or more.")
    c, generator = config, torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(rows, *shape, generator=generator, device=device, dtype=torch.float64)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(rows, *shape, generator=generator, device=device, dtype=torch.float64)

    item = _items(c, uniform)
    kind = torch.where(item < 0, FILLER, OBSERVATION)
    kind[:, c.context :] = QUERY
    keys = _keys(c, normal)
    known = item.clamp(min=0)
    k = keys.gather(1, known[..., None].expand(-1, -1, c.key_dim)) * (item >= 0)[..., None]
    clean = _clean(c, item, k, normal, uniform)
    noisy = clean + math.sqrt(c.noise_var) * normal(*clean.shape[1:])
    values = noisy * (kind == OBSERVATION)[..., None]
    return Observations(c, kind, item, k, values, clean[:, c.context :])


def _items(c: ObservationsConfig, uniform: Draw) -> Int[Tensor, "B T"]:
    """The association of every token: all once and some again, in random order among fillers; then the queries'."""
    extra = (uniform(c.observations - c.pairs) * c.pairs).long()
    once = torch.arange(c.pairs, device=extra.device).expand(len(extra), -1)
    nothing = torch.full((len(extra), c.fillers), -1, device=extra.device)
    shown = torch.cat([once, extra, nothing], 1)
    shown = shown.gather(1, uniform(c.context).argsort(1))
    asked = (uniform(c.queries) * c.pairs).long()
    if c.strangers:
        strange = c.pairs + torch.arange(c.queries, device=extra.device)
        asked = torch.where(uniform(c.queries) < c.strangers, strange, asked)
    return torch.cat([shown, asked], 1)


def _keys(c: ObservationsConfig, normal: Draw) -> Float[Tensor, "B P K"]:
    """Unit keys of all associations, and of as many strangers as there are queries."""
    unit = torch.nn.functional.normalize
    common = unit(normal(1, c.key_dim), dim=-1)
    own = unit(normal(c.pairs + c.queries, c.key_dim), dim=-1)
    return unit(math.sqrt(c.similarity) * common + math.sqrt(1 - c.similarity) * own, dim=-1)


def _clean(c: ObservationsConfig, item: Tensor, k: Tensor, normal: Draw, uniform: Draw) -> Float[Tensor, "B T V"]:
    """The clean value of every token at its time, 0 at fillers."""
    linear = c.world == "linear"
    count = c.key_dim if linear else c.pairs + c.queries
    memory = normal(count, c.value_dim)
    seen = torch.zeros(len(item), count, dtype=torch.bool, device=item.device)
    decay, found = math.sqrt(1 - c.rate), []
    every = torch.arange(len(item), device=item.device)
    for t in range(item.shape[1]):
        now, real = item[:, t].clamp(min=0), item[:, t] >= 0
        if c.change == "drift" and c.rate:
            memory = decay * memory + math.sqrt(c.rate) * normal(*memory.shape[1:])
        elif c.change == "redraw" and c.rate and t < c.context:
            anew = real & seen[every, now] & (uniform(1)[:, 0] < c.rate)
            memory[every, now] = torch.where(anew[:, None], normal(c.value_dim), memory[every, now])
            seen[every, now] |= real
        value = (k[:, t, :, None] * memory).sum(1) if linear else memory[every, now]
        found.append(value * real[:, None])
    return torch.stack(found, 1)

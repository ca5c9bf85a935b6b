"""What is simulated at one point: the real filter on fresh data, one independent number a row."""

import math

import numpy as np
import torch
from torch import Tensor

from bayesmem.experiments.collision_rules import Rule
from bayesmem.experiments.measure import Simulate
from bayesmem.tasks.associations import AssociationsConfig, make_associations
from bayesmem.tasks.changing import ChangingConfig, make_changing
from bayesmem.tasks.collision import CollisionConfig, Query, make_collision

KEY_DIM, VALUE_DIM = 16, 32


def collide(
    rule: Rule,
    writes_a: int,
    writes_b: int,
    noise_var: float | int,
    cosine: float | int = 0.0,
    query: Query = "a",
    over_var: bool = False,
) -> Simulate:
    """Squared error of one association's recall after both were written; over the reported variance if asked."""

    def simulate(rows: int, seed: int) -> np.ndarray:
        config = CollisionConfig(
            KEY_DIM, VALUE_DIM, cosine, writes_a, writes_b, math.sqrt(noise_var), rows, query, seed
        )
        data = make_collision(config)
        out = rule.filter(data.q, data.k, data.v, ("predictive_var",) if over_var else ())
        clean = data.value_a if query == "a" else data.value_b
        error = (out.o[:, -1, 0] - clean).square()
        return _numbers(error / out.predictive_var[:, -1] if out.predictive_var is not None else error)

    return simulate


def gain(rule: Rule, nth: int, key_dim: int = KEY_DIM) -> float:
    """Measured gain of the n-th write of one key: what a unit impulse written then moves the recall by."""
    generator = torch.Generator().manual_seed(nth)
    key = torch.nn.functional.normalize(torch.randn(key_dim, generator=generator, dtype=torch.float64), dim=-1)
    k = key.expand(1, nth, 1, key_dim)
    impulse = torch.zeros(1, nth, 1, 1, dtype=torch.float64)
    impulse[:, -1] = 1
    return rule.filter(k, k, impulse).o[0, -1, 0, 0].item()


def load(rule: Rule, associations: int, key_dim: int, noise_var: float | int, age: int | None = None) -> Simulate:
    """Squared error of stored associations after the last write: of all, or of the one of an age."""

    def simulate(rows: int, seed: int) -> np.ndarray:
        data = make_associations(AssociationsConfig(key_dim, VALUE_DIM, associations, noise_var, rows, seed))
        belief = rule.filter(data.k, data.k, data.v, ("final_belief",)).final_belief
        assert belief is not None
        recalled = data.k[:, :, 0] @ belief.mean[:, 0]  # type: ignore[union-attr]
        error = (recalled - data.values).square()
        return _numbers(error.flatten(1) if age is None else error[:, associations - 1 - age])

    return simulate


def settled_var(rule: Rule, key_dim: int, tokens: int) -> Simulate:
    """The variance reported at random queries once a memory has settled, averaged over its last quarter."""

    def simulate(rows: int, seed: int) -> np.ndarray:
        generator = torch.Generator().manual_seed(seed)
        k, q = torch.nn.functional.normalize(
            torch.randn(2, rows, tokens, 1, key_dim, generator=generator, dtype=torch.float64), dim=-1
        )
        var = rule.filter(q, k, torch.zeros_like(k[..., :1]), ("predictive_var",)).predictive_var
        assert var is not None
        return _numbers(var[:, -tokens // 4 :, 0])

    return simulate


def change(rule: Rule, config: ChangingConfig, what: str = "error", level: float | int = 0.95) -> Simulate:
    """Recall of a changing memory: its squared error, that over the reported variance, or interval coverage.

    Args:
        rule: what filters.
        config: the memory; its rows and seed are replaced.
        what: ``error``, ``ratio`` or ``coverage``.
        level: of the central predictive interval whose coverage is counted.
    """
    wide = math.sqrt(2) * torch.erfinv(torch.tensor(level, dtype=torch.float64)).item()

    def simulate(rows: int, seed: int) -> np.ndarray:
        settings = {name: getattr(config, name) for name in ChangingConfig.__slots__}
        data = make_changing(ChangingConfig(**settings | {"rows": rows, "seed": seed}))
        out = rule.filter(data.q, data.k, data.v, () if what == "error" else ("predictive_var",))
        error = (out.o[:, -1, 0] - data.clean).square()
        if what == "error":
            return _numbers(error)
        assert out.predictive_var is not None
        ratio = error / out.predictive_var[:, -1]
        return _numbers((ratio <= wide**2).double() if what == "coverage" else ratio)

    return simulate


def _numbers(channels: Tensor) -> np.ndarray:
    return channels.mean(-1).numpy() if channels.ndim > 1 else channels.numpy()

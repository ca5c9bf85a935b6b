"""The rules of the zoo that have closed forms, with their settings: how each filters, and what it should do."""

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesmem.design import ZOO, DesignModel, Prior
from bayesmem.theory import drift, horizon, repeats, steady_state
from bayesmem.theory.collision import (
    Retrieval,
    bayesian_retrieval,
    delta_rule_retrieval,
    linear_attention_retrieval,
)
from bayesmem.types import FilterOutput

CONSTANT = ("deltanet", "gated_deltanet", "bayesian_steady")  # a gain that never changes
STATIC = ("bayesian_static", "kalman_diagonal", "kalman_isotropic")


@dataclass(frozen=True, slots=True)
class Rule:
    """A design of the zoo with numbers for its inputs; those that it does not take stay at their defaults.

    Attributes:
        name: in the zoo.
        obs_noise: r that it assumes.
        decay: a of its mean.
        retention: rho of its covariance, where it is apart from the decay.
        discount: gamma.
        prior_var: p0 that it assumes.
        label: in figures, where the name alone does not tell.
    """

    name: str
    obs_noise: float | int = 0.25
    decay: float | int = 1.0
    retention: float | int = 1.0
    discount: float | int = 1.0
    prior_var: float | int = 1.0
    label: str = ""

    @property
    def kept(self) -> float:
        """The retention of the covariance, the decay where that is what sets it."""
        return float(self.decay if self.name == "bayesian_forgetting" else self.retention)

    def but(self, **changes: Any) -> "Rule":
        """The same rule with other numbers."""
        return replace(self, **changes)

    def filter(self, q: Tensor, k: Tensor, v: Tensor, outputs: tuple[str, ...] = ()) -> FilterOutput:
        """Filter one head's evidence ``[B, T, 1, D]`` by the zoo's design."""
        model, axes = _design(self.name, self.prior_var)
        numbers = {
            "log_decay": math.log(self.decay),
            "log_retention": math.log(self.kept),
            "log_discount": math.log(self.discount),
            "obs_noise": self.obs_noise,
            "process_noise": 0.0,
            "prior_var": self.prior_var,
        }
        sizes = {"B": k.shape[0], "T": k.shape[1], "N": k.shape[1], "H": 1, "K": k.shape[3]}
        inputs = {
            name: torch.full([sizes[axis] for axis in named.split()], float(numbers[name]), dtype=k.dtype)
            for name, named in axes.items()
        }
        return model.filter(q, k, v, outputs=outputs, **inputs)  # type: ignore[arg-type]

    def beta(self, key_dim: int) -> float:
        """The gain of the rules whose gain is constant, for unit keys."""
        var = self.prior_var
        if self.name == "bayesian_steady":
            var = float(steady_state.predicted_var(self.retention, self.obs_noise, key_dim, self.prior_var))
        return var / (var + self.obs_noise)

    def gains(self, writes: int, key_dim: int) -> np.ndarray:
        """Predicted gains of n writes of one key in a row."""
        return _gains(self, writes, key_dim)

    def error_of_repeats(self, writes: int, noise_var: float | int, key_dim: int) -> float:
        """Predicted squared error after n writes of one key, values of variance 1."""
        if self.name == "linear_attention":
            return float(repeats.linear_attention_error(writes, 1.0, noise_var))
        if self.name == "bayesian_static":
            return float(repeats.bayesian_error(writes, 1.0, noise_var, self.obs_noise, self.prior_var))
        if self.name in CONSTANT and self.decay == 1:
            return float(repeats.delta_rule_error(writes, 1.0, noise_var, self.beta(key_dim)))
        return float(repeats.error_of_gains(self.gains(writes, key_dim), 1.0, noise_var, self.decay)[-1])

    def reported(self, writes: int, key_dim: int) -> float:
        """The variance that the memory reports at a key after n writes of it: ``p = m r / (m + r) = g r``."""
        return float(self.gains(writes, key_dim)[-1]) * self.obs_noise

    def retrieval(
        self,
        n_a: int,
        n_b: int,
        cosine: float | int,
        key_dim: int,
        overlap: tuple[float | int, float | int] | None = None,
    ) -> Retrieval:
        """Predicted recall after a collision, for the rules that have one in closed form."""
        if self.name == "linear_attention":
            return linear_attention_retrieval(n_a, n_b, cosine)
        if self.name in CONSTANT and self.decay == 1:
            return delta_rule_retrieval(n_a, n_b, cosine, self.beta(key_dim))
        assert self.name == "bayesian_static", self.name
        return bayesian_retrieval(n_a, n_b, cosine, self.obs_noise, self.prior_var)


@cache
def _design(name: str, prior_var: float | int) -> tuple[DesignModel, dict[str, str]]:
    """The zoo's design under a prior, and the axes of its inputs by name."""
    model = ZOO[name]
    assert isinstance(model, DesignModel)
    inputs = {x.name: x.axes for x in model.recurrence.inputs}
    if prior_var != 1 and "prior_var" not in inputs:
        model = model.but(prior=Prior(var=prior_var))
    return model, inputs


@cache
def _gains(rule: Rule, writes: int, key_dim: int) -> np.ndarray:
    r, p0 = rule.obs_noise, rule.prior_var
    count = np.arange(1, writes + 1)
    if rule.name in CONSTANT:
        return np.full(writes, rule.beta(key_dim))
    if rule.name in STATIC:
        return np.asarray(repeats.bayesian_gain(count, r, p0))
    if rule.name in ("bayesian", "bayesian_forgetting"):
        return repeats.retained_gains(writes, rule.kept, r, p0)
    assert rule.name in ("rls", "mesanet"), rule.name
    floor = 0.0 if rule.name == "rls" else 1.0
    return np.asarray(horizon.discounted_gain(count, rule.discount, r, p0, floor))


def walk_error(rule: Rule, writes: int, walk_var: float | int, noise_var: float | int, key_dim: int) -> float:
    """Squared error against the present value of a random walk that is written at every step, from variance 1."""
    gains = rule.gains(writes, key_dim)
    return float(drift.tracking_error(gains, noise_var, walk_var, 1.0, decay=rule.decay)[-1])


def jump_error(rule: Rule, before: int, after: int, noise_var: float | int, key_dim: int) -> float:
    """Squared error against the new value, after a key's value jumped: independent values of variance 1."""
    assert rule.decay == 1, rule.name
    gains = rule.gains(before + after, key_dim)
    # The bias is linear in both values: over independent signs what they have in common cancels.
    same, opposite = (drift.jump_error(gains, before, 1.0, sign, noise_var)[-1] for sign in (1.0, -1.0))
    return float((same + opposite) / 2)

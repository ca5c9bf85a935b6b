"""Settings of the collision study, and what its sweeps have in common."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bayesmem.experiments import collision_simulations as simulations
from bayesmem.experiments.collision_rules import Rule
from bayesmem.experiments.measure import Simulate
from bayesmem.tasks.collision import CollisionConfig

KEY_DIM = simulations.KEY_DIM
LOAD_KEY_DIM = 64
RETAINED = 0.99  # of the mean or of the covariance, at each token
WALK_VAR = 0.02  # about 1 - RETAINED ** 2: what the retention expects
BEFORE = 32  # writes before a value jumps
COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
FEW_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)
COSINES = (-0.95, -0.8, -0.6, -0.3, 0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0)
NOISES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
ASSOCIATIONS = (2, 8, 16, 32, 48, 64, 96, 128)
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
AGES = (0, 1, 4, 8, 16, 32, 48, 63)
TOKENS = (2, 8, 16, 32, 64, 96)
LEVELS = (0.5, 0.8, 0.9, 0.95)


@dataclass(frozen=True, slots=True)
class CollisionRun:
    """Settings of the collision study.

    Attributes:
        noise_var: variance of the values' noise, and the observation noise that the filters assume.
        cosine: between the two keys, where it is not swept.
        writes_a: times the first association is written before the second comes.
        precision: half-width of the 95% intervals aimed at, as a share of the value.
        least: fewest rows a point, and those of its pilot.
        most: most rows a point.
        seed: of all draws.
    """

    noise_var: float | int = 0.25
    cosine: float | int = 0.7
    writes_a: int = 8
    precision: float | int = 0.02
    least: int = 128
    most: int = 20_000
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_var) and self.noise_var > 0):
            raise ValueError(f"noise_var is {self.noise_var}; the filters assume it too: expected a positive variance.")
        if not 0.001 <= self.precision <= 0.5:
            raise ValueError(
                f"precision is {self.precision}; expected a share of the value in [0.001, 0.5], such as 0.02 for 2%."
            )
        if not 8 <= self.least <= self.most:
            raise ValueError(f"least is {self.least} and most {self.most}; expected 8 <= least <= most rows a point.")
        if self.writes_a < 1:
            raise ValueError(f"writes_a is {self.writes_a}; expected at least 1: write the first association too.")
        CollisionConfig(cosine=self.cosine, writes_a=self.writes_a, seed=self.seed)  # refuses what cannot be made


def quick(**changes: Any) -> CollisionRun:
    """Settings that take seconds: intervals five times as wide."""
    return CollisionRun(**{"precision": 0.1, "least": 48} | changes)


@dataclass(frozen=True, slots=True)
class Curve:
    """One rule over one panel of a sweep.

    Attributes:
        panel: of the sweep's figure.
        rule: its name in the zoo.
        label: in the legend.
        x: where points are simulated.
        predict: the closed form, at any x of ``line``.
        simulate: what draws the rows of the point at x; ``None`` where ``measured`` gives the number itself.
        measured: of a number that does not depend on chance.
        line: where the prediction is drawn; empty for ``x``.
        bound: relative error that an approximate prediction claims at x; ``None`` where it claims to be exact.
        least: fewest rows a point, where the points average much by themselves.
    """

    panel: str
    rule: str
    label: str
    x: Sequence[float | int]
    predict: Callable[[Any], float]
    simulate: Callable[[Any], Simulate] | None = None
    measured: Callable[[Any], float] | None = None
    line: Sequence[float | int] = field(default=())
    bound: Callable[[float | int], float] | None = None
    least: int | None = None


def rules_at(noise: float | int) -> dict[str, Rule]:
    """The rules with the settings they have wherever those are not swept."""
    forget = f"= {RETAINED}"
    return {
        "linear_attention": Rule("linear_attention"),
        "deltanet": Rule("deltanet", noise),
        "gated_deltanet": Rule("gated_deltanet", noise, decay=RETAINED, label=f"gated_deltanet, a {forget}"),
        "bayesian_steady": Rule("bayesian_steady", noise, retention=RETAINED, label=f"bayesian_steady, ρ {forget}"),
        "bayesian": Rule("bayesian", noise, retention=RETAINED, label=f"bayesian, ρ {forget}"),
        "bayesian_forgetting": Rule(
            "bayesian_forgetting", noise, decay=RETAINED, label=f"bayesian_forgetting, a {forget}"
        ),
        "rls": Rule("rls", noise, discount=0.9, label="rls, γ = 0.9"),
        "mesanet": Rule("mesanet", noise, discount=0.9, label="mesanet, γ = 0.9"),
        "kalman_diagonal": Rule("kalman_diagonal", noise, label="kalman_diagonal, K = 1"),
        "kalman_isotropic": Rule("kalman_isotropic", noise, label="kalman_isotropic, K = 1"),
        "bayesian_static": Rule("bayesian_static", noise),
    }


def integers(most: int) -> list[int]:
    """Whole numbers up to ``most``, for a line over a logarithmic axis."""
    return sorted({round(1.12**i) for i in range(200) if 1.12**i <= most} | {most})


def between(low: float | int, high: float | int, log: bool = False) -> list[float]:
    """Sixty-one numbers for a line, evenly spaced or evenly on a logarithmic axis."""
    parts = [i / 60 for i in range(61)]
    return [low * (high / low) ** p for p in parts] if log else [low + (high - low) * p for p in parts]

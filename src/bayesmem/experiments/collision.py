"""Collision: predicted against simulated recall, for three rules that see the same evidence."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bayesmem.ops import Assumptions, bayesian_filter
from bayesmem.report import BAYESIAN, DELTA, LINEAR
from bayesmem.report.records import records_in
from bayesmem.tasks.collision import CollisionConfig, make_collision
from bayesmem.theory import collision as theory

EXPERIMENT = "collision"
RULES = {
    BAYESIAN: Assumptions(covariance="full"),
    DELTA: Assumptions(covariance="reset"),
    LINEAR: Assumptions(write="latent_input"),
}


@dataclass(frozen=True, slots=True)
class CollisionRun:
    """Settings of the collision experiment; the defaults take a few seconds.

    Attributes:
        key_dim: K.
        value_dim: V.
        cosine: between the two keys.
        writes_a: times the first association is written before the second comes.
        writes_b: most writes of the second.
        noise_var: variance of the values' noise, and the observation noise that the filters assume.
        rows: sequences simulated.
        seed: of the draws.
    """

    key_dim: int = 32
    value_dim: int = 16
    cosine: float | int = 0.7
    writes_a: int = 8
    writes_b: int = 64
    noise_var: float | int = 0.25
    rows: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.noise_var > 0:
            raise ValueError(f"noise_var is {self.noise_var}; the filters assume it too: expected a positive variance.")
        self.task()  # refuses what cannot be made

    def task(self, **changes: int) -> CollisionConfig:
        """The data of one sweep."""
        settings: dict[str, Any] = asdict(self) | changes
        settings["noise_std"] = settings.pop("noise_var") ** 0.5
        return CollisionConfig(**settings)


def run(config: CollisionRun, out: Path) -> None:
    """Simulate both sweeps under all rules and write them beside their predictions."""
    records, settings = records_in(out), asdict(config)
    if records.find(EXPERIMENT, "collision", settings):
        return
    repeats = np.arange(1, config.writes_b + 1)
    sweeps: dict[str, tuple[CollisionConfig, np.ndarray, np.ndarray]] = {
        "repeats": (config.task(writes_a=config.writes_b, writes_b=0), repeats, np.zeros_like(repeats)),
        "collision": (config.task(), np.full_like(repeats, config.writes_a), repeats),
    }
    for name, (task, n_a, n_b) in sweeps.items():
        figures: dict[str, Any] = {"writes": repeats.tolist()}
        figures |= {rule: _sweep(rule, assumptions, task, config, n_a, n_b) for rule, assumptions in RULES.items()}
        records.add(EXPERIMENT, name, settings, figures)


def _sweep(
    rule: str, assumptions: Assumptions, task: CollisionConfig, config: CollisionRun, n_a: np.ndarray, n_b: np.ndarray
) -> dict[str, Any]:
    """Squared error of the first association's recall after every write: predicted, simulated, 95% half-width."""
    data = make_collision(task)
    gate = torch.zeros(data.k.shape[:3], dtype=data.k.dtype)
    noise = None if rule == LINEAR else torch.full_like(gate, config.noise_var)
    o = bayesian_filter(data.q, data.k, data.v, gate, noise, assumptions).o[:, :, 0]
    error = (o - data.value_a[:, None]).square()[:, -len(n_a) :]
    row_means = error.mean(-1).numpy()
    if rule == BAYESIAN:
        recall = theory.bayesian_retrieval(n_a, n_b, config.cosine, config.noise_var)
    elif rule == DELTA:
        recall = theory.delta_rule_retrieval(n_a, n_b, config.cosine, 1 / (1 + config.noise_var))
    else:
        recall = theory.linear_attention_retrieval(n_a, n_b, config.cosine)
    # Values are standard normal: the bias, linear in them, squares to the sum of its weights' squares.
    predicted = (recall.weight_a - 1) ** 2 + recall.weight_b**2 + recall.variance(config.noise_var)
    half = 1.96 * row_means.std(0, ddof=1) / np.sqrt(len(row_means))
    simulated = row_means.mean(0)
    return {
        "predicted": predicted.tolist(),
        "simulated": simulated.tolist(),
        "half_width": half.tolist(),
        "covered": float((np.abs(simulated - predicted) <= half).mean()),
    }

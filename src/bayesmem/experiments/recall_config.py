"""Settings of the recall study: what is trained on, how far beyond it is tested, and layers of equal state."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import product
from typing import Any

from bayesmem.layers import BayesianLayerConfig
from bayesmem.tasks.observations import WORLDS, ObservationsConfig
from bayesmem.train import TrainConfig

# What changes in each world, and how fast in training.
CHANGE: dict[str, tuple[str, float | int]] = {"linear": ("drift", 0.01), "lookup": ("redraw", 0.1)}
DESIGNS = (
    "bayesian_static",
    "bayesian",
    "bayesian_prior_mixing",
    "gated_deltanet",
    "deltanet",
    "kalman_diagonal",
    "mamba2",
    "linear_attention",
    "mesanet",
)
AXES = ("pairs", "length", "noise", "repeats", "similarity", "rate")


@dataclass(frozen=True, slots=True)
class RecallStudy:
    """Everything that one model's figures depend on, but for its world and design.

    The default's learning rate and ``norm_eps`` were chosen on ``bayesian``, mostly in the linear world, and are
    the same for every design.

    Attributes:
        key_dim: channels of a key.
        value_dim: channels of a value.
        queries: a row.
        context: tokens before the queries in training; fillers make it up.
        pairs: associations a row in training, one of these.
        repeats: observations of each on average, one of these.
        noise: noise variance of a row, one of these.
        hidden_size: model width.
        num_layers: blocks without MLP.
        head_dim: K of the one head of a full covariance; others get keys as wide as makes up its state.
        head_value_dim: V of the head; twice ``value_dim`` lets a SiLU pass a value whole.
        norm_eps: epsilon of all norms, so large that they keep scale: a posterior mean shrinks by how little is known,
            and a norm would divide just that out.
        init: standard deviation of the maps at the start.
        rows: training rows.
        test_rows: rows a tested point.
        tested_pairs: associations tested, all else at the far end of the trained range; likewise the others.
        tested_length: tokens before the queries.
        tested_noise: noise variances.
        tested_repeats: observations an association.
        tested_similarity: mean cosines of two keys; 0 in training.
        tested_rate: rates of change, in multiples of the trained one; 0 is none.
        train: how to train.
    """

    key_dim: int = 16
    value_dim: int = 8
    queries: int = 8
    context: int = 20
    pairs: tuple[int, ...] = (2, 4, 8)
    repeats: tuple[int, ...] = (1, 2)
    noise: tuple[float | int, ...] = (0.03, 0.1)
    hidden_size: int = 64
    num_layers: int = 1
    head_dim: int = 32
    head_value_dim: int = 16
    norm_eps: float | int = 10.0
    init: float | int = 0.125
    rows: int = 18_000
    test_rows: int = 256
    tested_pairs: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    tested_length: tuple[int, ...] = (20, 40, 80, 160, 320)
    tested_noise: tuple[float | int, ...] = (0.03, 0.1, 0.3, 1.0, 3.0)
    tested_repeats: tuple[int, ...] = (1, 2, 4, 8, 16)
    tested_similarity: tuple[float | int, ...] = (0.0, 0.2, 0.4, 0.6, 0.8)
    tested_rate: tuple[float | int, ...] = (0, 0.3, 1, 3, 9)
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=600, batch_size=64, learning_rate=1e-2, weight_decay=0.0, save_every=200
        )
    )

    def __post_init__(self) -> None:
        for one in fields(self):
            if isinstance(value := getattr(self, one.name), tuple) and not value:
                raise ValueError(f"{one.name} is empty; give at least one number.")
        if self.rows < 1 or self.test_rows < 2:
            raise ValueError(f"rows is {self.rows} and test_rows {self.test_rows}; expected at least 1 and 2.")
        if max(self.pairs) * max(self.repeats) > min(self.context, *self.tested_length):
            raise ValueError(
                f"{max(self.pairs)} pairs seen {max(self.repeats)} times do not fit into context {self.context}, or "
                f"into the shortest of tested_length {list(self.tested_length)}; make those longer."
            )
        for world in WORLDS:  # refuses what cannot be made, before training
            self.trained(world)
            for axis in AXES:
                self.tested(world, axis)

    def base(self, world: str) -> ObservationsConfig:
        """The far end of the trained range, from which each axis goes on."""
        change, rate = CHANGE[world]
        pairs, repeats = max(self.pairs), max(self.repeats)
        sizes = {"key_dim": self.key_dim, "value_dim": self.value_dim, "queries": self.queries}
        fillers, noise = self.context - pairs * repeats, max(self.noise)
        return ObservationsConfig(
            world, **sizes, pairs=pairs, repeats=repeats, fillers=fillers, noise_var=noise, change=change, rate=rate
        )

    def trained(self, world: str) -> list[ObservationsConfig]:
        """The settings mixed in training, all of one length."""
        base = self.base(world)
        return [
            replace(base, pairs=n, repeats=r, noise_var=v, fillers=self.context - n * r)
            for n, r, v in product(self.pairs, self.repeats, self.noise)
        ]

    def tested(self, world: str, axis: str) -> list[tuple[float | int, bool, ObservationsConfig]]:
        """Points of an axis: where on it, whether that lies beyond the trained range, and what is drawn."""
        base, points = self.base(world), getattr(self, f"tested_{axis}")
        if axis == "length":
            made = [replace(base, fillers=x - base.observations) for x in points]
            return [(x, x != self.context, c) for x, c in zip(points, made, strict=True)]
        if axis in ("similarity", "rate"):
            most, trained = CHANGE[world][1] if axis == "rate" else 1.0, (0.0,) if axis == "similarity" else (1.0,)
            values = [min(most * x, 1.0) for x in points]
            made = [replace(base, **{axis: x}) for x in values]
            return [(x, p not in trained, c) for x, p, c in zip(values, points, made, strict=True)]
        known = getattr(self, axis)
        name = {"noise": "noise_var"}.get(axis, axis)
        return [(x, not min(known) <= x <= max(known), replace(base, **{name: x})) for x in points]

    def mixer(self, design: str) -> dict[str, Any]:
        """A design's mixer: the full covariance's at ``head_dim``, any other with at least as many state numbers."""

        def sized(head_dim: int) -> BayesianLayerConfig:
            return BayesianLayerConfig(hidden_size=self.hidden_size, head_dim=head_dim, **common)

        common: dict[str, Any] = {"num_heads": 1, "value_dim": self.head_value_dim, "design": design}
        common |= {"conv_size": 0, "output_gate": "none", "norm_eps": self.norm_eps}
        budget = self.head_dim * (self.head_dim + self.head_value_dim)
        head_dim = self.head_dim
        while sized(head_dim).state_size < budget:
            head_dim += 1
        return common | {"head_dim": head_dim}

    def settings(self, world: str) -> dict[str, Any]:
        """As a record holds them; the points of the axes as they lie in this world."""
        change, rate = CHANGE[world]
        return asdict(self) | {"world": world, "change": change, "rate": rate}


def smoke(**changes: Any) -> RecallStudy:
    """Settings that take a second a model: whether everything runs, not what it finds."""
    small = RecallStudy(
        key_dim=6, value_dim=3, queries=4, context=8, pairs=(2, 4), repeats=(1, 2), hidden_size=24, head_dim=8,
        head_value_dim=6, rows=1200, test_rows=24, tested_pairs=(4, 8), tested_length=(8, 16), tested_noise=(0.1, 1.0),
        tested_repeats=(2, 4), tested_similarity=(0.0, 0.5), tested_rate=(0, 1),
        train=TrainConfig(steps=20, batch_size=32, learning_rate=1e-2, weight_decay=0.0, save_every=20, log_every=5),
    )  # fmt: skip
    return replace(small, **changes)


def large(**changes: Any) -> RecallStudy:
    """For a GPU: wider keys, more pairs, ten times the training."""
    wide = RecallStudy(
        key_dim=32, value_dim=16, queries=16, context=64, pairs=(4, 8, 16, 32), hidden_size=128, head_dim=64,
        head_value_dim=32, rows=96_000, test_rows=512, tested_pairs=(4, 8, 16, 32, 64, 128, 256),
        tested_length=(64, 128, 256, 512, 1024), tested_repeats=(1, 2, 4, 8, 16),
        train=TrainConfig(
            steps=6000, batch_size=128, learning_rate=5e-3, weight_decay=0.0, save_every=1000, log_every=50
        ),
    )  # fmt: skip
    return replace(wide, **changes)


SCALES: dict[str, Callable[..., RecallStudy]] = {"smoke": smoke, "default": RecallStudy, "large": large}

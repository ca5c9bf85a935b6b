"""The language study as data: one job of its queue with everything that its result depends on, and its sweep."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from bayesmem.experiments.language_models import MATCHED, MODELS, Shape, model_options, same_either_way
from bayesmem.models import BayesMemConfig
from bayesmem.train import RunConfig

EXPERIMENT = "language"
LEARNING_RATES = (1e-3, 2e-3, 4e-3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How every model is trained and tested.

    Attributes:
        tokens: to train on, repeats counted.
        length: tokens a row.
        batch_size: rows a step.
        micro_batch: rows at a time; the rest accumulates.
        schedule: of the learning rate, as of ``RunConfig``.
        bf16: mixed precision.
        choice_tokens: the first of the held-out text, by which learning rates are chosen and nothing else.
        evaluate_tokens: of the rest, from its start, to test on; 0 is all.
        reach: the longest contexts that are tested, as a multiple of ``length``.
        save_every: steps between checkpoints; a stop saves in any case.
        log_every: steps between logged losses.

    Raises:
        ValueError: an option out of its bounds.
    """

    tokens: int = 10_000_000
    length: int = 2048
    batch_size: int = 16
    micro_batch: int | None = None
    schedule: str = "cosine"
    bf16: bool = False
    choice_tokens: int = 2**17
    evaluate_tokens: int = 2**19
    reach: int = 4
    save_every: int = 500
    log_every: int = 10

    def __post_init__(self) -> None:
        if self.choice_tokens < self.length:
            raise ValueError(f"choice_tokens is {self.choice_tokens}; expected at least a row's {self.length}.")
        for name, least in (("evaluate_tokens", 0), ("reach", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {least}.")
        self.run(learning_rate=1e-3, seed=0)

    def run(self, **given: Any) -> RunConfig:
        """Of one training. Its texts are prepared before; names stand in for them."""
        shared = ("tokens", "length", "batch_size", "micro_batch", "schedule", "bf16", "save_every", "log_every")
        options: dict[str, Any] = {name: getattr(self, name) for name in shared}
        steps = max(1, self.tokens // (self.batch_size * self.length))
        options |= {"evaluate_every": steps, "evaluate_tokens": self.choice_tokens}  # once, at the end
        return RunConfig(data=("train",), held_out=("held_out",), **options, **given)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One training of the study, and its tests.

    Attributes:
        model: a design of the zoo.
        matched: to the Bayesian model, by ``"state"`` (and parameters) or by ``"parameters"`` alone.
        learning_rate: the peak.
        seed: of initialisation and order.
        shape: of the Bayesian model.
        recipe: how it is trained and tested.
        text: fingerprints of the tokens that are trained on and held out.

    Raises:
        ValueError: a model that cannot be matched, or options that a training refuses.
    """

    model: str
    matched: str = MATCHED[0]
    learning_rate: float | int = LEARNING_RATES[0]
    seed: int = 0
    shape: Shape = field(default_factory=Shape)
    recipe: Recipe = field(default_factory=Recipe)
    text: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        BayesMemConfig(**self.options)  # bad options are refused before any work
        self.recipe.run(learning_rate=self.learning_rate, seed=self.seed)

    @property
    def options(self) -> dict[str, Any]:
        """Options of the model's config, but the vocabulary."""
        return model_options(self.model, self.shape, self.matched)

    @property
    def run(self) -> RunConfig:
        """How it is trained."""
        return self.recipe.run(learning_rate=self.learning_rate, seed=self.seed)

    @property
    def settings(self) -> dict[str, Any]:
        """All of it as plain data: the settings of its record."""
        return json.loads(json.dumps(asdict(self)))

    @property
    def folder(self) -> str:
        """Name of its folder: what a reader would call it, and a hash of all settings."""
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:10]
        return f"{self.model}-{self.matched}-lr{self.learning_rate:g}-seed{self.seed}-{digest}"

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Job":
        """The job whose ``settings`` these are.

        Raises:
            ValueError: settings that no job has, or that are refused.
        """
        given = dict(settings)
        for name, kind in (("shape", Shape), ("recipe", Recipe)):
            if name in given:
                given[name] = kind(**_known(kind, given[name]))
        return cls(**_known(cls, given))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What all jobs of a study share, and the values that it tries.

    Attributes:
        models: designs of the zoo, in order.
        matched: some of ``MATCHED``, in order.
        learning_rates: tried with the first seed; the best goes on.
        seeds: of initialisation and order.
        shape: of the Bayesian model.
        recipe: how every model is trained and tested.

    Raises:
        ValueError: nothing to try, something twice, or what a job refuses.
    """

    models: tuple[str, ...] = MODELS
    matched: tuple[str, ...] = MATCHED
    learning_rates: tuple[float, ...] = LEARNING_RATES
    seeds: tuple[int, ...] = (0, 1, 2)
    shape: Shape = field(default_factory=Shape)
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        for name in ("models", "matched", "learning_rates", "seeds"):
            if not getattr(self, name) or len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)}; expected one or more, each once.")
        for matched in self.matched:
            for model in self.models:
                self.job(model, matched, {}, learning_rate=self.learning_rates[0], seed=self.seeds[0])

    def job(self, model: str, matched: str, text: dict[str, str], **given: Any) -> Job:
        """A job of this study; one that both ways to match have is the same job."""
        if matched in MATCHED and same_either_way(model, self.shape):
            matched = MATCHED[0]
        return Job(model=model, matched=matched, shape=self.shape, recipe=self.recipe, text=text, **given)


# The same study at a size that takes seconds on a CPU, for CI.
SMOKE = Sweep(
    learning_rates=(3e-3, 1e-2),
    seeds=(0, 1),
    shape=Shape(hidden_size=16, num_layers=1, num_heads=2, head_dim=8, intermediate_size=64),
    recipe=Recipe(
        tokens=8 * 4 * 64, length=64, batch_size=4, choice_tokens=512, evaluate_tokens=1024, save_every=4, log_every=2
    ),
)


def _known(kind: type, given: Mapping[str, Any]) -> dict[str, Any]:
    if unknown := sorted(set(given) - {one.name for one in fields(kind)}):
        raise ValueError(f"unknown settings {unknown} of a {kind.__name__}; is the record of another version?")
    return dict(given)

"""The MQAR study as data: how large it is, and one job of its queue with everything that its result depends on."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from bayesmem.experiments.mqar_models import ATTENTION, model_options
from bayesmem.models import BayesMemConfig
from bayesmem.tasks import mqar, mqar_variants

EXPERIMENT = "mqar"
PLAIN, FILLERS = "zoology", "fillers"
DATA = (PLAIN, FILLERS, *mqar_variants.VARIANTS)
PRECISIONS = ("float32", "bf16")
# Zoology's, np.logspace(-3, -1.5, 4), to two digits.
LEARNING_RATES = (1e-3, 3.2e-3, 1e-2, 3.2e-2)
# Zoology's embeddings, normal and tied to the output, and torch's linear layers: untied, with the layer's output gate,
# nothing is learned in a thousand steps (benchmarks/records/mqar_initialisation.jsonl).
START: dict[str, Any] = {"tie_word_embeddings": True, "embedding_range": 0.02, "initializer_range": None}


@dataclass(frozen=True, slots=True)
class Scale:
    """What is trained on and tested on. The defaults are Zoology's standard mixture.

    Attributes:
        vocab_size: tokens.
        trained: (length, pairs, rows) of each training segment.
        tested: (length, pairs) of each test slice, in and beyond the trained range.
        test_rows: rows a test slice.
        choice_rows: rows a slice of their own, by which learning rates are chosen.
        milestone: the trained slice on which the speed of learning is told.
        milestone_rows: its rows.
    """

    vocab_size: int = 8192
    trained: tuple[tuple[int, int, int], ...] = (
        (64, 4, 100_000),
        (128, 8, 20_000),
        (256, 16, 20_000),
        (256, 32, 20_000),
        (256, 64, 20_000),
    )
    tested: tuple[tuple[int, int], ...] = (
        (64, 4),
        (64, 8),
        (64, 16),
        (128, 32),
        (256, 64),
        (512, 64),
        (512, 128),
        (1024, 128),
        (1024, 256),
    )
    test_rows: int = 1000
    choice_rows: int = 200
    milestone: tuple[int, int] = (256, 64)
    milestone_rows: int = 128

    def __post_init__(self) -> None:
        for length, pairs, rows in (*self.trained, *((*s, self.test_rows) for s in (*self.tested, self.milestone))):
            mqar.MQARConfig(self.vocab_size, length, pairs, rows)  # refuses what cannot be made, before training
        if self.milestone not in {(length, pairs) for length, pairs, _ in self.trained}:
            raise ValueError(f"milestone {self.milestone} is none of the trained segments {self.trained}; choose one.")


FULL = Scale()
SMOKE = Scale(
    vocab_size=64,
    trained=((16, 2, 512), (32, 4, 256)),
    tested=((16, 2), (32, 4), (64, 8)),
    test_rows=32,
    choice_rows=16,
    milestone=(32, 4),
    milestone_rows=16,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One training of the study, and its tests.

    Attributes:
        model: of ``mqar_models.MODELS``.
        hidden_size: model width.
        matched: by ``"state"`` or ``"parameters"``.
        learning_rate: peak of a cosine schedule.
        seed: of data, initialisation and order; test rows are the same for all seeds.
        steps: optimiser steps.
        batch_size: rows a step, all of one segment.
        data: of ``DATA``: Zoology's rows with 0, or with random tokens, where nothing is asked; or a variant, each
            segment and slice as ``mqar_variants.like`` has it beside the plain one.
        changes: options of ``BayesianLayerConfig`` in place of the model's own, for ablations.
        chunk_size: tokens a chunk of the filter; ``None`` leaves it to the back end.
        precision: ``"float32"``, or ``"bf16"`` autocast over float32 parameters.
        start: options of ``BayesMemConfig`` that say how weights start, the tie of embedding and output included.
        decay_init: share of the mean kept at every token at first, where a decay is learned; ``None``: as Mamba-2's.
        num_layers: blocks.
        evaluate_every: steps between looks at the milestone.
        save_every: steps between checkpoints; a stop saves in any case.
        log_every: steps between logged losses.
        stop_below: training loss, averaged between logs, at which training ends early; ``None``: never.
        scale: what is trained on and tested on.
    """

    model: str
    hidden_size: int = 64
    matched: str = "state"
    learning_rate: float | int = 3.2e-3
    seed: int = 0
    steps: int = 6000
    batch_size: int = 256
    data: str = PLAIN
    changes: dict[str, Any] = field(default_factory=dict)
    chunk_size: int | None = None
    precision: str = "bf16"
    start: dict[str, Any] = field(default_factory=lambda: dict(START))
    decay_init: float | None = None
    num_layers: int = 2
    evaluate_every: int = 250
    save_every: int = 2000
    log_every: int = 50
    stop_below: float | None = None
    scale: Scale = FULL

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "num_layers", "evaluate_every", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; expected a positive number.")
        if self.data not in DATA:
            raise ValueError(f"data is {self.data!r}; expected one of {', '.join(DATA)}.")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}; expected one of {', '.join(PRECISIONS)}.")
        if short := [segment for segment in self.scale.trained if segment[2] < self.batch_size]:
            raise ValueError(
                f"batch_size is {self.batch_size}, more rows than segment {short[0]} has; give a smaller batch."
            )
        if self.data in mqar_variants.VARIANTS:
            for length, pairs in {segment[:2] for segment in (*self.scale.trained, *self.scale.tested)}:
                mqar_variants.like(self.data, mqar.MQARConfig(self.scale.vocab_size, length, pairs, 1))
        BayesMemConfig(**self.options)  # bad options are refused before any work

    @property
    def options(self) -> dict[str, Any]:
        """Options of the model's config."""
        started = {"decay_init": self.decay_init} if self.decay_init is not None and self.model != ATTENTION else {}
        changes = started | self.changes
        return {
            "vocab_size": self.scale.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_layers,
            "intermediate_size": 0,
            **self.start,
            **model_options(self.model, self.hidden_size, self.matched, changes),
        }

    @property
    def settings(self) -> dict[str, Any]:
        """All of it as plain data: the settings of its record."""
        return json.loads(json.dumps(asdict(self)))

    @property
    def folder(self) -> str:
        """Name of its folder: what a reader would call it, and a hash of all settings."""
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:10]
        return f"{self.model}-{self.hidden_size}-lr{self.learning_rate:g}-seed{self.seed}-{digest}"

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Job":
        """The job whose ``settings`` these are.

        Raises:
            ValueError: settings that no job has, or that are refused.
        """
        given = dict(settings)
        for kind, options in ((cls, given), (Scale, given.get("scale", {}))):
            if unknown := sorted(set(options) - {one.name for one in fields(kind)}):
                raise ValueError(f"unknown settings {unknown} of a {kind.__name__}; is the record of another version?")
        if "scale" in given:
            given["scale"] = Scale(**{name: _tuples(value) for name, value in given["scale"].items()})
        return cls(**given)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(one) for one in value) if isinstance(value, list) else value

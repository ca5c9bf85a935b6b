"""The order of the MQAR study: from its records to the jobs that are due next."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bayesmem.experiments.job_queue import Due
from bayesmem.experiments.mqar_ablations import ABLATIONS
from bayesmem.experiments.mqar_config import DATA, EXPERIMENT, FULL, LEARNING_RATES, PLAIN, SMOKE, Job, Scale
from bayesmem.experiments.mqar_models import ATTENTION, BASE, FIRST, MODELS, OTHERS
from bayesmem.report.records import Record

STAGES = ("learning-rates", "seeds", "others", "speed", "widths", "parameters", "ablations", "variants")


# What a study has as its jobs do.
SHARED = (
    "steps",
    "batch_size",
    "precision",
    "decay_init",
    "stop_below",
    "evaluate_every",
    "save_every",
    "log_every",
    "scale",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What all jobs of a study share, and the values that it tries.

    Attributes:
        models: those to run; of ``MODELS``, in the study's order whatever the order here.
        widths: model widths; the first is the main one, the others are for stage ``widths``.
        learning_rates: tried with the first seed; the best goes on.
        seeds: of data, initialisation and order.
        steps: optimiser steps a job.
        batch_size: rows a step.
        precision: ``"bf16"`` or ``"float32"``.
        decay_init: of ``Job``.
        output_gate: of all layers but softmax attention's; ``None``: the layer's own default, which holds learning up
            (benchmarks/records/mqar_initialisation.jsonl).
        stop_below: training loss at which a job ends early; ``None``: never.
        evaluate_every: steps between looks at the milestone.
        speed_every: the same in stage ``speed``, which is about them.
        save_every: steps between checkpoints.
        log_every: steps between logged losses.
        scale: what is trained on and tested on.
    """

    models: tuple[str, ...] = MODELS
    widths: tuple[int, ...] = (64, 128, 256)
    learning_rates: tuple[float, ...] = LEARNING_RATES
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 6000
    batch_size: int = 256
    precision: str = "bf16"
    decay_init: float | None = 0.999
    output_gate: str | None = "none"
    stop_below: float | None = None
    evaluate_every: int = 250
    speed_every: int = 50
    save_every: int = 2000
    log_every: int = 50
    scale: Scale = FULL

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.models) - set(MODELS)):
            raise ValueError(f"models {unknown} are unknown; expected some of {', '.join(MODELS)}.")
        for name in ("models", "widths", "learning_rates", "seeds"):
            if not getattr(self, name) or len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)}; expected one or more, each once.")

    def job(self, model: str, **fields: Any) -> Job:
        """A job of this study."""
        given = {name: getattr(self, name) for name in SHARED} | {"hidden_size": self.widths[0]}
        given |= fields
        if self.output_gate is not None and model != ATTENTION:
            given["changes"] = {"output_gate": self.output_gate} | given.get("changes", {})
        return Job(model=model, **given)


# The same study at a size that takes seconds on a CPU, for CI.
SMOKE_SWEEP = Sweep(
    widths=(16, 24),
    learning_rates=(1e-2, 3e-2),
    seeds=(0, 1),
    steps=20,
    batch_size=32,
    precision="float32",
    evaluate_every=10,
    speed_every=5,
    save_every=10,
    log_every=5,
    scale=SMOKE,
)


def due(sweep: Sweep, stages: Sequence[str], records: Iterable[Record]) -> Due[Job]:
    """The jobs of some stages that have no record yet, in the study's order.

    Args:
        sweep: the study.
        stages: of ``STAGES``.
        records: those there are.

    Raises:
        ValueError: a stage that there is not.
    """
    if unknown := [stage for stage in stages if stage not in STAGES]:
        raise ValueError(f"stage is {unknown[0]!r}; expected some of {', '.join(STAGES)}.")
    found = {_key(r.settings): r.figures for r in records if r.experiment == EXPERIMENT}
    wanted: dict[str, Job] = {}
    waiting: list[str] = []
    for stage in STAGES:
        if stage in stages:
            for one in _stage(stage, sweep, found):
                if isinstance(one, Job):
                    wanted.setdefault(_key(one.settings), one)
                else:
                    waiting.append(f"{stage}: {one}")
    left = [job for key, job in wanted.items() if key not in found]
    return Due(left, waiting, len(wanted) - len(left))


Found = dict[str, dict[str, Any]]


def _key(settings: dict[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)


def _stage(stage: str, sweep: Sweep, found: Found) -> Iterator[Job | str]:
    """Jobs of a stage, and in words what waits for others."""
    first, others = ([m for m in group if m in sweep.models] for group in (FIRST, OTHERS))
    more = sweep.seeds[1:]
    if stage == "learning-rates":
        yield from _rates(sweep, first)
    elif stage == "seeds":
        yield from _at_best(sweep, found, first, more)
    elif stage == "others":
        yield from _rates(sweep, others)
        yield from _at_best(sweep, found, others, more)
    elif stage == "speed":
        yield from _at_best(sweep, found, first + others, sweep.seeds[:1], {"evaluate_every": sweep.speed_every})
    elif stage == "widths":
        for width in sweep.widths[1:]:
            yield from _rates(sweep, first + others, hidden_size=width)
            yield from _at_best(sweep, found, first + others, more, hidden_size=width)
    elif stage == "parameters":
        yield from _rates(sweep, first + others, matched="parameters")
        yield from _at_best(sweep, found, first + others, more, matched="parameters")
    elif stage == "ablations":
        rate = best_rate(sweep, found, BASE)
        if rate is None:
            yield f"the learning rates of {BASE}"
            return
        for seed in sweep.seeds:
            for ablation in ABLATIONS.values():
                yield sweep.job(BASE, **{"learning_rate": rate, "seed": seed} | ablation.fields)
    else:  # other data, at the learning rate that was best on Zoology's
        for data in DATA:
            if data != PLAIN:
                yield from _at_best(sweep, found, first, sweep.seeds, {"data": data})


def _rates(sweep: Sweep, models: Sequence[str], **fields: Any) -> Iterator[Job]:
    for model in models:
        for rate in sweep.learning_rates:
            yield sweep.job(model, learning_rate=rate, seed=sweep.seeds[0], **fields)


def _at_best(
    sweep: Sweep,
    found: Found,
    models: Sequence[str],
    seeds: Sequence[int],
    changes: dict[str, Any] | None = None,
    **fields: Any,
) -> Iterator[Job | str]:
    """Each model at the rate that is best with ``fields``; ``changes`` are what the jobs have beside them."""
    rates = {model: best_rate(sweep, found, model, **fields) for model in models}
    yield from (f"the learning rates of {model}" for model, rate in rates.items() if rate is None)
    for seed in seeds:
        for model, rate in rates.items():
            if rate is not None:
                yield sweep.job(model, learning_rate=rate, seed=seed, **fields, **changes or {})


def best_rate(sweep: Sweep, found: Found, model: str, **fields: Any) -> float | None:
    """The learning rate with the best mean over the slices kept for choosing; ``None`` while any has no record.

    Where there is but one, there is nothing to choose, and no seed waits for another.

    Args:
        sweep: the study.
        found: figures by settings.
        model: whose.
        fields: of the job, where they are not the study's own.
    """
    if len(sweep.learning_rates) == 1:
        return sweep.learning_rates[0]
    scores: dict[float, float] = {}
    for job in _rates(sweep, [model], **fields):
        figures = found.get(_key(job.settings))
        if figures is None:
            return None
        scores[job.learning_rate] = choice(figures)
    return max(scores, key=lambda rate: scores[rate])


def choice(figures: dict[str, Any]) -> float:
    """What learning rates are compared by; below everything where training diverged."""
    if "diverged" in figures:
        return -1.0
    return sum(right for *_, right in figures["choice"]) / len(figures["choice"])


def every_data(sweep: Sweep, stages: Sequence[str]) -> list[Job]:
    """One job for each kind of rows that some stages may need, to have them made."""
    seeds = sweep.seeds[:1] if set(stages) <= {"learning-rates", "speed"} else sweep.seeds
    kinds = DATA if "variants" in stages else (PLAIN,)
    base = sweep.job(sweep.models[0])
    return [replace(base, seed=seed, data=data) for data in kinds for seed in seeds]

"""A distillation beside its controls as a part of docs/results.md: Markdown, every number from the records."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import relpath
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.axes import Axes

from bayesmem.report import distill_retrieval as retrieval
from bayesmem.report.plots import Picture, picture
from bayesmem.report.records import Record, Records

EXPERIMENT, TEACHER, STUDENT = "distill", "teacher", "student"
ARMS = (STUDENT, "control-tokens", "control-flops", "control-seconds")
COLOURS = dict(zip(ARMS, ("Bayesian Layer", "Gated DeltaNet", "gated_deltanet", "bayesian_steady"), strict=True))
OF_ONE_ARM = ("seed", "tokens", "prepared", "start", "data", "held_out")  # of a run: no part of what is compared
# 97.5% quantiles, by degrees of freedom; beyond, 1.96 + 2.5 / freedom is right to 1%.
STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True, slots=True)
class Study:
    """Arms of the same settings, for every seed.

    Attributes:
        seeds: seed -> teacher or arm -> its newest record.
        name: of its pictures, unique among studies.
    """

    seeds: dict[int, dict[str, Record]]
    name: str

    @property
    def any(self) -> Record:
        """A student's record."""
        return next(arms[STUDENT] for arms in self.seeds.values() if STUDENT in arms)


def studies(records: Records) -> list[Study]:
    """The distillations of a file of records, of which several seeds are one."""
    found: dict[str, dict[int, dict[str, Record]]] = {}
    for record in records.all():
        if record.experiment == EXPERIMENT:
            shared = dict(record.settings)
            run = shared.pop("run")
            shared["run"] = {name: value for name, value in run.items() if name not in OF_ONE_ARM}
            arms = found.setdefault(json.dumps(shared, sort_keys=True), {}).setdefault(run["seed"], {})
            arms[record.name] = record
    whole = [seeds for seeds in found.values() if any(STUDENT in arms for arms in seeds.values())]
    names = ["distill"] if len(whole) == 1 else [f"distill_{index}" for index in range(1, len(whole) + 1)]
    return [Study(dict(sorted(seeds.items())), name) for seeds, name in zip(whole, names, strict=True)]


def section(records: Records, path: Path, images: Path, evaluations: Records | None = None) -> str:
    """The distillation's part of a Markdown page; empty where there is none.

    Args:
        records: of ``bayesmem distill``; those of several seeds one after the other in a file.
        path: where the page will lie, for its links.
        images: folder of the pictures.
        evaluations: of ``bayesmem eval ruler``, where they are not in the same file; arms are known by their weights.
    """
    found = studies(records)
    if not found:
        return ""
    environment = Environment(
        loader=PackageLoader("bayesmem.report"), undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    return environment.get_template("distill.md.j2").render(
        source=relpath(records.path, path.parent),
        images=relpath(images, path.parent),
        studies=[_told(study, retrieval.evaluated(evaluations or records)) for study in found],
    )


def pictures(records: Records) -> dict[str, Picture]:
    """Held-out bits per byte while training, and what the memories keep, of every study."""
    return {study.name: _picture(study) for study in studies(records)}


def interval(values: Sequence[float | int]) -> tuple[float, float]:
    """Mean, and half of a 95% interval by Student's t; infinite for a single value."""
    count = len(values)
    if count < 2:
        return mean(values), math.inf
    quantile = STUDENT_T[count - 2] if count - 2 < len(STUDENT_T) else 1.96 + 2.5 / (count - 1)
    return mean(values), quantile * stdev(values) / math.sqrt(count)


def _told(study: Study, scored: Mapping[str, retrieval.Scored]) -> dict[str, Any]:
    one = study.any
    run, options = one.settings["run"], one.settings["options"]
    return {
        "name": study.name,
        "seeds": list(study.seeds),
        "kind": one.settings["kind"],
        "parameters": f"{one.figures['parameters']:,}",
        "trained": f"{one.figures['trained']:,}",
        "trains": options["trains"],
        "tokens": f"{one.figures['steps'] * run['batch_size'] * run['length']:,}",
        "length": run["length"],
        "align": options["align"],
        "mix": {name: _knots(knots) for name, knots in options["mix"].items()},
        "moved": f"{one.figures['beginning']['kl']:.2g}",
        "devices": one.settings["devices"],
        "context": one.context,
        "commits": sorted({r.context["commit"] for arms in study.seeds.values() for r in arms.values()}),
        "rows": [_row(study, name) for name in (TEACHER, *ARMS) if _of(study, name)],
        "gains": [_gain(study, name) for name in ARMS[1:] if _of(study, name)],
        "retrieval": retrieval.table(study.seeds, scored, run["length"]),
        "alt": _alt(study),
    }


def _of(study: Study, name: str) -> dict[int, Record]:
    return {seed: arms[name] for seed, arms in study.seeds.items() if name in arms}


def _row(study: Study, name: str) -> dict[str, str]:
    found = _of(study, name)
    figures = [record.figures for record in found.values()]
    cost = [
        record.figures["perplexity"] / study.seeds[seed][TEACHER].figures["perplexity"] - 1
        for seed, record in found.items()
        if TEACHER in study.seeds[seed]
    ]
    layers = [f["ending"]["retention"] for f in figures if "retention" in f.get("ending", {})]
    kept = [mean(layer[0] for layer in one) for one in layers]
    return {
        "name": name,
        "steps": _mean(figures, "steps", ",.0f"),
        "flops": _mean(figures, "flops", ".4g"),
        "seconds": _mean(figures, "device_seconds", ",.1f"),
        "bits": _with_interval([f["bits_per_byte"] for f in figures], ".4f"),
        "perplexity": _mean(figures, "perplexity", ".3f"),
        "cost": "" if name == TEACHER or not cost else _with_interval([100 * x for x in cost], "+.2f", "%"),
        "retention": f"{mean(kept):.3f}" if kept else "",
    }


def _gain(study: Study, control: str) -> dict[str, str]:
    """The student's over a control's, seed by seed."""
    pairs = [(arms[STUDENT], arms[control]) for arms in study.seeds.values() if STUDENT in arms and control in arms]
    bits = [a.figures["bits_per_byte"] - b.figures["bits_per_byte"] for a, b in pairs]
    return {
        "control": control,
        "bits": _with_interval(bits, "+.4f") if bits else "",
    }


def _mean(figures: Sequence[Mapping[str, Any]], name: str, form: str) -> str:
    values = [f[name] for f in figures if name in f]
    return format(mean(values), form) if values else ""


def _with_interval(values: Sequence[float | int], form: str, unit: str = "") -> str:
    middle, half = interval(values)
    told = format(middle, form) + unit
    return told if half in (0, math.inf) else f"{told} ± {format(half, form.lstrip('+'))}"


def _knots(knots: Sequence[Sequence[float | int]]) -> str:
    if len({weight for _, weight in knots}) == 1:
        return f"{knots[0][1]:g}"
    return ", ".join(f"{weight:g} at {share:.0%}" for share, weight in knots)


def _alt(study: Study) -> str:
    return (
        f"Held-out bits per byte of the student and its controls while training ({len(study.seeds)} seeds), and the "
        "share of certainty that each layer of the student keeps"
    )


def _picture(study: Study) -> Picture:
    kept = {seed: r for seed, r in _of(study, STUDENT).items() if r.figures["ending"].get("retention")}

    def draw(axes: list[Axes], colours: dict[str, str]) -> None:
        ax = axes[0]
        for name in ARMS:
            for index, record in enumerate(_of(study, name).values()):
                steps, bits = zip(*record.figures["evaluations"], strict=True)
                colour = colours[COLOURS[name]]
                ax.plot(steps, bits, "o-", color=colour, ms=3, lw=1, label=name if index == 0 else None)
        for record in list(_of(study, TEACHER).values())[:1]:
            ax.axhline(record.figures["bits_per_byte"], color=colours["ink"], lw=1, ls=":", label=TEACHER)
        ax.set(xlabel="step", ylabel="held-out bits per byte")
        ax.legend(fontsize=8)
        if len(axes) > 1:
            _retention(axes[1], kept, colours)

    return picture(draw, 2 if kept else 1, _alt(study))


def _retention(ax: Axes, kept: dict[int, Record], colours: dict[str, str]) -> None:
    """Mean of each layer, 5 to 95% of its heads and tokens, at the end; dotted, where it began."""
    for index, record in enumerate(kept.values()):
        layers = record.figures["ending"]["retention"]
        at = [layer + 0.12 * (index - (len(kept) - 1) / 2) for layer in range(len(layers))]
        middle = [layer[0] for layer in layers]
        spread = [[max(0.0, x[0] - x[1]) for x in layers], [max(0.0, x[3] - x[0]) for x in layers]]
        ax.errorbar(at, middle, yerr=spread, fmt="o", ms=4, lw=1, color=colours[COLOURS[STUDENT]])
        begun = mean(layer[0] for layer in record.figures["beginning"]["retention"])
        ax.axhline(begun, color=colours["ink"], lw=1, ls=":")
    ax.set(xlabel="layer", ylabel="certainty kept a token, ρ²", ylim=(0, 1.02))

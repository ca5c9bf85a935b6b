"""Pictures of a distillation: training, retrieval by length, and heat maps of task by length."""

import math
from statistics import mean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator

from bayesmem.report.distill_data import ARMS, CONTROLS, STUDENT, TEACHER, Retrieval, Study
from bayesmem.report.distill_retrieval import what
from bayesmem.report.plots import Picture, picture
from bayesmem.report.records import Record
from bayesmem.report.ruler import Grid
from bayesmem.report.ruler_plots import heat_map

COLOURS = dict(zip(ARMS, ("Bayesian Layer", "Gated DeltaNet", "gated_deltanet", "bayesian_steady"), strict=True))
MARKERS = {TEACHER: "x", STUDENT: "o"} | dict(zip(CONTROLS, "sDv", strict=True))


def pictures(study: Study, retrieval: Retrieval) -> dict[str, Picture]:
    """All of a study.

    Args:
        study: arms by seed.
        retrieval: what their checkpoints scored.
    """
    drawn = {study.name: training(study)}
    if retrieval.arms:
        drawn[f"{study.name}_retrieval"] = by_length(retrieval)
        drawn[f"{study.name}_ruler"] = heat_map({name: grid(retrieval, name) for name in retrieval.arms})
    return drawn


def training_alt(study: Study) -> str:
    """What ``training`` shows, in words."""
    return (
        f"Held-out bits per byte of the student and its controls while training ({_count(len(study.seeds), 'seed')}), "
        "and the share of certainty that each layer of the student keeps"
    )


def training(study: Study) -> Picture:
    """Held-out bits per byte against the step, and what each layer of the student keeps at the end."""
    kept = {seed: r for seed, r in study.of(STUDENT).items() if r.figures["ending"].get("retention")}

    def draw(axes: list[Axes], colours: dict[str, str]) -> None:
        ax = axes[0]
        for name in ARMS:
            for index, record in enumerate(study.of(name).values()):
                steps, bits = zip(*record.figures["evaluations"], strict=True)
                colour, marker = colours[COLOURS[name]], MARKERS[name] + "-"
                label, order = name if index == 0 else None, 3 if name == STUDENT else 2
                ax.plot(steps, bits, marker, color=colour, ms=3, lw=1, label=label, zorder=order)
        for record in list(study.of(TEACHER).values())[:1]:
            ax.axhline(record.figures["bits_per_byte"], color=colours["ink"], lw=1, ls=":", label=TEACHER)
        ax.set(xlabel="step", ylabel="held-out bits per byte")
        ax.legend(fontsize=8)
        if len(axes) > 1:
            _retention(axes[1], kept, colours)

    return picture(draw, 2 if kept else 1, training_alt(study))


def by_length_alt(retrieval: Retrieval) -> str:
    """What ``by_length`` shows, in words."""
    return (
        f"Mean {what(retrieval)} accuracy by length of {', '.join(retrieval.arms)}, rows of {retrieval.trained} tokens "
        "in training, and the student's accuracy less the others' on the same documents"
    )


def by_length(retrieval: Retrieval) -> Picture:
    """Accuracy against the length, a small mark a seed; and differences on the same documents with their intervals."""
    others = [name for name in retrieval.arms if name != STUDENT] if STUDENT in retrieval.arms else []

    def draw(axes: list[Axes], colours: dict[str, str]) -> None:
        for name in retrieval.arms:
            _accuracy(axes[0], retrieval, name, colours)
        axes[0].set(ylabel=f"mean {what(retrieval)} accuracy", ylim=(-0.03, 1.03))
        for index, name in enumerate(others):
            _difference(axes[1], retrieval, name, 1.03 ** (index - (len(others) - 1) / 2), colours)
        for ax in axes:
            ax.axvline(retrieval.trained, color=colours["ink"], lw=1, ls="--")
            ax.annotate(
                "trained",
                (retrieval.trained, 1),
                (3, -2),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                va="top",
                fontsize=8,
                color=colours["ink"],
            )
            ends = [*retrieval.lengths, retrieval.trained]
            ax.set_xscale("log", base=2)
            ax.set_xticks(retrieval.lengths, [f"{length:,}" for length in retrieval.lengths])
            ax.xaxis.set_minor_locator(NullLocator())
            ax.set(xlabel="tokens of a document", xlim=(min(ends) / 1.2, max(ends) * 1.2))
            ax.legend(fontsize=8, loc="lower left" if ax is axes[0] else "best")
        if others:
            axes[1].axhline(0, color=colours["ink"], lw=1, ls=":")
            axes[1].set(ylabel="student's less another's, points")

    return picture(draw, 2 if others else 1, by_length_alt(retrieval))


def grid(retrieval: Retrieval, name: str) -> Grid:
    """Tasks, lengths, and an arm's mean over the seeds, without an error."""
    means: dict[tuple[str, int], tuple[float, float | None]] = {
        (task, length): (mean(values), None)
        for task in retrieval.tasks
        for length in retrieval.lengths
        if (values := retrieval.means(name, [task], [length]))
    }
    return retrieval.tasks, retrieval.lengths, means


def _accuracy(ax: Axes, retrieval: Retrieval, name: str, colours: dict[str, str]) -> None:
    points = {length: retrieval.means(name, retrieval.single, [length]) for length in retrieval.lengths}
    points = {length: values for length, values in points.items() if values}
    style: dict[str, Any] = {"color": _colour(name, colours), "marker": MARKERS[name]}
    dashed = ":" if name == TEACHER else "-"
    style["zorder"] = 3 if name == STUDENT else 2
    ax.plot(list(points), [mean(values) for values in points.values()], dashed, ms=5, lw=1.3, label=name, **style)
    if name != TEACHER:
        for length, values in points.items():
            ax.plot([length] * len(values), values, ls="", ms=2.5, alpha=0.5, **style)


def _difference(ax: Axes, retrieval: Retrieval, name: str, aside: float, colours: dict[str, str]) -> None:
    found = {length: retrieval.gain(name, retrieval.single, [length]) for length in retrieval.lengths}
    points = [(length, one) for length, one in found.items() if one is not None]
    if points:
        ax.errorbar(
            [length * aside for length, _ in points],
            [100 * one.mean for _, one in points],
            yerr=[100 * one.half if math.isfinite(one.half) else np.nan for _, one in points],
            fmt=MARKERS[name],
            ms=4,
            lw=1,
            color=_colour(name, colours),
            label=f"less {name}",
        )


def _colour(name: str, colours: dict[str, str]) -> str:
    return colours[COLOURS[name]] if name in COLOURS else colours["ink"]


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
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="layer", ylabel="certainty kept a token, ρ²", ylim=(0, 1.02))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

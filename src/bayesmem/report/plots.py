"""Plots of the records, as SVG, each in a light and a dark dress."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayesmem.report.records import Record

PALETTE = {
    "light": {"ink": "#1c2430", "grid": "#d5dae2", "Bayesian Layer": "#1f6fd6", "Gated DeltaNet": "#d1600b"},
    "dark": {"ink": "#dfe5ee", "grid": "#3a4452", "Bayesian Layer": "#6db1ff", "Gated DeltaNet": "#ffa35c"},
}
for _colours in PALETTE.values():
    _colours["Gated DeltaNet, V = 2K"] = "#a08a4f"
# The rules of the zoo, and assumptions off by a factor: a colour for a light page, one for a dark page, a marker.
RULES = {
    "linear_attention": ("#7d8696", "#9aa5b5", "x"),
    "deltanet": ("#d1600b", "#ffa35c", "s"),
    "gated_deltanet": ("#8f6f10", "#e0c35a", "D"),
    "bayesian_steady": ("#b8328a", "#ff8fd2", "v"),
    "bayesian": ("#0c8f7d", "#4fd6c0", "^"),
    "bayesian_forgetting": ("#7446cf", "#b9a0ff", "P"),
    "rls": ("#b3202c", "#ff8080", "<"),
    "mesanet": ("#3f8f2f", "#86d06f", ">"),
    "kalman_diagonal": ("#24415f", "#c3d4e8", "1"),
    "kalman_isotropic": ("#5d3a1a", "#d8b798", "2"),
    "bayesian_static": ("#1f6fd6", "#6db1ff", "o"),
    "r / 10": ("#b3202c", "#ff8080", "v"),
    "r × 10": ("#0c8f7d", "#4fd6c0", "^"),
    "p₀ / 10": ("#3f8f2f", "#86d06f", "<"),
    "p₀ × 10": ("#7446cf", "#b9a0ff", ">"),
    "as it is": ("#1f6fd6", "#6db1ff", "o"),
    "bayesian_static, r / 10": ("#b3202c", "#ff8080", "v"),
    "bayesian_static, r × 10": ("#0c8f7d", "#4fd6c0", "^"),
    "bayesian_static, r = 0.01, no noise": ("#24415f", "#c3d4e8", "p"),
    "bayesian, r = 1": ("#3f8f2f", "#86d06f", "<"),
}
MARKERS = {name: marker for name, (_, _, marker) in RULES.items()}
for _name, (_light, _dark, _) in RULES.items():
    PALETTE["light"][_name], PALETTE["dark"][_name] = _light, _dark
WIDTH = {1: 5.2, 2: 9.0}  # inches, by panels a row
HEIGHT = 3.4


@dataclass(frozen=True, slots=True)
class Picture:
    """One figure in both dresses.

    Attributes:
        light: SVG text for a light page.
        dark: SVG text for a dark page.
        alt: what it shows, in words.
    """

    light: str
    dark: str
    alt: str


@contextmanager
def _dress(theme: str) -> Iterator[dict[str, str]]:
    colours = PALETTE[theme]
    ink = {f"{part}.color": colours["ink"] for part in ("text", "xtick", "ytick")}
    settings = ink | {
        "axes.edgecolor": colours["grid"],
        "axes.labelcolor": colours["ink"],
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": colours["grid"],
        "grid.linewidth": 0.5,
        "figure.facecolor": "none",
        "legend.frameon": False,
        "font.size": 10.0,
        "svg.hashsalt": "bayesmem",
    }
    with matplotlib.rc_context(settings):
        yield colours


def picture(
    draw: Callable[[list[Axes], dict[str, str]], None], panels: int, alt: str, legend: float | int = 0.0
) -> Picture:
    """Draw the same panels in both dresses, at most two a row.

    Args:
        draw: draws into as many axes, in the given colours.
        panels: how many.
        alt: what it shows, in words.
        legend: inches on top for a legend outside the panels.
    """
    rows, columns = (panels + 1) // 2, min(panels, 2)
    texts = {}
    for theme in PALETTE:
        with _dress(theme) as colours:
            figure = Figure(figsize=(WIDTH[columns], HEIGHT * rows + legend), layout="constrained")
            axes = list(figure.subplots(rows, columns, squeeze=False).flat)
            for spare in axes[panels:]:
                spare.set_axis_off()
            draw(axes[:panels], colours)
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
            texts[theme] = buffer.getvalue()
    return Picture(texts["light"], texts["dark"], alt)


def accuracy(models: dict[str, Record]) -> Picture:
    """Recall accuracy against the number of pairs, the trained range shaded."""

    def draw(axes: list[Axes], colours: dict[str, str]) -> None:
        (ax,) = axes
        for name, record in models.items():
            rows = record.figures["accuracy"]
            ax.plot([pairs for _, pairs, _ in rows], [a for *_, a in rows], "o-", color=colours[name], label=name)
        most = max(pairs for record in models.values() for _, pairs in record.settings["trained"])
        ax.axvspan(0, most, color=colours["grid"], alpha=0.5, lw=0)
        ax.text(most * 0.96, 0.03, "trained", ha="right", color=colours["ink"])
        ax.set(xlabel="pairs to remember", ylabel="recall accuracy", ylim=(0, 1.03), xlim=(0, None))
        ax.legend(loc="lower left", bbox_to_anchor=(0, 0.08))

    return picture(draw, 1, "Recall accuracy against the number of pairs for both models")


def strangers(rows: list[list[float]], name: str = "Bayesian Layer") -> Picture:
    """How well the predictive variance tells keys never shown from those that were."""

    def draw(axes: list[Axes], colours: dict[str, str]) -> None:
        (ax,) = axes
        ax.plot([pairs for _, pairs, _ in rows], [a for *_, a in rows], "o-", color=colours[name])
        ax.axhline(0.5, color=colours["ink"], lw=1, ls=":")
        ax.text(0, 0.51, " chance", color=colours["ink"])
        ax.set(xlabel="pairs to remember", ylabel="AUROC of the variance", ylim=(0.4, 1.03), xlim=(0, None))
        ax.set_title("Was this key ever shown?")

    return picture(draw, 1, "How well the predictive variance tells keys never shown from those that were")


def by_variance(rows: list[list[float]], ylabel: str, name: str = "Bayesian Layer") -> Picture:
    """A figure of merit in tenths of the tokens, ordered by predictive variance."""

    def draw(axes: list[Axes], colours: dict[str, str]) -> None:
        (ax,) = axes
        ax.bar(range(1, len(rows) + 1), [value for _, value, _ in rows], color=colours[name], width=0.8)
        ax.set(xlabel="tenth of the tokens, from surest to least sure", ylabel=ylabel)
        ax.set_xticks(range(1, len(rows) + 1))
        ax.grid(axis="x", visible=False)

    return picture(draw, 1, f"{ylabel} by tenths of predictive variance")


def losses(models: dict[str, Record], ylabel: str, scale: float = 1.0) -> Picture:
    """Training losses of the models."""

    def draw(axes: list[Axes], colours: dict[str, str]) -> None:
        (ax,) = axes
        for name, record in models.items():
            points: list[Any] = record.figures["losses"]
            ax.plot([step for step, _ in points], [scale * loss for _, loss in points], color=colours[name], label=name)
        ax.set(xlabel="training step", ylabel=ylabel)
        ax.legend()

    return picture(draw, 1, f"{ylabel} against the training step")

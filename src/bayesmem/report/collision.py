"""The figures of the collision study: predictions as lines, simulations as points with 95% intervals."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, NullFormatter

from bayesmem.report.plots import MARKERS, Picture, picture
from bayesmem.report.records import Record

ERROR = "squared error of recall"
RATIO = "squared error / reported variance"
CLASSIC = ("linear_attention", "deltanet", "bayesian_steady", "bayesian_static")


@dataclass(frozen=True, slots=True)
class Panel:
    """How one panel is drawn.

    Attributes:
        title: above it.
        x: label of the horizontal axis.
        y: label of the vertical one.
        logarithmic: which axes are, of ``xy``.
        reference: a horizontal line, such as 1 for calibrated.
        limits: of the vertical axis.
    """

    title: str
    x: str
    y: str = ERROR
    logarithmic: str = "xy"
    reference: float | int | None = None
    limits: tuple[float | int, float | int] | None = None


PANELS: dict[str, dict[str, Panel]] = {
    "repeats": {
        "gain": Panel("Gain of the n-th write", "writes n of one key", "gain"),
        "error": Panel("Squared error after n writes", "writes n of one key"),
    },
    "collision": {"error": Panel("First key, after writes of a second", "writes of the second key")},
    "angle": {
        "equal": Panel("As many writes of the second key", "cosine of the two keys", logarithmic="y"),
        "more": Panel("Four times as many", "cosine of the two keys", logarithmic="y"),
    },
    "noise": {
        "repeats": Panel("One key alone", "noise variance of the values"),
        "collision": Panel("After a collision", "noise variance of the values"),
    },
    "load": {
        "load": Panel("All associations, K = 64", "associations N"),
        "age": Panel("By age, N = K = 64", "writes since", logarithmic="y"),
        "settled": Panel("Variance of a settled memory", "live keys a channel", "reported variance", "x"),
    },
    "wrong": {
        "error": Panel("Static Bayesian: error", "writes of one key"),
        "ratio": Panel("Static Bayesian: error over variance", "writes of one key", RATIO, reference=1.0),
        "delta": Panel("Delta rule: error", "writes of one key"),
        "load": Panel("48 keys in 64 channels", "assumed noise / actual noise"),
    },
    "changes": {
        "jump": Panel("The value jumps after 32 writes", "writes of the new value"),
        "walk": Panel("The value walks at random", "writes so far"),
        "ratio": Panel("The same: error over variance", "writes so far", RATIO, reference=1.0),
    },
    "calibration": {
        "slope": Panel("Right assumptions", "tokens", RATIO, "x", 1.0, (0.9, 1.1)),
        "coverage": Panel("Coverage of predictive intervals", "level promised", "share inside", ""),
    },
}


def sweep(record: Record) -> Picture:
    """All panels of one sweep."""
    panels = PANELS[record.name]

    def draw(axes: list[Axes], colours: dict[str, str]) -> None:
        for ax, (name, panel) in zip(axes, panels.items(), strict=True):
            _panel(ax, panel, [c for c in record.figures["curves"] if c["panel"] == name], colours)
        _legend(axes, [c["kind"] == "approximate" for c in record.figures["curves"]])

    return picture(draw, len(panels), alt_text(record.name), 0.9)


def alt_text(name: str) -> str:
    """What the figure of a sweep shows, in words."""
    titles = "; ".join(panel.title for panel in PANELS[name].values())
    return f"Predicted (lines) against simulated (points, 95% intervals). {titles}"


def classic(found: Mapping[str, Record]) -> Picture:
    """The README's two panels: repeated evidence, and a collision, for four rules."""
    repeats, collided = found["repeats"], found["collision"]
    cosine, writes = collided.settings["cosine"], collided.settings["writes_a"]
    panels = (
        (repeats, Panel("Repeated evidence", "writes of one key")),
        (collided, Panel(f"Collision: cosine {cosine}, first written {writes} times", "writes of a second key")),
    )

    def draw(axes: list[Axes], colours: dict[str, str]) -> None:
        for ax, (record, panel) in zip(axes, panels, strict=True):
            curves = [c for c in record.figures["curves"] if c["panel"] == "error" and c["rule"] in CLASSIC]
            _panel(ax, panel, curves, colours)
        _legend(axes, [])

    return picture(draw, 2, "Predicted (lines) against simulated (points, 95% intervals) squared error of recall", 0.4)


def _panel(ax: Axes, panel: Panel, curves: list[dict[str, Any]], colours: dict[str, str]) -> None:
    if panel.reference is not None:
        ax.axhline(panel.reference, color=colours["ink"], lw=0.8, ls=":")
    for index, curve in enumerate(curves):
        colour = colours.get(curve["label"]) or colours[curve["rule"]]
        marker = MARKERS.get(curve["label"]) or MARKERS[curve["rule"]]
        style = "--" if curve["kind"] == "approximate" else "-"
        ax.plot(curve["line"]["x"], curve["line"]["y"], style, color=colour, lw=1.3, alpha=0.85)
        points = curve["points"]
        ax.errorbar(
            [p["x"] for p in points],
            [p["simulated"] for p in points],
            [p.get("half_width", 0.0) for p in points],
            fmt=marker,
            ms=6.5 - 3 * index / max(len(curves) - 1, 1),  # what coincides shows around what covers it
            lw=1,
            capsize=2,
            color=colour,
            label=curve["label"],
        )
    for name in panel.logarithmic:
        ax.set(**{f"{name}scale": "log"})
        axis = ax.xaxis if name == "x" else ax.yaxis
        axis.set_major_formatter(_number)
        few = _decades(axis) < 2.5
        axis.set_minor_locator(LogLocator(subs=(2, 5) if few else range(2, 10)))
        axis.set_minor_formatter(_number if few else NullFormatter())
    if panel.limits:
        ax.set_ylim(*panel.limits)
    ax.set(xlabel=panel.x, ylabel=panel.y, title=panel.title)


def _number(x: float | int, _: object = None) -> str:
    return f"{x:g}" if 1e-4 <= x < 1e4 else f"{x:.0e}".replace("e+0", "e").replace("e-0", "e\N{MINUS SIGN}")


def _decades(axis: Axis) -> float:
    low, high = axis.get_view_interval()
    return math.log10(high / low) if low > 0 else math.inf


def _legend(axes: list[Axes], dashed: list[bool]) -> None:
    """One legend above all panels, each name once."""
    named: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    title = "dashed: approximate" if any(dashed) else None
    figure = axes[0].figure
    figure.legend(list(named.values()), list(named), loc="outside upper center", ncols=3, title=title)

"""The benchmark's pictures: ratios, times against length and heads, decoding steps."""

import re
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, NullLocator

from bayesmem.report.bench_data import AXES, BASE, STYLES, TITLES, Measured, Size, measured, union, words
from bayesmem.report.plots import Picture, picture
from bayesmem.report.records import Records


def pictures(records: Records) -> dict[str, Picture]:
    """Every picture that the records allow, by name."""
    drawn: dict[str, Picture] = {}
    for m in measured(records):
        drawn |= of_device(m)
    return drawn


def of_device(m: Measured) -> dict[str, Picture]:
    """Every picture of one device, by name."""
    slug = re.sub(r"[^a-z0-9]+", "_", m.device.lower())
    drawn = {"ratios": _ratios(m), "length": _lines(m, "T"), "heads": _lines(m, "B"), "decode": _steps(m)}
    return {f"bench_{slug}_{name}": found for name, found in drawn.items() if found}


def _ratios(m: Measured) -> Picture | None:
    """Bars: times of the base's, at the first sizes measured."""
    panels = [
        (what, size)
        for size in union(m.sizes("forward"), m.sizes("backward"))[:3]
        for what in ("forward", "backward")
        if m.median(BASE, what, size) and any(key[1:] == (what, size) and key[0] != BASE for key in m.rows)
    ]
    if not panels:
        return None

    def draw(axes: list[Axes], colours: dict[str, str]) -> None:
        for ax, (what, size) in zip(axes, panels, strict=True):
            base = m.median(BASE, what, size)
            found = {name: m.median(name, what, size) for name in reversed(m.contenders)}
            bars = {name: median / base for name, median in found.items() if median and base}
            shown = [colours[f"bench {name}"] for name in bars]
            # From 1, so that a bar's length on the logarithmic axis means something.
            ax.barh(list(bars), [value - 1 for value in bars.values()], left=1, color=shown, height=0.7)
            for y, value in enumerate(bars.values()):
                ax.text(max(value, 1), y, f" {value:.2f}", va="center", color=colours["ink"], fontsize=8)
            ax.axvline(1, color=colours["ink"], lw=0.8)
            ax.set(xscale="log", xlabel="time / Gated DeltaNet's", title=f"{TITLES[what]}\n{words(size)}")
            ax.set_xlim(min(*bars.values(), 0.8) / 1.1, max(*bars.values(), 1.2) * 2)
            _plain(ax.xaxis)
            ax.grid(axis="y", visible=False)

    return picture(draw, len(panels), f"Time of each op over Gated DeltaNet's on {m.device}")


def _lines(m: Measured, axis: str) -> Picture | None:
    """Time against T, or against B H: one panel a kind of measurement, all else as at most sizes."""
    at = AXES.index(axis)
    series: dict[Size, list[Size]] = {}
    for size in union(m.sizes("forward"), m.sizes("backward")):
        series.setdefault(size[:at] + size[at + 1 :], []).append(size)
    sizes = _longest(series)
    if len(sizes) < 3:
        return None
    whats = [what for what in ("forward", "backward") if m.sizes(what)]

    def draw(axes: list[Axes], colours: dict[str, str]) -> None:
        for ax, what in zip(axes, whats, strict=True):
            for name in m.contenders:
                _line(ax, name, [(_along(s, axis), m.median(name, what, s)) for s in sizes], colours)
            label = "tokens T" if axis == "T" else "heads in all, B H"
            ax.set(xscale="log", yscale="log", xlabel=label, ylabel="milliseconds", title=TITLES[what])
            fixed = [word for word in words(sizes[0]).split() if not word.startswith(axis)]
            ax.text(0.03, 0.95, " ".join(fixed), transform=ax.transAxes, color=colours["ink"], fontsize=8)
            _ticks(ax, [_along(s, axis) for s in sizes])
        _legend(axes)

    against = "the number of tokens" if axis == "T" else "the number of heads"
    return picture(draw, len(whats), f"Time of each op against {against} on {m.device}", 1.0)


def _steps(m: Measured) -> Picture | None:
    """Time of a decoding step against the number of sequences: in a CUDA graph where there is one."""
    series: dict[Size, list[Size]] = {}
    for size in m.sizes("decode"):
        series.setdefault(size[1:], []).append(size)
    sizes = _longest(series)
    if len(sizes) < 3:
        return None
    panels = [p for p in ("steps_ms", "graph_ms") if any(isinstance(r.figures.get(p), float) for r in m.rows.values())]

    def draw(axes: list[Axes], colours: dict[str, str]) -> None:
        for ax, panel in zip(axes, panels, strict=True):
            for name in m.contenders:
                rows = [(s[0], m.rows.get((name, "decode", s))) for s in sizes]
                times = [(b, row.figures.get(panel) if row else None) for b, row in rows]
                _line(ax, name, [(b, t if isinstance(t, float) else None) for b, t in times], colours)
            title = "as called from Python" if panel == "steps_ms" else "inside a CUDA graph"
            ax.set(xscale="log", yscale="log", xlabel="sequences", ylabel="milliseconds a token", title=title)
            _ticks(ax, [b for b, *_ in sizes])
        _legend(axes)

    return picture(draw, len(panels), f"Time of a decoding step against the number of sequences on {m.device}", 1.2)


def _longest(series: dict[Size, list[Size]]) -> list[Size]:
    longest: list[Size] = max(series.values(), key=len) if series else []
    return sorted(longest)


def _along(size: Size, axis: str) -> int:
    return size[AXES.index("T")] if axis == "T" else size[AXES.index("B")] * size[AXES.index("H")]


def _line(ax: Axes, name: str, points: list[tuple[int, float | int | None]], colours: dict[str, str]) -> None:
    there = [(x, y) for x, y in points if y]
    if there:
        marker = STYLES[name][2]
        ax.plot(*zip(*there, strict=True), marker=marker, ms=5, lw=1.3, color=colours[f"bench {name}"], label=name)


def _ticks(ax: Axes, at: Sequence[int]) -> None:
    ax.set_xticks(list(at), [f"{x // 1024}k" if x >= 1024 else str(x) for x in at])
    ax.xaxis.set_minor_locator(NullLocator())
    _plain(ax.yaxis)


def _plain(axis: Axis) -> None:
    """Numbers as one writes them, at 1, 2 and 5."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(lambda x, _: f"{x:,g}")
    axis.set_minor_locator(NullLocator())


def _legend(axes: list[Axes]) -> None:
    named: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    axes[0].figure.legend(list(named.values()), list(named), loc="outside upper center", ncols=3, fontsize=8)

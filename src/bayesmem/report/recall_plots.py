"""The recall study's pictures: excess risk on every axis, calibration, abstention, keys never shown."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bayesmem.report.plots import Picture, picture
from bayesmem.report.recall_data import AXES, SPARE, STYLES, Numbers, World, mean, worlds
from bayesmem.report.records import Records


def pictures(records: Records) -> dict[str, Picture]:
    """Every picture that the records allow, by name."""
    drawn: dict[str, Picture] = {}
    for world in worlds(records):
        for name, alt in alts(world).items():
            drawn[name] = (_excess if name.endswith("excess") else _variance)(world, alt)
    return drawn


def alts(world: World) -> dict[str, str]:
    """Names of one world's pictures, and what they show in words."""
    found = {"excess": "Excess risk of recall over the best predictor"}
    if any(world.variance(name, lambda v: v["scale"]) for name in world.designs):
        found["variance"] = "Reliability of the variance, risk against coverage, and detection of keys never shown"
    return {f"recall_{world.name}_{kind}": f"{words}, {world.name} world" for kind, words in found.items()}


def _excess(world: World, alt: str) -> Picture:
    """Excess risk against each axis: means over seeds, from least to most; the trained range shaded."""
    found = {name: world.excess(name) for name in world.designs}

    def draw(axes: list[Axes], colours: dict[str, str]) -> None:
        for ax, (axis, label) in zip(axes, AXES.items(), strict=True):
            x = world.points(axis)
            _shade(ax, world.known(axis), axis, colours)
            least = [world.least((axis, i)) for i in range(len(x))]
            ax.plot(x, least, ":", color=colours["ink"], lw=1, label="least risk there is")
            for name in world.designs:
                seeds = found[name][axis]
                style = _style(name, colours)
                ax.plot(x, [mean(s) for s in seeds], label=name, ms=4, lw=1.3, **style)
                if len(seeds[0]) > 1:
                    low, high = [min(s) for s in seeds], [max(s) for s in seeds]
                    ax.fill_between(x, low, high, color=style["color"], alpha=0.2, lw=0)
            ax.set(xlabel=label, ylabel="excess risk", yscale="log")
            if axis == "rate":
                ax.set_xscale("symlog", linthresh=min((value for value in x if value > 0), default=1.0))
            elif axis != "similarity":
                ax.set_xscale("log")
            _ticks(ax, x)
            ax.yaxis.set_major_locator(LogLocator(numticks=6))
            ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
            ax.yaxis.set_minor_locator(NullLocator())
        _legend(axes)

    return picture(draw, len(AXES), alt, 1.1)


def _variance(world: World, alt: str) -> Picture:
    """Reliability in and beyond the trained range, risk against coverage, and keys never shown."""
    names = [name for name in world.designs if world.variance(name, lambda v: v["scale"]) is not None]
    parts = [part for part in ("trained", "beyond") if world.variance(names[0], lambda v, p=part: v[p])]  # type: ignore[misc]
    titles = {"trained": "Reliability, as trained", "beyond": "Reliability, beyond"}

    def draw(axes: list[Axes], colours: dict[str, str]) -> None:
        for ax, part in zip(axes, parts, strict=False):
            for name in names:
                bins = world.variance(name, lambda v, part=part: v[part]["bins"]) or []  # type: ignore[misc]
                _reliable(ax, bins, name, colours)
            best = world.variance(names[0], lambda v, part=part: v[part]["optimal_bins"]) or []  # type: ignore[misc]
            ax.plot(*_means(best[:1]), ":", color=colours["ink"], label="best predictor")
            low, high = ax.get_xlim()
            ax.axline((low, low), (high, high), color=colours["ink"], lw=0.8)
            ax.set(xscale="log", yscale="log", xlabel="variance told, tenths of the queries", ylabel="squared error")
            for side in (ax.xaxis, ax.yaxis):
                side.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
                side.set_minor_locator(NullLocator())
            ax.set_title(titles[part])
        covered, strange = axes[len(parts) :]
        for name in names:
            curves = world.variance(name, lambda v: v["coverage"]) or []
            share = [point[0] for point in curves[0]]
            risk = [mean([curve[i][1] for curve in curves]) for i in range(len(share))]
            covered.plot(share, risk, ms=3, lw=1.3, **_style(name, colours))
            points = world.variance(name, lambda v: v["auroc"]) or []
            x = [point[0] for point in points[0]]
            strange.plot(
                x, [mean([p[i][2] for p in points]) for i in range(len(x))], ms=4, lw=1.3, **_style(name, colours)
            )
        covered.plot(share, [point[2] for point in curves[0]], ":", color=colours["ink"])
        covered.set(xlabel="share of queries answered, surest first", ylabel="squared error", ylim=(0, None))
        covered.set_title("More pairs than trained, half strangers")
        strange.plot(x, [point[3] for point in points[0]], ":", color=colours["ink"])
        _shade(strange, world.known("pairs"), "pairs", colours)
        strange.set(xscale="log", xlabel=AXES["pairs"], ylabel="AUROC of the variance", ylim=(None, 1.03))
        _ticks(strange, x)
        strange.axhline(0.5, color=colours["grid"], lw=1)
        strange.set_title("Was this key ever shown?")
        _legend(axes)

    return picture(draw, len(parts) + 2, alt, 0.9)


def _reliable(ax: Axes, bins: list[Any], name: str, colours: dict[str, str]) -> None:
    ax.plot(*_means(bins), ms=4, lw=1.3, label=name, **_style(name, colours))


def _means(bins: list[Any]) -> tuple[Numbers, Numbers]:
    """Told and found in each tenth, means over seeds."""
    count = range(len(bins[0]))
    told, found = ([mean([seed[i][column] for seed in bins]) for i in count] for column in (0, 1))
    return told, found


def _style(name: str, colours: dict[str, str]) -> dict[str, Any]:
    return {"color": colours.get(f"recall {name}", colours["ink"]), "marker": STYLES.get(name, SPARE)[2], "ls": "-"}


def _shade(ax: Axes, known: tuple[float | int, float | int], axis: str, colours: dict[str, str]) -> None:
    low, high = known
    if low == high:
        ax.axvline(low, color=colours["grid"], lw=6)
    else:
        ax.axvspan(low, high, color=colours["grid"], alpha=0.5, lw=0)


def _ticks(ax: Axes, x: Numbers) -> None:
    """Mark where an axis was tested."""
    ax.set_xticks(x, [f"{value:g}" for value in x], fontsize=8)
    ax.xaxis.set_minor_locator(NullLocator())


def _legend(axes: list[Axes]) -> None:
    handles, labels = axes[0].get_legend_handles_labels()
    figure = axes[0].figure
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=9)

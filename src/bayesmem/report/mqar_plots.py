"""The MQAR study's pictures: accuracy against state bytes, and against pairs with the trained range shaded."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from bayesmem.report.mqar_data import PLAIN, STYLES, Arm, Group, Slice, Study, mean, studies
from bayesmem.report.plots import Picture, picture
from bayesmem.report.records import Records

SPARE = ("#7d8696", "#9aa5b5", "p")


def pictures(records: Records) -> dict[str, Picture]:
    """Every picture that the records allow, by name."""
    drawn: dict[str, Picture] = {}
    for number, found in enumerate(studies(records)):
        of = suffix(found, number)
        for name, alt in alts(found, of).items():
            bytes_ = name == f"mqar_bytes{of}"
            drawn[name] = _against_bytes(found, alt) if bytes_ else _against_pairs(found, name.removesuffix(of), alt)
    return drawn


def suffix(found: Study, number: int) -> str:
    """What names of a study's pictures end in: nothing for the first of the page."""
    return f"_{found.settings['steps']}_steps" if number else ""


def alts(found: Study, of: str = "") -> dict[str, str]:
    """Names of the pictures that a study allows, ending in ``of``, and what they show in words."""
    named = {}
    if _sized(found):
        named[f"mqar_bytes{of}"] = "MQAR accuracy against the bytes of state"
    for group in found.groups:
        if _shown(group):
            named[picture_name(group) + of] = (
                f"MQAR accuracy against pairs at width {group.width}, matched by {group.matched}"
                + ("" if group.data == PLAIN else f", data {group.data}")
            )
    return named


def picture_name(group: Group) -> str:
    """Of a group's picture of accuracy against pairs."""
    return f"mqar_pairs_{group.width}_{group.matched}_{group.data}"


def hardest(found: Study) -> list[Slice]:
    """The slices of most pairs, at most two, that are told against state."""
    return sorted(shortest(found), key=lambda at: at[1])[-2:]


def shortest(found: Study) -> list[Slice]:
    """For each number of pairs its shortest rows."""
    least: dict[int, int] = {}
    for length, pairs in found.slices:
        least[pairs] = min(length, least.get(pairs, length))
    return [(length, pairs) for pairs, length in sorted(least.items())]


def _shown(group: Group) -> list[Arm]:
    return [arm for arm in group.arms.values() if arm.rows]


def _sized(found: Study) -> dict[str, list[Arm]]:
    """Arms of every model on Zoology's own rows, however wide and matched."""
    arms: dict[str, list[Arm]] = {}
    for group in found.groups:
        if group.data == PLAIN:
            for arm in _shown(group):
                arms.setdefault(arm.model, []).append(arm)
    return arms


def _against_bytes(found: Study, alt: str) -> Picture:
    """One panel a slice; a mark is the mean of one model's seeds at one size, its bar their least and most."""
    places = hardest(found)

    def draw(axes: list[Axes], colours: dict[str, str]) -> None:
        for ax, at in zip(axes, places, strict=True):
            for model, arms in _sized(found).items():
                ordered = sorted(arms, key=lambda arm: arm.bytes[at])
                x = [arm.bytes[at] for arm in ordered]
                y = [mean(arm.accuracy(at)) for arm in ordered]
                low = [here - min(arm.accuracy(at)) for here, arm in zip(y, ordered, strict=True)]
                high = [max(arm.accuracy(at)) - here for here, arm in zip(y, ordered, strict=True)]
                ax.errorbar(x, y, yerr=[low, high], label=model, ms=6, lw=1, **_style(model, colours, line=False))
            every = [arm.bytes[at] for arms in _sized(found).values() for arm in arms]
            ax.set_xscale("log", base=2)
            ax.set(xlim=(min(every) / 2, max(every) * 2), ylim=(0, 1.03))  # wide, so that a small lead looks small
            ax.set(xlabel="state of all layers, KiB", ylabel="accuracy")
            ax.set_title(f"{at[1]} pairs in {at[0]} tokens")
            ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1024:g}"))
            ax.xaxis.set_minor_locator(NullLocator())
        _legend(axes)

    return picture(draw, len(places), alt, 0.9)


def _against_pairs(found: Study, name: str, alt: str) -> Picture:
    """Means over seeds, from least to most; the trained numbers of pairs shaded."""
    (group,) = (group for group in found.groups if picture_name(group) == name)
    places = shortest(found)

    def draw(axes: list[Axes], colours: dict[str, str]) -> None:
        (ax,) = axes
        x = [pairs for _, pairs in places]
        for arm in _shown(group):
            seeds = [arm.accuracy(at) for at in places]
            style = _style(arm.model, colours)
            ax.plot(x, [mean(s) for s in seeds], label=arm.model, ms=4, lw=1.3, **style)
            if len(seeds[0]) > 1:
                ax.fill_between(
                    x, [min(s) for s in seeds], [max(s) for s in seeds], color=style["color"], alpha=0.2, lw=0
                )
        trained = [segment[1] for segment in found.settings["scale"]["trained"]]
        ax.axvspan(min(trained), max(trained), color=colours["grid"], alpha=0.5, lw=0)
        ax.text(max(trained) * 0.94, 0.03, "trained", ha="right", color=colours["ink"])
        ax.set(xscale="log", xlabel="pairs to remember", ylabel="accuracy", ylim=(0, 1.03))
        ax.set_xticks(x, [str(pairs) for pairs in x])
        ax.xaxis.set_minor_locator(NullLocator())
        _legend(axes)

    return picture(draw, 1, alt, 0.9)


def _style(model: str, colours: dict[str, str], line: bool = True) -> dict[str, Any]:
    marker = STYLES.get(model, SPARE)[2]
    return {"color": colours.get(f"mqar {model}", colours["ink"]), "marker": marker, "ls": "-" if line else "none"}


def _legend(axes: list[Axes]) -> None:
    handles, labels = axes[0].get_legend_handles_labels()
    columns = 3 if len(axes) > 1 else 2
    axes[0].figure.legend(handles, labels, loc="outside upper center", ncols=columns, fontsize=8)

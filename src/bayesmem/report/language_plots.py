"""The language study's pictures: bits per byte by position in the context, and the losses of training."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from bayesmem.report.language_data import BASE, Arm, Study, differences, mean, study
from bayesmem.report.mqar_data import STYLES
from bayesmem.report.plots import Picture, picture
from bayesmem.report.records import Records

POSITION, LOSSES = "language_position", "language_losses"
ALTS = {
    LOSSES: "Training loss of each model at its best learning rate, every seed, by tokens",
    POSITION: "Held-out bits per byte by position in the context, and what others have more than the Bayesian Layer",
}


def pictures(records: Records) -> dict[str, Picture]:
    """The pictures that the records allow, by name."""
    found = study(records)
    return {LOSSES: _losses(found), POSITION: _by_position(found)} if found is not None and drawn(found) else {}


def drawn(found: Study) -> dict[str, dict[str, Arm]]:
    """What the pictures show: arms with a result, by how they are matched."""
    kept = {matched: {name: arm for name, arm in arms.items() if arm.rows} for matched, arms in found.groups.items()}
    return {matched: arms for matched, arms in kept.items() if arms}


def _losses(found: Study) -> Picture:
    """For each way to match: the loss as it was logged, a line a seed."""
    recipe = found.settings["recipe"]
    per_step = recipe["length"] * recipe["batch_size"] / 1e6

    def draw(axes: list[Axes], colours: dict[str, str]) -> None:
        for ax, (matched, arms) in zip(axes, drawn(found).items(), strict=True):
            lowest = 7.0
            for name, arm in arms.items():
                for index, row in enumerate(arm.rows.values()):
                    logged = row.figures.get("losses", [])
                    tokens, losses = [per_step * step for step, _ in logged], [loss for _, loss in logged]
                    lowest = min([lowest, *losses])
                    colour = colours.get(f"mqar {name}", colours["ink"])
                    ax.plot(tokens, losses, lw=1, alpha=0.8, color=colour, label=None if index else name)
            ax.set(
                xlabel="million tokens", ylabel="nats a token", title=f"matched by {matched}", ylim=(lowest - 0.1, 7.5)
            )
            ax.legend(fontsize=8)

    return picture(draw, len(drawn(found)), ALTS[LOSSES], 0.7)


def _by_position(found: Study) -> Picture:
    """For each way to match: means over seeds, from least to most; and beside it the differences from the Bayesian."""
    panels = [(matched, what) for matched in drawn(found) for what in ("bits", "difference")]
    panels = [(matched, what) for matched, what in panels if what == "bits" or BASE in drawn(found)[matched]]

    def draw(axes: list[Axes], colours: dict[str, str]) -> None:
        for ax, (matched, what) in zip(axes, panels, strict=True):
            arms = drawn(found)[matched]
            for name, arm in arms.items():
                numbers = {at: list(arm.bits(at).values()) for at in found.bins}
                if what == "difference":
                    numbers = {at: differences(arm, arms[BASE], at) for at in found.bins}
                _line(ax, name, {at: some for at, some in numbers.items() if some}, colours)
            length = found.settings["recipe"]["length"]
            ax.set(xscale="log", xlabel="position in the context")
            ax.set_xlim(min(_middle(at) for at in found.bins) / 1.3, found.bins[-1][1])
            ax.axvspan(ax.get_xlim()[0], length, color=colours["grid"], alpha=0.5, lw=0)
            ax.text(
                length * 0.94, 0.03, "trained", ha="right", color=colours["ink"], transform=ax.get_xaxis_transform()
            )
            ax.set_ylabel("bits per byte" if what == "bits" else f"bits per byte more than {BASE}")
            ax.set_title(f"matched by {matched}" if what == "bits" else "above 0: the Bayesian Layer is better")
            marks = [to for _, to in found.bins]
            ax.set_xticks(marks, [f"{mark:g}" for mark in marks], fontsize=8)
            ax.xaxis.set_minor_locator(NullLocator())
            ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        handles, labels = axes[0].get_legend_handles_labels()
        axes[0].figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=8)

    return picture(draw, len(panels), ALTS[POSITION], 0.7)


def _line(ax: Axes, model: str, numbers: dict[tuple[int, int], list[float | int]], colours: dict[str, str]) -> None:
    x = [_middle(at) for at in numbers]
    style: dict[str, Any] = {"color": colours.get(f"mqar {model}", colours["ink"])}
    marker = STYLES[model][2] if model in STYLES else "p"
    ax.plot(x, [mean(some) for some in numbers.values()], marker=marker, ms=4, lw=1.3, label=model, **style)
    if any(len(some) > 1 for some in numbers.values()):
        low, high = ([pick(some) for some in numbers.values()] for pick in (min, max))
        ax.fill_between(x, low, high, alpha=0.2, lw=0, **style)


def _middle(at: tuple[int, int]) -> float:
    return (at[0] + at[1]) / 2

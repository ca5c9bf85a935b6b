"""RULER's heat maps: task by length, a panel a checkpoint; and bits a byte by position in the context."""

from collections.abc import Collection, Mapping

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from bayesmem.report.plots import Picture, picture
from bayesmem.report.records import Record, Records
from bayesmem.report.ruler import TEXT, Grid, grid, labels

ENDS = {"#1c2430": ("#f3f6fb", "#1f6fd6"), "#dfe5ee": ("#1b2230", "#6db1ff")}  # by the dress's ink: nothing, all right
STYLES = ("o-", "s--", "^-.", "D:", "v-", "P--")


def pictures(records: Records, apart: Collection[str] = ()) -> dict[str, Picture]:
    """Every picture that the records allow, by name.

    Args:
        records: of ``bayesmem eval``.
        apart: fingerprints of weights that are shown elsewhere.
    """
    found = {label: grid(own) for label, own in labels(records, apart).items()}
    texts = {f"{r.name}, {r.settings['length']}": r for r in records.all() if r.experiment == TEXT}
    drawn = {"ruler": heat_map(found)} if found else {}
    return drawn | ({"eval_text": by_position(texts)} if texts else {})


def heat_map(found: Mapping[str, Grid]) -> Picture:
    """Mean score of every task at every length.

    Args:
        found: of every checkpoint.
    """

    def draw(axes: list[Axes], colours: dict[str, str]) -> None:
        nothing, right = ENDS[colours["ink"]]
        shades = LinearSegmentedColormap.from_list("score", [nothing, right])
        for ax, (label, (tasks, lengths, means)) in zip(axes, found.items(), strict=True):
            rows = [[means.get((task, length), (float("nan"), None))[0] for length in lengths] for task in tasks]
            ax.pcolormesh(rows, cmap=shades, vmin=0, vmax=1, edgecolors=colours["grid"], linewidth=0.5)
            for y, row in enumerate(rows):
                for x, mean in enumerate(row):
                    ink = "#ffffff" if mean > 0.6 and nothing == "#f3f6fb" else colours["ink"]
                    ink = "#10151d" if mean > 0.6 and nothing != "#f3f6fb" else ink
                    told = "" if mean != mean else f"{100 * mean:.0f}"
                    ax.text(x + 0.5, y + 0.5, told, ha="center", va="center", color=ink, fontsize=8)
            ax.set_xticks([x + 0.5 for x in range(len(lengths))], [str(length) for length in lengths])
            ax.set_yticks([y + 0.5 for y in range(len(tasks))], tasks)
            ax.tick_params(length=0)
            ax.invert_yaxis()
            ax.grid(visible=False)
            ax.set(xlabel="tokens", title=label)

    return picture(draw, len(found), f"Percent right by task and length: {', '.join(found)}")


def by_position(texts: dict[str, Record]) -> Picture:
    """Bits a byte against the position in the context.

    Args:
        texts: records by what to call them.
    """

    def draw(axes: list[Axes], colours: dict[str, str]) -> None:
        (ax,) = axes
        for index, (label, record) in enumerate(texts.items()):
            bins = record.figures["bins"]
            ax.plot(
                [(b["from"] + b["to"]) / 2 for b in bins],
                [b["bits_per_byte"] for b in bins],
                STYLES[index % len(STYLES)],
                label=label,
                ms=3,
            )
        ax.set(xscale="log", xlabel="tokens before, in the context", ylabel="bits a byte")
        ax.legend(fontsize=8)

    return picture(draw, 1, "Bits a byte by position in the context")

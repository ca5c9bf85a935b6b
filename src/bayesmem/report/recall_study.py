"""The recall study as a part of docs/results.md: Markdown, every number from the records of ``bayesmem run recall``."""

from os.path import relpath
from pathlib import Path
from textwrap import fill
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from bayesmem.report.recall_data import AXES, EXPERIMENT, STYLES, Numbers, World, beside, mean, worlds
from bayesmem.report.recall_plots import alts, pictures
from bayesmem.report.records import Records

__all__ = ["EXPERIMENT", "beside", "pictures", "section", "write"]


def write(records: Records, folder: Path) -> Path | None:
    """The part as a page of its own, ``recall.md`` with its pictures beside it; nothing where nothing was run."""
    path, images = folder / "recall.md", folder / "img"
    text = section(records, path, images)
    if not text:
        return None
    images.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures(records).items():
        (images / f"{name}-light.svg").write_text(picture.light, encoding="utf-8")
        (images / f"{name}-dark.svg").write_text(picture.dark, encoding="utf-8")
    path.write_text(text, encoding="utf-8")
    return path


def section(records: Records, path: Path, images: Path) -> str:
    """The study's part of a Markdown page; empty where nothing was run.

    Args:
        records: of ``bayesmem run recall``.
        path: where the page will lie, for its links.
        images: folder of the pictures.
    """
    found = worlds(records)
    if not found:
        return ""
    environment = Environment(
        loader=PackageLoader("bayesmem.report"), undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    first = found[0]
    settings, rows = first.settings, [row for world in found for rows in world.rows.values() for row in rows]
    contexts = [row.context for row in rows]
    return environment.get_template("recall.md.j2").render(
        source=relpath(records.path, path.parent),
        images=relpath(images, path.parent),
        settings=settings,
        filled=lambda text: fill(" ".join(text.split()), 118, break_long_words=False, break_on_hyphens=False),
        devices=sorted({context["device"] for context in contexts}),
        commits=list(dict.fromkeys(context["commit"] for context in contexts)),
        context=contexts[-1],
        minutes=round(sum(row.figures["seconds"] for row in rows) / 60),
        worlds=[_world(world) for world in found],
        not_run=[f"{name} ({world.name})" for world in found for name in STYLES if name not in world.rows],
    )


def _world(world: World) -> dict[str, Any]:
    names = world.designs
    excess = {name: world.excess(name) for name in names}
    far = {axis: world.farthest(axis) for axis in AXES}
    axes = [axis for axis in AXES if far[axis] is not None]
    columns: list[list[Numbers]] = [[world.trained(name) for name in names]]
    columns += [[excess[name][axis][far[axis]] for name in names] for axis in axes]  # type: ignore[index]
    best = [min(mean(cell) for cell in column) for column in columns]
    return {
        "name": world.name,
        "change": world.settings["change"],
        "rate": world.settings["rate"],
        "seeds": {name: len(world.rows[name]) for name in names},
        "heads": [f"{axis} {world.points(axis)[far[axis]]:g}" for axis in axes],  # type: ignore[index]
        "least": [f"{world.least(None):.4f}", *(f"{world.least((axis, far[axis])):.4f}" for axis in axes)],  # type: ignore[arg-type]
        "rows": [
            [
                f"`{name}`",
                f"{world.figure(name, 'state_per_layer'):,}",
                f"{world.figure(name, 'parameters'):,}",
                *(_cell(column[i], mean(column[i]) <= low) for column, low in zip(columns, best, strict=True)),
            ]
            for i, name in enumerate(names)
        ],
        "knows": [_knows(world, name) for name in names],
        "pictures": alts(world),
    }


def _cell(numbers: Numbers, best: bool) -> str:
    text = f"{mean(numbers):.4f}"
    text = f"**{text}**" if best else text
    return text if len(numbers) == 1 else f"{text} ({min(numbers):.4f} to {max(numbers):.4f})"


def _knows(world: World, name: str) -> list[str]:
    """What a design's variance is worth, or n/a for one that has none."""
    if world.variance(name, lambda v: v["scale"]) is None:
        return [f"`{name}`", *["n/a"] * 8]
    cells = [f"`{name}`"]
    for part in ("trained", "beyond"):
        for take in ("slope", "nll", "optimal_nll"):
            numbers = world.variance(name, lambda v, part=part, take=take: v[part] and v[part][take])  # type: ignore[misc]
            cells.append("" if numbers is None else f"{mean(numbers):.3f}")
    for index in (2, 3):
        numbers = world.variance(name, lambda v, index=index: v["auroc"][-1][index])  # type: ignore[misc]
        cells.append("" if numbers is None else f"{mean(numbers):.3f}")
    return cells

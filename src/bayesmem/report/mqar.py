"""The MQAR study as a part of docs/results.md: Markdown, every number from the records of ``bayesmem run mqar``."""

from os.path import relpath
from pathlib import Path
from textwrap import fill
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from bayesmem.report.mqar_data import (
    DATA,
    EXPERIMENT,
    MATCHED,
    MODELS,
    PLAIN,
    RATES,
    SEEDS,
    WIDTHS,
    Arm,
    Group,
    Study,
    beside,
    mean,
    studies,
)
from bayesmem.report.mqar_plots import alts, picture_name, pictures, suffix
from bayesmem.report.mqar_speed import speed, time_to_learn
from bayesmem.report.mqar_verdict import named, verdict
from bayesmem.report.records import Records

__all__ = ["EXPERIMENT", "beside", "pictures", "section"]


def section(records: Records, path: Path, images: Path) -> str:
    """The study's part of a Markdown page; empty where nothing was run.

    Args:
        records: of ``bayesmem run mqar``.
        path: where the page will lie, for its links.
        images: folder of the pictures.
    """
    found = studies(records)
    whole = sum(record.experiment == EXPERIMENT for record in records.all())
    left_out = whole - sum(len(one.records) for one in found)
    return "\n".join(_part(one, number, left_out, records, path, images) for number, one in enumerate(found))


def _part(found: Study, number: int, left_out: int, records: Records, path: Path, images: Path) -> str:
    environment = Environment(
        loader=PackageLoader("bayesmem.report"), undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    contexts = [record.context for record in found.records]
    of = suffix(found, number)
    shown = alts(found, of)
    return environment.get_template("mqar.md.j2").render(
        number=number,
        of=of,
        source=relpath(records.path, path.parent),
        images=relpath(images, path.parent),
        filled=lambda text: fill(" ".join(text.split()), 118, break_long_words=False, break_on_hyphens=False),
        settings=found.settings,
        devices=sorted({context["device"] for context in contexts}),
        commits=list(dict.fromkeys(context["commit"][:12] for context in contexts)),
        context=contexts[-1],
        segments=[f"({length}, {pairs}) {rows:,} rows" for length, pairs, rows in found.settings["scale"]["trained"]],
        jobs=len(found.records),
        left_out=0 if number else left_out,
        verdict=verdict(found),
        bytes_alt=shown.get(f"mqar_bytes{of}"),
        heads=[named(at) for at in found.slices],
        groups=[
            _group(found, group) | {"picture": picture_name(group) + of, "alt": shown.get(picture_name(group) + of)}
            for group in found.groups
        ],
        time_to_learn=time_to_learn(found),
        ablations=_ablations(found),
        not_run=not_run(found) if number == 0 else [],
    )


def _group(found: Study, group: Group) -> dict[str, Any]:
    arms = [arm for arm in group.arms.values() if arm.rows]
    means = {at: [mean(arm.accuracy(at)) for arm in arms] for at in found.slices}
    seeds = {len(arm.rows) for arm in arms}
    return {
        "title": f"Width {group.width}, matched by {group.matched}: {DATA.get(group.data, group.data)}",
        "data": group.data,
        "seeds": max(seeds, default=0),
        "asked": _asked(arms),
        "rows": [
            [
                f"`{arm.model}`",
                _state(arm),
                f"{arm.rows[0].figures['parameters']:,}",
                f"{arm.best:g}",
                str(len(arm.rows)) + (f" ({len(arm.diverged)} diverged)" if arm.diverged else ""),
                *(_cell(arm.accuracy(at), _best(arm.accuracy(at), means[at])) for at in found.slices),
            ]
            for arm in arms
        ],
        "lost": [arm.model for arm in group.arms.values() if not arm.rows],
        **_rates(group),
        "speed": [[f"`{arm.model}`", *speed(arm)] for arm in arms],
        "milestone": named(tuple(found.settings["scale"]["milestone"])),
        "beside": sorted({row.figures["beside"] for arm in arms for row in arm.rows}),
        "retention": [line for arm in arms if (line := _retention(arm))],
    }


def _asked(arms: list[Arm]) -> str:
    """How many associations each slice asks for, where that is not its number of pairs."""
    figures = arms[0].rows[0].figures if arms else {}
    if "asked" not in figures:
        return ""
    return ", ".join(f"{named((length, pairs))} {asked}" for length, pairs, asked in figures["asked"])


def _state(arm: Arm) -> str:
    figures = arm.rows[0].figures
    if "state_per_layer" in figures:
        return f"{figures['state_per_layer']:,}"
    return f"{figures['state_per_layer_and_token']:,} a token"


def _best(numbers: list[float | int], means: list[float | int]) -> bool:
    """Whether none has more, at the digits that are shown."""
    return round(mean(numbers), 3) >= round(max(means), 3)


def _cell(numbers: list[float | int], best: bool) -> str:
    text = f"**{mean(numbers):.3f}**" if best else f"{mean(numbers):.3f}"
    return text if len(numbers) == 1 else f"{text} ({min(numbers):.3f} to {max(numbers):.3f})"


def _rates(group: Group) -> dict[str, Any]:
    """The table of learning rates, where more than one was tried."""
    rates = sorted({rate for arm in group.arms.values() for rate in arm.rates})
    if len(rates) < 2:
        return {"rates": [], "tried": [], "ends": []}
    tried = []
    for arm in group.arms.values():
        cells = []
        for rate in rates:
            score = arm.rates.get(rate)
            text = "not run" if rate not in arm.rates else "diverged" if score is None else f"{score:.3f}"
            cells.append(f"**{text}**" if rate == arm.best else text)
        tried.append([f"`{arm.model}`", *cells])
    ends = [
        arm.model for arm in group.arms.values() if len(arm.rates) > 1 and arm.best in (min(arm.rates), max(arm.rates))
    ]
    return {"rates": [f"{rate:g}" for rate in rates], "tried": tried, "ends": ends}


def _retention(arm: Arm) -> str:
    """What share of its certainty a layer keeps at a token, by what the token is for; empty without such a gate."""
    layers = []
    for number, gates in enumerate(arm.rows[0].figures["gates"], 1):
        told = gates.get("retention", {})
        parts = [
            f"{part} {', '.join(_share(head['mean']) for head in told[part])}"
            for part in ("shown", "asked", "rest")
            if part in told
        ]
        parts += [", ".join(_share(one) for one in told["fixed"])] if "fixed" in told else []
        if parts:
            layers.append(f"layer {number}: {'; '.join(parts)}")
    return f"`{arm.model}`, {'. '.join(layers)}" if layers else ""


def _share(kept: float | int) -> str:
    return f"{kept:.4f}"


def _ablations(found: Study) -> list[list[str]]:
    """One line a changed choice, at the best rate of its unchanged model, which stands first."""
    places = found.beyond
    if not found.ablations:
        return []
    names = {record.name for records in found.ablations.values() for record in records}
    base = next((g.arms for g in found.groups if g.main), {})
    lines = []
    for name in sorted(names & set(base)):
        numbers = [base[name].accuracy(at) for at in places]
        if base[name].rows:
            lines.append([f"`{name}` as it is", str(len(base[name].rows)), *(_cell(n, False) for n in numbers)])
    for words, records in found.ablations.items():
        kept = [record for record in records if "diverged" not in record.figures]
        gone = len(records) - len(kept)
        count = str(len(kept)) + (f" ({gone} diverged)" if gone else "")
        by_slice = [
            [right for r in kept for *here, right in r.figures["accuracy"] if tuple(here) == at] for at in places
        ]
        lines.append([f"`{records[0].name}`: {words}", count, *(_cell(n, False) if n else "" for n in by_slice)])
    return [["", "seeds", *map(named, places)], *lines]


def not_run(found: Study) -> list[str]:
    """What the whole study has and the records lack, in words."""
    lacking = []
    for width in WIDTHS:
        groups = {g.matched: g for g in found.groups if g.data == PLAIN and g.width == width}
        for matched in MATCHED if width == WIDTHS[0] else MATCHED[:1]:
            group = groups.get(matched)
            where = f"width {width}, matched by {matched}"
            if group is None:
                lacking.append(f"{where}: all models")
                continue
            if absent := [name for name in MODELS if name not in group.arms]:
                lacking.append(f"{where}: {', '.join(absent)}")
            if few := [f"{a.model} ({len(a.rates)} of {RATES})" for a in group.arms.values() if len(a.rates) < RATES]:
                lacking.append(f"{where}, learning rates: {', '.join(few)}")
            seeds = {a.model: len(a.rows) + len(a.diverged) for a in group.arms.values()}
            if few := [f"{model} ({count} of {SEEDS})" for model, count in seeds.items() if count < SEEDS]:
                lacking.append(f"{where}, seeds: {', '.join(few)}")
    if not found.ablations:
        lacking.append("the ablations of the Bayesian Layer")
    for data, words in DATA.items():
        if data not in {group.data for group in found.groups}:
            lacking.append(f"other rows, {data} ({words})")
    return lacking

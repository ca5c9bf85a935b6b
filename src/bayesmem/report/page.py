"""A self-contained page from a run's records: pictures inside, readable on a phone and in the dark."""

import base64
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from bayesmem.report import BAYESIAN, GATED_DELTA, WIDE_VALUES, collision, plots
from bayesmem.report.collision_words import sections
from bayesmem.report.records import Record, Records
from bayesmem.report.verdicts import sweeps, verdicts

NAMES = (GATED_DELTA, WIDE_VALUES, BAYESIAN)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the summary table.

    Attributes:
        what: what was measured.
        values: one text for each of ``NAMES``, empty where it was not measured.
        best: indices of the best ones, where one can be better.
    """

    what: str
    values: tuple[str, ...]
    best: tuple[int, ...] = ()


def write(records: Records, path: Path, drawn: Mapping[str, plots.Picture] | None = None) -> Path:
    """Draw ``path`` from the records; parts that have not run are named as such.

    Args:
        records: what the page tells.
        path: file to write.
        drawn: its ``pictures``, where they are drawn already.

    Raises:
        ValueError: no records at all.
    """
    if not records.all():
        raise ValueError(f"no records at {records.path}; run `bayesmem demo` or `bayesmem run ...` first.")
    environment = Environment(
        loader=PackageLoader("bayesmem.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["picture"] = _embed
    environment.filters["marked"] = _marked
    recall, text = _found(records, "recall"), _found(records, "text")
    swept = sweeps(records)
    page = environment.get_template("page.html.j2").render(
        names=NAMES,
        rows=summary(records),
        pictures=pictures(records) if drawn is None else drawn,
        verdicts=verdicts(swept),
        sections=sections(swept),
        recall=recall,
        recall_beyond=_beyond(recall),
        text=text,
        passage=_passage(text.get(BAYESIAN)),
        context=records.all()[-1].context,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def pictures(records: Records) -> dict[str, plots.Picture]:
    """Every picture that the records allow, by name."""
    drawn: dict[str, plots.Picture] = {}
    swept = sweeps(records)
    if {"repeats", "collision"} <= set(swept):
        drawn["collision"] = collision.classic(swept)
        swept.pop("collision")  # shown there
    drawn |= {f"collision_{name}": collision.sweep(record) for name, record in swept.items()}
    recall, text = _found(records, "recall"), _found(records, "text")
    if recall:
        drawn["recall_accuracy"] = plots.accuracy(recall)
        drawn["recall_losses"] = plots.losses(recall, "training loss, nats")
    if BAYESIAN in recall:
        figures = recall[BAYESIAN].figures
        drawn["recall_strangers"] = plots.strangers(figures["stranger_auroc"])
        drawn["recall_variance"] = plots.by_variance(figures["by_variance"], "recall accuracy")
    if text:
        drawn["text_losses"] = plots.losses(text, "training loss, bits per byte", 1 / math.log(2))
    if BAYESIAN in text:
        drawn["text_variance"] = plots.by_variance(text[BAYESIAN].figures["bits_by_variance"], "bits per byte")
    return drawn


def summary(records: Records) -> list[Row]:
    """The short table: what the models reached."""
    rows = []
    recall, text = _found(records, "recall"), _found(records, "text")
    if recall:
        rows.append(_row("recall: state numbers a layer", _figures(recall, "state_per_layer"), "{:,}"))
        trained = max(pairs for _, pairs in next(iter(recall.values())).settings["trained"])
        accuracies = _figures(recall, "accuracy")
        for i, (length, pairs, _) in enumerate(next(iter(accuracies.values()))):
            what = f"recall of {pairs} pairs in {length} tokens ({'trained' if pairs <= trained else 'beyond'})"
            rows.append(_row(what, {name: rows[i][2] for name, rows in accuracies.items()}, "{:.3f}", best=max))
    if text:
        rows.append(_row("text: state numbers a layer", _figures(text, "state_per_layer"), "{:,}"))
        rows.append(_row("text: parameters", _figures(text, "parameters"), "{:,}"))
        rows.append(_row("text: held-out bits per byte", _figures(text, "bits_per_byte"), "{:.3f}", best=min))
    return rows


def _figures(models: dict[str, Record], figure: str) -> dict[str, Any]:
    return {name: record.figures[figure] for name, record in models.items()}


def _row(what: str, figures: dict[str, Any], form: str, best: Callable[[list[str]], str] | None = None) -> Row:
    values = tuple(form.format(figures[name]) if name in figures else "" for name in NAMES)
    given = [value for value in values if value]
    if best is None or len(set(given)) < 2:
        return Row(what, values)
    return Row(what, values, tuple(i for i, value in enumerate(values) if value == best(given)))


def _found(records: Records, experiment: str) -> dict[str, Record]:
    found = {name: records.find(experiment, name) for name in NAMES}
    return {name: record for name, record in found.items() if record}


def _beyond(models: dict[str, Record]) -> dict[str, float]:
    """Mean accuracy of each model over the segments with more pairs than were trained."""
    means = {}
    for name, record in models.items():
        trained = max(pairs for _, pairs in record.settings["trained"])
        beyond = [accuracy for _, pairs, accuracy in record.figures["accuracy"] if pairs > trained]
        if beyond:
            means[name] = sum(beyond) / len(beyond)
    return means


def _passage(record: Record | None) -> list[tuple[str, float, float, float]]:
    """Characters with their shade (0 sure to 1 unsure), predictive variance and bits."""
    if record is None:
        return []
    figures = record.figures
    low, _, high = figures["variance_quantiles"]
    # Byte i's variance was read out when byte i was written; it belongs to the prediction of byte i + 1.
    data = bytes(figures["passage_bytes"])[1:]
    shades = [min(max((v - low) / max(high - low, 1e-12), 0), 1) for v in figures["passage_variance"]]
    cells = zip(data, shades, figures["passage_variance"], figures["passage_bits"], strict=False)
    return [(chr(b) if b < 128 else "\N{MIDDLE DOT}", round(shade, 2), v, bits) for b, shade, v, bits in cells]


def _embed(picture: plots.Picture) -> Markup:
    light, dark = (base64.b64encode(svg.encode()).decode() for svg in (picture.light, picture.dark))
    return Markup(
        '<picture><source media="(prefers-color-scheme: dark)" srcset="data:image/svg+xml;base64,{}">'
        '<img alt="{}" src="data:image/svg+xml;base64,{}"></picture>'
    ).format(dark, picture.alt, light)


def _marked(text: str) -> Markup:
    """Two stars around a word are bold."""
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", str(escape(text))))

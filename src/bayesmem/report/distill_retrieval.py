"""Retrieval of a distillation's arms, from RULER's records of their checkpoints: the same documents for every arm."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from bayesmem.report.records import Record, Records
from bayesmem.report.ruler import RULER, cells, scores

Scored = dict[tuple[str, int, int], Record]  # task, length, seed of the documents -> its record


def evaluated(records: Records) -> dict[str, Scored]:
    """RULER's cells of every checkpoint, by the fingerprint of its weights."""
    found: dict[str, list[Record]] = {}
    for record in records.all():
        if record.experiment == RULER:
            found.setdefault(record.settings["weights"], []).append(record)
    return {weights: cells(own) for weights, own in found.items()}


def table(
    seeds: Mapping[int, Mapping[str, Record]], found: Mapping[str, Scored], trained: int
) -> dict[str, Any] | None:
    """Mean scores by length, and the student's less each control's; ``None`` where no arm was evaluated.

    Args:
        seeds: seed of the distillation -> teacher or arm -> its record.
        found: of ``evaluated``.
        trained: tokens a row of the distillation; longer documents are beyond it.

    Raises:
        ValueError: arms that were asked different documents.
    """
    marks = {seed: {name: r.figures.get("weights", "") for name, r in own.items()} for seed, own in seeds.items()}
    arms = {seed: {name: found[w] for name, w in own.items() if w in found} for seed, own in marks.items()}
    names = list(dict.fromkeys(name for own in arms.values() for name in own))
    lengths = sorted({length for own in arms.values() for scored in own.values() for _, length, _ in scored})
    if not names:
        return None
    groups = {f"{length:,}": [length] for length in lengths}
    beyond = [length for length in lengths if length > trained]
    if len(beyond) > 1:
        groups[f"mean beyond {trained:,}"] = beyond
    controls = [name for name in names if name.startswith("control-")]
    return {
        "names": names,
        "controls": controls,
        "tasks": sorted({task for own in arms.values() for scored in own.values() for task, *_ in scored}),
        "means": [[title, *(_mean(arms, name, group) for name in names)] for title, group in groups.items()],
        "gains": [[title, *(_gain(arms, name, group) for name in controls)] for title, group in groups.items()],
    }


def _mean(arms: Mapping[int, Mapping[str, Scored]], name: str, lengths: Sequence[int]) -> str:
    """Over tasks, lengths, documents and seeds, in percent."""
    values = [
        scores(record).mean()
        for own in arms.values()
        for (_, length, _), record in own.get(name, {}).items()
        if length in lengths
    ]
    return f"{100 * np.mean(values):.1f}" if values else ""


def _gain(arms: Mapping[int, Mapping[str, Scored]], control: str, lengths: Sequence[int]) -> str:
    """Mean difference in percent, its interval over the documents, and that over the seeds of the distillation."""
    by_seed = [
        difference
        for own in arms.values()
        if "student" in own and control in own
        if len(difference := _paired(own["student"], own[control], lengths))
    ]
    if not by_seed:
        return ""
    if len({len(one) for one in by_seed}) > 1:
        raise ValueError("seeds of one distillation were asked different cells; evaluate all with the same options.")
    each = np.stack(by_seed)
    documents = each.mean(0)  # a document's, over the seeds
    half = 1.96 * documents.std(ddof=1) / math.sqrt(len(documents)) if len(documents) > 1 else math.inf
    middle = documents.mean()
    told = f"{100 * middle:+.1f} [{100 * (middle - half):+.1f}, {100 * (middle + half):+.1f}]"
    if len(by_seed) > 1:
        told += f"; seeds {', '.join(f'{100 * x:+.1f}' for x in each.mean(1))}"
    return told


def _paired(student: Scored, control: Scored, lengths: Sequence[int]) -> Float[ndarray, " N"]:
    """A document's score by the student less that by a control."""
    parts = []
    for cell in sorted(set(student) & set(control)):
        if cell[1] in lengths:
            one, other = student[cell], control[cell]
            if one.figures["fingerprint"] != other.figures["fingerprint"]:
                raise ValueError(f"{cell[0]} at {cell[1]} tokens: the arms were asked different documents.")
            parts.append(scores(one) - scores(other))
    return np.concatenate(parts) if parts else np.zeros(0)

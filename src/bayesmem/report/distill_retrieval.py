"""Retrieval and cost of a distillation's arms in words and tables: plain data for the template."""

import math
from collections.abc import Sequence
from statistics import mean
from typing import Any

from bayesmem.report.distill_data import CONTROLS, STUDENT, TEACHER, Retrieval, Study
from bayesmem.report.effects import Effect, interval
from bayesmem.report.ruler import SHORT

LIMIT = 3.0  # percent of perplexity that a gain may cost


def told(study: Study, retrieval: Retrieval) -> dict[str, Any] | None:
    """Tables of retrieval; ``None`` where no arm was evaluated.

    Args:
        study: arms by seed.
        retrieval: what their checkpoints scored.

    Raises:
        ValueError: arms that were asked different documents.
    """
    names = list(retrieval.arms)
    if not names:
        return None
    others = [name for name in names if name != STUDENT] if STUDENT in names else []
    groups = {f"{length:,}": [length] for length in retrieval.lengths}
    if len(retrieval.beyond) > 1:
        groups[f"all beyond {retrieval.trained:,}"] = retrieval.beyond
    single, cells = retrieval.single, [own for arm in retrieval.arms.values() for own in arm.values()]
    return {
        "what": what(retrieval),
        "names": names,
        "others": others,
        "tasks": single,
        "all_tasks": retrieval.tasks,
        "documents": sorted({len(record.figures["scores"]) for own in cells for record in own.values()}),
        "document_seeds": sorted({seed for own in cells for *_, seed in own}),
        "means": [
            [title, *(_mean(retrieval, name, single, group) for name in names)] for title, group in groups.items()
        ],
        "gains": [
            [title, *(effect(retrieval.gain(name, single, group)) for name in others)]
            for title, group in groups.items()
        ],
        "by_task": _by_task(retrieval, names, others) if len(retrieval.tasks) > 1 and retrieval.beyond else [],
        "short": _short(retrieval),
        "seeds": len(retrieval.arms.get(STUDENT, {})),
    }


def what(retrieval: Retrieval) -> str:
    """What the mean is of."""
    return "S-NIAH" if retrieval.single and retrieval.single[0].startswith("s-niah") else "RULER"


def claims(study: Study, retrieval: Retrieval) -> list[dict[str, Any]]:
    """A claim a control: more retrieved beyond the rows' length by more than the interval, and at what cost.

    Args:
        study: arms by seed.
        retrieval: what their checkpoints scored.
    """
    rows = []
    for control in CONTROLS:
        found = retrieval.gain(control, retrieval.single, retrieval.beyond)
        if found is None:
            continue
        rows.append(
            {
                "name": control,
                "student": _mean(retrieval, STUDENT, retrieval.single, retrieval.beyond),
                "control": _mean(retrieval, control, retrieval.single, retrieval.beyond),
                "found": effect(found),
                "seeds": len(found.each),
                "more": found.low > 0,
                "less": found.high < 0,
            }
        )
    return rows


def costs(study: Study) -> list[dict[str, Any]]:
    """Held-out perplexity of the student over that of the teacher and of each control, in percent, seed by seed."""
    rows = []
    for name in (TEACHER, *CONTROLS):
        pairs = [(arms[STUDENT], arms[name]) for arms in study.seeds.values() if STUDENT in arms and name in arms]
        if not pairs:
            continue
        percent = [100 * (a.figures["perplexity"] / b.figures["perplexity"] - 1) for a, b in pairs]
        bits = [a.figures["bits_per_byte"] - b.figures["bits_per_byte"] for a, b in pairs]
        middle, half = interval(percent)
        rows.append(
            {
                "name": name,
                "percent": with_interval(percent, "+.2f", "%"),
                "bits": with_interval(bits, "+.4f"),
                "within": middle <= LIMIT,
                "surely": middle + half <= LIMIT if math.isfinite(half) else None,
            }
        )
    return rows


def with_interval(values: Sequence[float | int], form: str, unit: str = "") -> str:
    """Mean over seeds, and half of its interval where there are several."""
    middle, half = interval(values)
    text = format(middle, form) + unit
    return text if half in (0, math.inf) else f"{text} ± {format(half, form.lstrip('+'))}"


def effect(found: Effect | None) -> str:
    """Points with their interval, and every seed's own."""
    if found is None:
        return ""
    text = f"{100 * found.mean:+.1f}"
    if math.isfinite(found.half):
        text += f" [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    if len(found.each) > 1:
        text += f"; seeds {', '.join(f'{100 * x:+.1f}' for x in found.each)}"
    return text


def _mean(retrieval: Retrieval, name: str, tasks: Sequence[str], lengths: Sequence[int]) -> str:
    """In percent, over the seeds; how many they are where some were not asked."""
    values = retrieval.means(name, tasks, lengths)
    if not values:
        return ""
    fewer = f" ({len(values)} of {retrieval.seeds} seeds)" if name != TEACHER and len(values) < retrieval.seeds else ""
    return f"{100 * mean(values):.1f}{fewer}"


def _by_task(retrieval: Retrieval, names: Sequence[str], others: Sequence[str]) -> list[list[str]]:
    """Beyond the rows' length, task by task: means, then differences."""
    return [
        [
            task,
            *(_mean(retrieval, name, [task], retrieval.beyond) for name in names),
            *(effect(retrieval.gain(name, [task], retrieval.beyond)) for name in others),
        ]
        for task in retrieval.tasks
    ]


def _short(retrieval: Retrieval) -> list[str]:
    found = {
        f"{task} at {length:,} ({record.figures['tokens']:,.0f})"
        for arm in retrieval.arms.values()
        for own in arm.values()
        for (task, length, _), record in own.items()
        if record.figures.get("tokens", length) < SHORT * length
    }
    return sorted(found)

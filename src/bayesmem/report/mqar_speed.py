"""How soon the models of the MQAR study learn, as lines of tables."""

from typing import Any

from bayesmem.report.mqar_data import Arm, Study, mean
from bayesmem.report.mqar_verdict import named
from bayesmem.report.records import Record


def speed(arm: Arm) -> list[str]:
    """Steps and seconds to the milestone, seeds that reached it, and the seconds of a whole training."""
    reached = [row.figures["reached"] for row in arm.rows if row.figures["reached"] is not None]
    whole = f"{mean([row.figures['seconds'] for row in arm.rows]):.0f}"
    if reached:
        steps, seconds = (mean([one[what] for one in reached]) for what in ("step", "seconds"))
        return [f"{steps:,.0f}", f"{seconds:.0f}", f"{len(reached)} of {len(arm.rows)}", whole]
    return [_never(arm.rows), "", f"0 of {len(arm.rows)}", whole]


def _never(rows: list[Record]) -> str:
    looks = [right for row in rows for *_, right in row.figures["milestones"]]
    return f"never (at most {max(looks):.3f})" if looks else "never looked at"


def time_to_learn(found: Study) -> dict[str, Any]:
    """How soon every model of the main group learns, the soonest first; empty where nothing was run for it."""
    main = next((group for group in found.groups if group.main), None)
    if main is None:
        return {}
    place = {"hidden_size": main.width, "matched": main.matched, "data": main.data}
    rows = [
        record
        for record in found.looked_often
        if place.items() <= record.settings.items() and "diverged" not in record.figures
    ]
    if not rows:
        return {}

    def soonest(record: Record) -> float:
        reached = record.figures["reached"]
        return float("inf") if reached is None else float(reached["seconds"])

    return {
        "rows": [_line(record) for record in sorted(rows, key=soonest)],
        "milestone": named(tuple(found.settings["scale"]["milestone"])),
        "every": sorted({record.settings["evaluate_every"] for record in rows}),
        "beside": sorted({record.figures["beside"] for record in rows}),
        "devices": sorted({record.context["device"] for record in rows}),
        "seeds": sorted({record.settings["seed"] for record in rows}),
    }


def _line(record: Record) -> list[str]:
    reached, cells = record.figures["reached"], [f"`{record.name}`", f"{record.settings['learning_rate']:g}"]
    if reached is None:
        return [*cells, _never([record]), "", ""]
    step, seconds = reached["step"], reached["seconds"]
    return [*cells, f"{step:,}", f"{seconds:.1f}", f"{1e3 * seconds / step:.1f}"]

"""Collision: what the theory predicts of every rule, against the filter itself, sweep by sweep."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.progress import Progress

from bayesmem.experiments.collision_config import CollisionRun, Curve, quick
from bayesmem.experiments.collision_sweeps import SWEEPS
from bayesmem.experiments.measure import measure
from bayesmem.report.records import records_in
from bayesmem.report.verdicts import as_figures, verdicts
from bayesmem.report.verdicts import sweeps as swept

__all__ = ["EXPERIMENT", "SWEEPS", "CollisionRun", "quick", "run"]

EXPERIMENT = "collision"


def run(config: CollisionRun, out: Path, sweeps: Sequence[str] = tuple(SWEEPS)) -> None:
    """Simulate the sweeps and write each beside its predictions; finished ones are taken from the records.

    Args:
        config: settings.
        out: folder of the records.
        sweeps: names of ``SWEEPS``.

    Raises:
        ValueError: a sweep that there is not.
    """
    if unknown := sorted(set(sweeps) - set(SWEEPS)):
        raise ValueError(f"there is no sweep {', '.join(unknown)}; expected some of {', '.join(SWEEPS)}.")
    records, settings = records_in(out), asdict(config)
    missing = [name for name in SWEEPS if name in sweeps and not records.find(EXPERIMENT, name, settings)]
    todo = {name: SWEEPS[name](config) for name in missing}
    points = sum(len(curve.x) for curves in todo.values() for curve in curves)
    with Progress(transient=True, disable=not points) as progress:
        task = progress.add_task("collision", total=points)
        for name, curves in todo.items():
            progress.update(task, description=f"collision: {name}")
            started = time.monotonic()
            found = []
            for curve in curves:
                found.append(_curve(name, curve, config))
                progress.advance(task, len(curve.x))
            records.add(EXPERIMENT, name, settings, {"curves": found, "seconds": round(time.monotonic() - started, 1)})
    found_now = {name: record for name, record in swept(records).items() if name in sweeps}
    if todo:
        records.add(EXPERIMENT, "verdicts", settings, as_figures(verdicts(found_now)))


def _curve(sweep: str, curve: Curve, config: CollisionRun) -> dict[str, Any]:
    """One curve as the record holds it: the prediction's line, and the points, each an independent simulation."""
    points: list[dict[str, Any]] = []
    for x in curve.x:
        point = {"x": x, "predicted": curve.predict(x)}
        if curve.measured:
            points.append(point | {"simulated": curve.measured(x)})
            continue
        assert curve.simulate is not None
        least = min(curve.least or config.least, config.least)
        stream = "/".join((str(config.seed), sweep, curve.panel, curve.label, repr(x)))
        found = measure(curve.simulate(x), config.precision, least, config.most, stream)
        point |= {"simulated": found.mean, "half_width": found.half_width, "rows": found.rows}
        if curve.bound:
            point["bound"] = curve.bound(x)
        points.append(point)
    kind = "identity" if curve.measured else "approximate" if curve.bound else "exact"
    line = [(x, curve.predict(x)) for x in curve.line or curve.x]
    assert all(math.isfinite(y) for _, y in line), (sweep, curve.label)
    return {
        "panel": curve.panel,
        "rule": curve.rule,
        "label": curve.label,
        "kind": kind,
        "line": {"x": [float(x) for x, _ in line], "y": [float(f"{y:.6g}") for _, y in line]},
        "points": points,
    }

"""The records of the recall study, world by world, seeds together."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bayesmem.report.plots import PALETTE, RULES
from bayesmem.report.records import Record, Records

EXPERIMENT = "recall_study"
AXES = {
    "pairs": "associations",
    "length": "tokens before the queries",
    "noise": "noise variance",
    "repeats": "observations of each",
    "similarity": "mean cosine of two keys",
    "rate": "rate of change",
}
# A colour for a light page, one for a dark page, a marker.
STYLES = {name: RULES[name] for name in ("bayesian_static", "bayesian")}
STYLES["bayesian_prior_mixing"] = ("#7446cf", "#b9a0ff", "P")
STYLES |= {name: RULES[name] for name in ("gated_deltanet", "deltanet", "kalman_diagonal", "mesanet")}
STYLES["mamba2"] = ("#b8328a", "#ff8fd2", "v")
STYLES["linear_attention"] = RULES["linear_attention"]
SPARE = ("#7d8696", "#9aa5b5", "p")
for _name, (_light, _dark, _) in STYLES.items():
    PALETTE["light"][f"recall {_name}"], PALETTE["dark"][f"recall {_name}"] = _light, _dark

Numbers = list[float | int]


def mean(numbers: Numbers) -> float | int:
    """Of the seeds."""
    return sum(numbers) / len(numbers)


@dataclass(frozen=True, slots=True)
class World:
    """What one world gave, at the newest settings.

    Attributes:
        name: ``linear`` or ``lookup``.
        settings: but for the seed.
        rows: records of every design, one a seed.
    """

    name: str
    settings: dict[str, Any]
    rows: dict[str, list[Record]]

    @property
    def designs(self) -> list[str]:
        """In the order of ``STYLES``, others after them."""
        return [name for name in STYLES if name in self.rows] + [name for name in self.rows if name not in STYLES]

    def figure(self, name: str, what: str) -> Any:
        """A figure that is the same for every seed."""
        return self.rows[name][0].figures[what]

    def trained(self, name: str) -> Numbers:
        """Excess risk in the trained range, a number a seed."""
        return [row.figures["trained"][0] for row in self.rows[name]]

    def excess(self, name: str) -> dict[str, list[Numbers]]:
        """Excess risk by axis and point, a number a seed."""
        by_seed = [row.figures["axes"] for row in self.rows[name]]
        return {axis: [[axes[axis][i][2] for axes in by_seed] for i in range(len(by_seed[0][axis]))] for axis in AXES}

    def points(self, axis: str) -> Numbers:
        """Where an axis was tested."""
        return [point[0] for point in self._any["axes"][axis]]

    def known(self, axis: str) -> tuple[float | int, float | int]:
        """The trained range on an axis."""
        inside = [point[0] for point in self._any["axes"][axis] if not point[1]]
        return (min(inside), max(inside)) if inside else (0.0, 0.0)

    def farthest(self, axis: str) -> int | None:
        """Index of the last point beyond the trained range."""
        beyond = [i for i, point in enumerate(self._any["axes"][axis]) if point[1]]
        return beyond[-1] if beyond else None

    def least(self, at: tuple[str, int] | None) -> float | int:
        """Risk of the best predictor, at a point of an axis or in the trained range."""
        return self._any["trained"][2] if at is None else self._any["axes"][at[0]][at[1]][4]

    def variance(self, name: str, take: Callable[[dict[str, Any]], Any]) -> list[Any] | None:
        """Something of a design's variance, one a seed; ``None`` where it has none, or not that."""
        found = [row.figures["variance"] for row in self.rows[name]]
        taken = [None if one is None else take(one) for one in found]
        return None if any(one is None for one in taken) else taken

    @property
    def _any(self) -> dict[str, Any]:
        return next(iter(self.rows.values()))[0].figures


def beside(records: Records) -> Records:
    """The study's records in the same folder as others."""
    return Records(records.path.with_name("recall.jsonl"))


def worlds(records: Records) -> list[World]:
    """What was run at the newest settings of each world."""
    by_world: dict[str, list[Record]] = {}
    for record in records.all():
        if record.experiment == EXPERIMENT:
            by_world.setdefault(record.settings["world"], []).append(record)
    return [_world(name, by_world[name]) for name in sorted(by_world)]


def _world(name: str, records: list[Record]) -> World:
    settings = _seedless(records[-1])
    rows: dict[str, dict[int, Record]] = {}
    for record in records:
        if _seedless(record) == settings:
            rows.setdefault(record.name, {})[record.settings["train"]["seed"]] = record
    return World(name, settings, {design: list(seeds.values()) for design, seeds in rows.items()})


def _seedless(record: Record) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(json.dumps(record.settings))
    settings["train"].pop("seed")
    return settings

"""The records of the language study: what was run of it at the newest settings, seeds together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bayesmem.report.records import Record, Records

EXPERIMENT = "language"
BASE = "bayesian"
MODELS = ("gated_deltanet", "mamba2", "kda", "kalman_diagonal", BASE)
MATCHED = ("state", "parameters")
SEEDS = 3  # that the whole study has
SHARED = ("shape", "recipe", "text")  # settings in which the records of one study do not differ

Bin = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Arm:
    """One model, matched one way.

    Attributes:
        model: its name.
        rates: bits per byte on the text kept for choosing, by learning rate, at the first seed; ``None``: diverged.
        best: the rate of fewest; ``None`` where all diverged.
        rows: records at the best rate, by seed, those that diverged left out.
        diverged: seeds that diverged at the best rate.
        every: bits per byte on the text to test on, by seed, at every rate tried.
    """

    model: str
    rates: dict[float | int, float | int | None]
    best: float | int | None
    rows: dict[int, Record]
    diverged: list[int]
    every: dict[float | int, dict[int, float | int]]

    @property
    def figures(self) -> dict[str, Any]:
        """Of the first seed: its sizes are those of all."""
        return next(iter(self.rows.values())).figures

    def bits(self, at: Bin | None = None) -> dict[int, float | int]:
        """Bits per byte by seed: of all the text in contexts as long as those trained on, or at some positions."""
        if at is None:
            return {seed: row.figures["bits_per_byte"] for seed, row in self.rows.items()}
        return {
            seed: one["bits_per_byte"]
            for seed, row in self.rows.items()
            for one in row.figures["bins"]
            if (one["from"], one["to"]) == at
        }


@dataclass(frozen=True, slots=True)
class Study:
    """What was run at the newest settings.

    Attributes:
        settings: those that all its records share.
        groups: arms by model, by how they are matched.
        records: all that count.
        left_out: how many records are of other settings.
    """

    settings: dict[str, Any]
    groups: dict[str, dict[str, Arm]]
    records: list[Record]
    left_out: int

    @property
    def bins(self) -> list[Bin]:
        """Positions that were told apart, shortest first."""
        return sorted({(one["from"], one["to"]) for record in self.records for one in record.figures.get("bins", ())})


def study(records: Records) -> Study | None:
    """What was run at the newest settings; ``None`` where nothing was."""
    every = [record for record in records.all() if record.experiment == EXPERIMENT]
    if not every:
        return None
    settings = _shared(every[-1])
    same = [record for record in every if _shared(record) == settings]
    groups = {}
    for matched in MATCHED:
        if any(record.settings["matched"] == matched for record in same):
            groups[matched] = _arms([record for record in same if _belongs(record, matched)])
    return Study(settings, groups, same, len(every) - len(same))


def differences(arm: Arm, base: Arm, at: Bin | None = None) -> list[float | int]:
    """Bits per byte more than the base's, seed by seed."""
    own, others = arm.bits(at), base.bits(at)
    return [own[seed] - others[seed] for seed in own if seed in others]


def mean(numbers: Sequence[float | int]) -> float | int:
    """Of the seeds."""
    return sum(numbers) / len(numbers)


def _shared(record: Record) -> dict[str, Any]:
    return {name: record.settings[name] for name in SHARED}


def _belongs(record: Record, matched: str) -> bool:
    """Whether a record is of a group; a model that both ways to match leave as it is has one record for both."""
    head_dim = record.settings["shape"]["head_dim"]
    natural = record.figures["head"] == [head_dim, head_dim]
    return record.settings["matched"] == matched or (matched == MATCHED[1] and natural)


def _arms(records: list[Record]) -> dict[str, Arm]:
    names = [name for name in MODELS if any(record.name == name for record in records)]
    names += sorted({record.name for record in records} - set(MODELS))
    return {name: _arm(name, [record for record in records if record.name == name]) for name in names}


def _arm(model: str, records: list[Record]) -> Arm:
    first = min(record.settings["seed"] for record in records)
    tried = {r.settings["learning_rate"]: r.figures.get("choice") for r in records if r.settings["seed"] == first}
    scores = {rate: score for rate, score in tried.items() if score is not None}
    best = min(scores, key=lambda rate: scores[rate]) if scores else None
    at_best = {r.settings["seed"]: r for r in records if r.settings["learning_rate"] == best}
    kept = {seed: at_best[seed] for seed in sorted(at_best) if "diverged" not in at_best[seed].figures}
    every: dict[float | int, dict[int, float | int]] = {}
    for r in sorted(records, key=lambda record: record.settings["seed"]):
        if "bits_per_byte" in r.figures:
            every.setdefault(r.settings["learning_rate"], {})[r.settings["seed"]] = r.figures["bits_per_byte"]
    return Arm(model, dict(sorted(tried.items())), best, kept, sorted(set(at_best) - set(kept)), every)

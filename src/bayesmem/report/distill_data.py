"""A distillation's records, put together: arms by seed, and what RULER's records say of their checkpoints."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from bayesmem.report.effects import Effect, crossed
from bayesmem.report.records import Record, Records
from bayesmem.report.ruler import RULER, Cell, cells, scores

EXPERIMENT, TEACHER, STUDENT = "distill", "teacher", "student"
CONTROLS = ("control-tokens", "control-flops", "control-seconds")
ARMS = (STUDENT, *CONTROLS)
OF_ONE_ARM = ("seed", "tokens", "prepared", "start", "data", "held_out")  # of a run: no part of what is compared

Scored = dict[Cell, Record]


@dataclass(frozen=True, slots=True)
class Study:
    """Arms of the same settings, for every seed.

    Attributes:
        seeds: seed -> teacher or arm -> its newest record.
        name: of its pictures, unique among studies.
    """

    seeds: dict[int, dict[str, Record]]
    name: str

    @property
    def any(self) -> Record:
        """A student's record."""
        return next(arms[STUDENT] for arms in self.seeds.values() if STUDENT in arms)

    @property
    def trained(self) -> int:
        """Tokens a row; longer documents are beyond what was trained on."""
        return int(self.any.settings["run"]["length"])

    def of(self, name: str) -> dict[int, Record]:
        """Seed -> record of the teacher or an arm, where there is one."""
        return {seed: arms[name] for seed, arms in self.seeds.items() if name in arms}


def beside(records: Records) -> Records:
    """``distill.jsonl`` beside a page's other records."""
    return Records(records.path.with_name("distill.jsonl"))


def evaluations(records: Records) -> Records:
    """RULER's records for a distillation's: ``ruler.jsonl`` beside it, or where there is none the same file."""
    other = Records(records.path.with_name("ruler.jsonl"))
    return other if other.path.is_file() else records


def studies(records: Records) -> list[Study]:
    """The distillations of a file of records, of which several seeds are one."""
    found: dict[str, dict[int, dict[str, Record]]] = {}
    for record in records.all():
        if record.experiment == EXPERIMENT:
            shared = dict(record.settings)
            run = shared.pop("run")
            shared["run"] = {name: value for name, value in run.items() if name not in OF_ONE_ARM}
            arms = found.setdefault(json.dumps(shared, sort_keys=True), {}).setdefault(run["seed"], {})
            arms[record.name] = record
    whole = [seeds for seeds in found.values() if any(STUDENT in arms for arms in seeds.values())]
    names = ["distill"] if len(whole) == 1 else [f"distill_{index}" for index in range(1, len(whole) + 1)]
    return [Study(dict(sorted(seeds.items())), name) for seeds, name in zip(whole, names, strict=True)]


def fingerprints(records: Records) -> set[str]:
    """Of the weights of every arm and teacher, whether its study is whole or not."""
    return {record.figures["weights"] for record in records.all() if record.experiment == EXPERIMENT}


def evaluated(records: Records) -> dict[str, Scored]:
    """RULER's cells of every checkpoint, by the fingerprint of its weights."""
    found: dict[str, list[Record]] = {}
    for record in records.all():
        if record.experiment == RULER:
            found.setdefault(record.settings["weights"], []).append(record)
    return {weights: cells(own) for weights, own in found.items()}


@dataclass(frozen=True, slots=True)
class Retrieval:
    """What a study's checkpoints scored.

    Attributes:
        arms: teacher or arm -> seed of the distillation -> its cells.
        trained: tokens a row of the distillation.
        seeds: of the distillation, all of them.
    """

    arms: dict[str, dict[int, Scored]]
    trained: int
    seeds: int

    @classmethod
    def of(cls, study: Study, found: Mapping[str, Scored]) -> "Retrieval":
        """A study's checkpoints, known by their weights.

        Args:
            study: its records.
            found: of ``evaluated``.
        """
        arms: dict[str, dict[int, Scored]] = {}
        for name in (TEACHER, *ARMS):
            own = {seed: found[r.figures["weights"]] for seed, r in study.of(name).items() if _known(r, found)}
            if own:
                arms[name] = own
        if TEACHER in arms:  # one and the same for all seeds, and perhaps for other studies with documents of their own
            asked = {cell for name, own in arms.items() if name != TEACHER for cells in own.values() for cell in cells}
            seed, cells = next(iter(arms[TEACHER].items()))
            arms[TEACHER] = {seed: {cell: one for cell, one in cells.items() if cell in asked or not asked}}
        return cls(arms, study.trained, len(study.seeds))

    @property
    def tasks(self) -> list[str]:
        """All that were asked."""
        return sorted({task for own in self._all for task, *_ in own})

    @property
    def single(self) -> list[str]:
        """The tasks of which the claim is: single needles, or where none was asked all tasks."""
        return [task for task in self.tasks if task.startswith("s-niah")] or self.tasks

    @property
    def lengths(self) -> list[int]:
        """All that were asked."""
        return sorted({length for own in self._all for _, length, _ in own})

    @property
    def beyond(self) -> list[int]:
        """Lengths over what was trained on; lm_eval's documents are shorter than asked, and theirs must be over it."""
        return [length for length in self.lengths if min(length, self._tokens(length)) > self.trained]

    def _tokens(self, length: int) -> float:
        """Fewest that documents of a length have, as a mean of one task."""
        cells = (record for own in self._all for (_, at, _), record in own.items() if at == length)
        return min(float(record.figures.get("tokens", length)) for record in cells)

    @property
    def _all(self) -> list[Scored]:
        return [cells for own in self.arms.values() for cells in own.values()]

    def wanted(self, tasks: Sequence[str], lengths: Sequence[int]) -> list[Cell]:
        """Cells of these tasks and lengths that any checkpoint was asked."""
        return sorted({cell for own in self._all for cell in own if cell[0] in tasks and cell[1] in lengths})

    def means(self, name: str, tasks: Sequence[str], lengths: Sequence[int]) -> list[float]:
        """Mean score over the documents for every seed that was asked all of these cells."""
        wanted = self.wanted(tasks, lengths)
        return [
            float(np.concatenate([scores(own[cell]) for cell in wanted]).mean())
            for own in self.arms.get(name, {}).values()
            if wanted and set(wanted) <= set(own)
        ]

    def gain(self, name: str, tasks: Sequence[str], lengths: Sequence[int]) -> Effect | None:
        """The student's scores less another's, document by document; ``None`` where not both were asked all cells.

        Raises:
            ValueError: they were asked different documents.
        """
        wanted = self.wanted(tasks, lengths)
        students, others = self.arms.get(STUDENT, {}), self.arms.get(name, {})
        if name == TEACHER and others:
            others = dict.fromkeys(students, next(iter(others.values())))
        rows = [
            np.concatenate([_paired(cell, students[seed], others[seed]) for cell in wanted])
            for seed in students
            if wanted and set(wanted) <= set(students[seed]) & set(others.get(seed, {}))
        ]
        if len({len(row) for row in rows}) > 1:
            raise ValueError("seeds of one distillation were asked for different numbers of documents; ask all alike.")
        return crossed(np.stack(rows)) if rows else None


def _known(record: Record, found: Mapping[str, Scored]) -> bool:
    return record.figures.get("weights") in found


def _paired(cell: Cell, student: Scored, other: Scored) -> Float[ndarray, " N"]:
    """A document's score by the student less that by another."""
    one, two = student[cell], other[cell]
    if one.figures["fingerprint"] != two.figures["fingerprint"]:
        raise ValueError(
            f"{cell[0]} at {cell[1]} tokens: {one.name} and {two.name} were asked different documents; evaluate all "
            "arms with the same options."
        )
    return scores(one) - scores(two)

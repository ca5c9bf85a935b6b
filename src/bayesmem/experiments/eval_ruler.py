"""RULER for one checkpoint: a cell is a task at a length with a seed, recorded when it is done and not run again."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from bayesmem.experiments.eval_checkpoint import Checkpoint
from bayesmem.report import ruler as report
from bayesmem.report import ruler_plots
from bayesmem.report.records import Record, Records, records_in
from bayesmem.tasks.ruler import (
    INSTALL,
    RulerTask,
    Sources,
    check_sources,
    find_tasks,
    fingerprint,
    make_documents,
    source_mark,
)

__all__ = ["RulerConfig", "Sources", "run", "write_report"]
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RulerConfig:
    """What is asked, and how.

    Attributes:
        tasks: short names, groups, or lm_eval's names.
        lengths: tokens of a document, question and answer included.
        seeds: of the documents; every model is asked the same.
        documents: a cell.
        batch_size: documents generated side by side; it changes nothing but the time.
        bf16: mixed precision.
        sources: the user's files.

    Raises:
        ValueError: unknown tasks, files missing, or numbers below their least.
    """

    tasks: tuple[str, ...] = ("s-niah-1",)
    lengths: tuple[int, ...] = (1024, 2048, 4096, 8192)
    seeds: tuple[int, ...] = (0,)
    documents: int = 100
    batch_size: int = 8
    bf16: bool = False
    sources: Sources = field(default_factory=Sources)

    def __post_init__(self) -> None:
        for name in ("tasks", "lengths", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; give at least one.")
        least = {"lengths": min(self.lengths), "documents": self.documents, "batch_size": self.batch_size}
        for name, value in least.items():
            if value < 1:
                raise ValueError(f"{name} has {value}; expected at least 1.")
        if min(self.seeds) < 0:
            raise ValueError(f"seeds has {min(self.seeds)}; expected 0 or more.")
        check_sources(find_tasks(self.tasks), self.sources)


def run(config: RulerConfig, checkpoint: Checkpoint, out: Path, tell: Tell = lambda _: None) -> list[Record]:
    """Fill the cells that are not in the records of ``out``.

    Args:
        config: what is asked.
        checkpoint: who is asked.
        out: folder of ``records.jsonl`` and ``answers``; many checkpoints may share it.
        tell: where progress goes, a line a cell.

    Returns:
        All cells of this config, those of before too.

    Raises:
        ValueError: documents that cannot be made, told before the first is asked.
    """
    try:
        from bayesmem.experiments.eval_harness import VERSION, Harness
    except ImportError as error:
        raise ValueError(f"{INSTALL}: {error}") from error
    records, cells = records_in(out), list(_cells(config, VERSION, checkpoint))
    found = {index: records.find(report.RULER, checkpoint.label, settings) for index, (_, settings) in enumerate(cells)}
    wanted = [cell for index, cell in enumerate(cells) if found[index] is None]
    for task, settings in wanted:  # a length without room is told now, not after an hour
        make_documents(task, settings["length"], 1, settings["seed"], checkpoint.tokenizer, config.sources)
    with _progress(len(wanted) * config.documents) as advance:
        lm = None
        for index, (task, settings) in enumerate(cells):
            if found[index] is not None:
                continue
            if lm is None:
                lm = Harness(
                    checkpoint.model,
                    checkpoint.tokenizer,
                    max(config.lengths),
                    config.batch_size,
                    config.bf16,
                    advance,
                )
            found[index] = record = _cell(lm, task, settings, config.sources, checkpoint, records)
            tell(report.told(record))
    return [record for record in found.values() if record is not None]


def write_report(out: Path, baseline: str | None = None) -> Path:
    """Draw tables, differences and heat maps of all checkpoints in a folder's records, as ``ruler.md``.

    Args:
        out: of ``run``.
        baseline: label that the others are compared with, document by document.
    """
    records = records_in(out)
    images = out / "img"
    images.mkdir(parents=True, exist_ok=True)
    for name, picture in ruler_plots.pictures(records).items():
        (images / f"{name}-light.svg").write_text(picture.light, encoding="utf-8")
        (images / f"{name}-dark.svg").write_text(picture.dark, encoding="utf-8")
    path = out / "ruler.md"
    path.write_text(report.section(records, path, images, baseline), encoding="utf-8")
    return path


def _cells(config: RulerConfig, version: str, checkpoint: Checkpoint) -> Iterator[tuple[RulerTask, dict[str, Any]]]:
    for length in sorted(set(config.lengths)):
        for task in find_tasks(config.tasks):
            for seed in dict.fromkeys(config.seeds):
                yield (
                    task,
                    {
                        "weights": checkpoint.weights,
                        "task": task.name,
                        "length": length,
                        "seed": seed,
                        "documents": config.documents,
                        "bf16": config.bf16,
                        "source": source_mark(task, config.sources, length),
                        "lm_eval": version,
                    },
                )


def _cell(
    lm: Any, task: RulerTask, settings: dict[str, Any], sources: Sources, checkpoint: Checkpoint, records: Records
) -> Record:
    from bayesmem.experiments.eval_harness import answers

    count, seed, length = settings["documents"], settings["seed"], settings["length"]
    documents = make_documents(task, length, count, seed, checkpoint.tokenizer, sources)
    found = answers(lm, task, documents)
    name = re.sub(r"[^\w.-]+", "_", f"{checkpoint.label}-{task.name}-{length}-{seed}")
    side = records.path.parent / "answers" / f"{name}.jsonl"
    side.parent.mkdir(parents=True, exist_ok=True)
    rows = ({"expected": one.expected, "said": one.said, "score": one.score} for one in found)
    side.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    scores = np.array([one.score for one in found])
    figures = report.packed(scores, [len(one.expected) for one in found]) | {
        "mean": float(scores.mean()),
        "stderr": report.stderr(scores),
        "tokens": round(float(np.mean([document["length"] for document in documents])), 1),
        "fingerprint": fingerprint(documents),
    }
    return records.add(report.RULER, checkpoint.label, settings, figures)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    columns = (TextColumn("RULER"), BarColumn(), TextColumn("{task.completed}/{task.total} documents"))
    with Progress(*columns, TimeRemainingColumn(), transient=True) as progress:
        bar = progress.add_task("", total=total)
        yield lambda done: progress.advance(bar, done)

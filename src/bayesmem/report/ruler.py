"""RULER's records: scores a document, tables, and the difference of two checkpoints on the same documents."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from os.path import relpath
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy import ndarray

from bayesmem.report.records import Record, Records

RULER, TEXT = "ruler", "eval_text"
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
SHORT = 0.7  # documents whose mean length is below this share of what was asked are pointed out
Cell = tuple[str, int, int]  # task, length, seed of the documents
# Tasks, lengths, and of a task and length the mean and its standard error.
Grid = tuple[list[str], list[int], dict[tuple[str, int], tuple[float, float | None]]]


@dataclass(frozen=True, slots=True)
class Difference:
    """Of two mean scores on the same documents.

    Attributes:
        mean: of the first less the second.
        low: end of its 95% interval.
        high: the other end.
        documents: that were compared.
    """

    mean: float
    low: float
    high: float
    documents: int

    def __str__(self) -> str:
        return f"{100 * self.mean:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


def packed(scores: Float[ndarray, " N"], parts: Sequence[int]) -> dict[str, Any]:
    """Scores a document as a record holds them: a digit each where every answer has as many parts, else numbers.

    Args:
        scores: shares of the parts that were right.
        parts: of each document's answer.
    """
    most = max(parts)
    if len(set(parts)) == 1 and most < len(DIGITS):
        return {"scores": "".join(DIGITS[round(score * most)] for score in scores), "of": most}
    return {"scores": [round(float(score), 6) for score in scores], "of": 1}


def scores(record: Record) -> Float[ndarray, " N"]:
    """A record's score a document, in the documents' order, each within [0, 1]."""
    held = record.figures["scores"]
    digits = [DIGITS.index(one) for one in held] if isinstance(held, str) else held
    return np.array(digits, dtype=float) / record.figures["of"]


def stderr(values: Float[ndarray, " N"]) -> float | None:
    """Of a mean of independent documents; ``None`` of a single one."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


def paired(a: Float[ndarray, " N"], b: Float[ndarray, " N"]) -> Difference:
    """Mean difference of two checkpoints' scores on the same documents, with its interval.

    The interval is the normal one, 1.96 standard errors of the paired differences. It counts the documents as drawn
    at random and the checkpoints as given; chance in training is not in it. Where all differences are equal it has no
    width, and says no more than that.

    Args:
        a: scores of one, document by document.
        b: scores of the other.

    Raises:
        ValueError: of different shapes, or fewer than two documents.
    """
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
        raise ValueError(
            f"scores of shapes {a.shape} and {b.shape}; expected those of the same documents, two or more."
        )
    d = a - b
    half = 1.96 * float(d.std(ddof=1)) / math.sqrt(len(d))
    mean = float(d.mean())
    return Difference(mean, mean - half, mean + half, len(d))


def paired_records(a: Sequence[Record], b: Sequence[Record]) -> Difference:
    """``paired`` over all cells that both have.

    Args:
        a: cells of one checkpoint.
        b: cells of the other.

    Raises:
        ValueError: no cell in common, or one whose documents differ.
    """
    first, second = cells(a), cells(b)
    common = sorted(set(first) & set(second))
    if not common:
        raise ValueError("the two have no task, length and seed in common; evaluate both with the same options.")
    for cell in common:
        marks = {one[cell].figures["fingerprint"] for one in (first, second)}
        if len(marks) > 1:
            raise ValueError(
                f"{cell[0]} at {cell[1]} tokens, seed {cell[2]}: the documents differ ({', '.join(sorted(marks))}); "
                "compare models of one tokenizer, asked with the same files and number of documents."
            )
    return paired(*(np.concatenate([scores(one[cell]) for cell in common]) for one in (first, second)))


def cells(records: Sequence[Record]) -> dict[Cell, Record]:
    """Newest record of every task, length and seed."""
    return {(r.settings["task"], r.settings["length"], r.settings["seed"]): r for r in records}


def labels(records: Records, apart: Collection[str] = ()) -> dict[str, list[Record]]:
    """RULER's records a checkpoint, in the order first evaluated.

    Args:
        records: of ``bayesmem eval``.
        apart: fingerprints of weights that are left out.

    Returns:
        By label; where checkpoints of one label differ in their weights, by label and fingerprint.
    """
    found: dict[tuple[str, str], list[Record]] = {}
    for record in records.all():
        if record.experiment == RULER and record.settings["weights"] not in apart:
            found.setdefault((record.name, record.settings["weights"]), []).append(record)
    names = [name for name, _ in found]
    return {
        name if names.count(name) == 1 else f"{name} ({weights[:8]})": own for (name, weights), own in found.items()
    }


def grid(records: Sequence[Record]) -> Grid:
    """Tasks, lengths, and mean and standard error over the documents of all seeds."""
    held: dict[tuple[str, int], list[ndarray]] = {}
    for (task, length, _), record in cells(records).items():
        held.setdefault((task, length), []).append(scores(record))
    whole = {key: np.concatenate(parts) for key, parts in held.items()}
    return (
        list(dict.fromkeys(task for task, _ in whole)),
        sorted({length for _, length in whole}),
        {key: (float(values.mean()), stderr(values)) for key, values in whole.items()},
    )


def told(record: Record) -> str:
    """A cell in a line."""
    at, figures = record.settings, record.figures
    return (
        f"{record.name}: {at['task']} at {at['length']}, seed {at['seed']}: {shown(figures['mean'], figures['stderr'])}"
    )


def shown(mean: float, error: float | None) -> str:
    """A mean in percent, with its standard error."""
    return f"{100 * mean:.1f}" + ("" if error is None else f" ± {100 * error:.1f}")


def section(
    records: Records, path: Path, images: Path, baseline: str | None = None, apart: Collection[str] = ()
) -> str:
    """All that the records say of RULER and of text, as Markdown.

    Args:
        records: of ``bayesmem eval``.
        path: where the page will lie, for its links.
        images: folder of the pictures.
        baseline: label that the others are compared with; default: none is.
        apart: fingerprints of weights that are told elsewhere.

    Raises:
        ValueError: a baseline that was not evaluated.
    """
    found = labels(records, apart)
    if baseline is not None and baseline not in found:
        raise ValueError(f"no checkpoint {baseline!r} among {', '.join(found) or 'none'}; name one that was evaluated.")
    environment = Environment(
        loader=PackageLoader("bayesmem.report"), undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    return environment.get_template("ruler.md.j2").render(
        images=relpath(images, path.parent),
        tables=[_table(label, own) for label, own in found.items()],
        baseline=baseline,
        differences=[] if baseline is None else _differences(found, baseline),
        texts=[record for record in records.all() if record.experiment == TEXT],
    )


def _table(label: str, own: Sequence[Record]) -> dict[str, Any]:
    tasks, lengths, means = grid(own)
    short = sorted(
        {
            f"{task} at {length} ({record.figures['tokens']:.0f})"
            for (task, length, _), record in cells(own).items()
            if record.figures["tokens"] < SHORT * length
        }
    )
    return {
        "label": label,
        "lengths": lengths,
        "rows": [[task, *(shown(*means[task, n]) if (task, n) in means else "" for n in lengths)] for task in tasks],
        "documents": sorted({len(scores(record)) for record in own}),
        "seeds": sorted({record.settings["seed"] for record in own}),
        "short": short,
        "device": own[-1].context["device"],
        "versions": own[-1].settings["lm_eval"],
    }


def _differences(found: dict[str, list[Record]], baseline: str) -> list[dict[str, Any]]:
    rows = []
    for label, own in found.items():
        if label == baseline:
            continue
        other = found[baseline]
        for task, length in dict.fromkeys((task, length) for task, length, _ in cells(own)):
            pick = [
                [r for r in side if (r.settings["task"], r.settings["length"]) == (task, length)]
                for side in (own, other)
            ]
            if pick[1]:
                rows.append({"label": label, "task": task, "length": length, "found": paired_records(*pick)})
    return rows

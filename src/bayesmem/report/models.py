"""Whole models as a part of docs/results.md: tokens a second, and books at matched parameters and state."""

from os.path import relpath
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from bayesmem.report.records import Record, Records

SPEED, BOOKS = "speed", "books"
PEER = "fla_gated_deltanet"
SPEEDS = ("train_tokens_per_s", "generated_tokens_per_s")
FILES = ("speed.jsonl", "books.jsonl")


def section(records: Records, path: Path) -> str:
    """Both tables as Markdown; empty where nothing was run.

    Args:
        records: any in the folder in which ``speed.jsonl`` (``bayesmem bench-model``) and ``books.jsonl`` lie.
        path: where the page will lie, for its links.
    """
    speed, books = (Records(records.path.with_name(name)) for name in FILES)
    shapes: dict[str, dict[str, list[Record]]] = {}
    for record in speed.all():
        if record.experiment == SPEED:
            shapes.setdefault(_shape(record.settings), {}).setdefault(record.name, []).append(record)
    runs: dict[str, list[Record]] = {}
    for record in books.all():
        if record.experiment == BOOKS:
            runs.setdefault(record.name, []).append(record)
    if not shapes and not runs:
        return ""
    environment = Environment(
        loader=PackageLoader("bayesmem.report"), undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    return environment.get_template("models.md.j2").render(
        speed_source=relpath(speed.path, path.parent),
        books_source=relpath(books.path, path.parent),
        shapes=[{"title": title, "rows": _rows(rows)} for title, rows in shapes.items()],
        peer=PEER,
        books=[_arm(name, found) for name, found in runs.items()],
        settings=next(iter(runs.values()))[0].settings if runs else None,
        context=next(iter(runs.values()))[0].context if runs else None,
    )


def _shape(settings: dict[str, Any]) -> str:
    return (
        f"{settings['num_layers']} layers of width {settings['hidden_size']}, {settings['num_heads']} heads of "
        f"{settings['head_dim']}; training of {settings['batch_size']} rows of {settings['length']:,} tokens, "
        f"generation of {settings['sequences']} rows after {settings['prompt']:,}"
    )


def _rows(found: dict[str, list[Record]]) -> list[dict[str, str]]:
    """A figure of each model: the newest that has the peer's beside it, of one commit and device, and the ratio.

    Where no commit measured both, the newest.
    """
    rows = []
    for name, records in found.items():
        row = {"name": name, "memory": "", "failed": ""}
        for key in SPEEDS:
            own, peer = _pair(records, found.get(PEER, []), key)
            if own is None:
                row[key] = "not measured"
                failed = _newest(records, "failed")
                row["failed"] = "" if failed is None else failed.figures["failed"]
                continue
            row[key] = f"{own.figures[key]:,.0f}"
            if peer is not None and name != PEER:
                row[key] += f" ({own.figures[key] / peer.figures[key]:.2f})"
        memory = _pair(records, found.get(PEER, []), SPEEDS[0])[0]
        if memory is not None and "peak_memory_mb" in memory.figures:
            row["memory"] = f"{memory.figures['peak_memory_mb'] / 1024:.1f} GiB"
        measured = [own for key in SPEEDS if (own := _pair(records, found.get(PEER, []), key)[0])] or records[-1:]
        row["where"] = "; ".join(dict.fromkeys(f"{r.context['device']}, {r.context['commit']}" for r in measured))
        rows.append(row)
    return rows


def _pair(records: list[Record], peers: list[Record], key: str) -> tuple[Record | None, Record | None]:
    """The newest record of a figure whose machine measured the peer's too, and the peer's; or the newest alone."""
    for own in reversed(records):
        beside = [peer for peer in peers if _machine(peer) == _machine(own)]
        if own.figures.get(key) and (peer := _newest(beside, key)) is not None:
            return own, peer
    return _newest(records, key), None


def _newest(records: list[Record], key: str) -> Record | None:
    return next((record for record in reversed(records) if record.figures.get(key)), None)


def _machine(record: Record) -> tuple[str, str]:
    return record.context["device"], record.context["commit"]


def _arm(name: str, records: list[Record]) -> dict[str, str]:
    ordered = sorted(records, key=lambda record: record.settings["seed"])
    figures = ordered[0].figures
    return {
        "name": name,
        "parameters": f"{figures['parameters'] / 1e6:.2f}M",
        "state": f"{figures['state_per_layer']:,}",
        "bits": ", ".join(
            f"{record.figures['bits_per_byte']:.4f} (seed {record.settings['seed']})" for record in ordered
        ),
    }

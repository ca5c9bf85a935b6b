"""Whole models as a part of docs/results.md: tokens a second, and books at matched parameters and state."""

from os.path import relpath
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from bayesmem.report.records import Record, Records

SPEED, BOOKS = "speed", "books"
PEER = "fla_gated_deltanet"
FILES = ("speed.jsonl", "books.jsonl")


def section(records: Records, path: Path) -> str:
    """Both tables as Markdown; empty where nothing was run.

    Args:
        records: any in the folder in which ``speed.jsonl`` (``bayesmem bench-model``) and ``books.jsonl`` lie.
        path: where the page will lie, for its links.
    """
    speed, books = (Records(records.path.with_name(name)) for name in FILES)
    shapes: dict[str, dict[str, Record]] = {}
    for record in speed.all():
        if record.experiment == SPEED:
            shapes.setdefault(_shape(record.settings), {})[record.name] = record
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
        f"{settings['head_dim']}, {settings['batch_size']} rows of {settings['length']:,} tokens"
    )


def _rows(found: dict[str, Record]) -> list[dict[str, str]]:
    """What was measured of each model, and its ratio to the peer's where that was measured too."""
    peer = found.get(PEER)
    rows = []
    for name, record in found.items():
        figures = record.figures
        row = {"name": name, "device": record.context["device"], "commit": record.context["commit"]}
        row["failed"] = figures.get("failed", "")
        for key in ("train_tokens_per_s", "generated_tokens_per_s"):
            value = figures.get(key)
            row[key] = f"{value:,.0f}" if value else "not measured"
            if value and peer and peer is not record and peer.figures.get(key):
                row[key] += f" ({value / peer.figures[key]:.2f})"
        row["memory"] = f"{figures['peak_memory_mb'] / 1024:.1f} GiB" if figures.get("peak_memory_mb") else ""
        rows.append(row)
    return rows


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

"""The benchmark as a part of docs/results.md: Markdown, every number from the records of ``bayesmem bench``."""

from collections.abc import Sequence
from itertools import groupby
from os.path import relpath
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from bayesmem.report.bench_data import BASE, TITLES, Measured, Size, measured, order, union, words
from bayesmem.report.bench_plots import of_device
from bayesmem.report.records import Record, Records


def section(records: Records, path: Path, images: Path) -> str:
    """The benchmark's part of a Markdown page; empty where nothing was measured.

    Args:
        records: of ``bayesmem bench``.
        path: where the page will lie, for its links.
        images: folder of the pictures.
    """
    devices = measured(records)
    if not devices:
        return ""
    environment = Environment(
        loader=PackageLoader("bayesmem.report"), undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    return environment.get_template("bench.md.j2").render(
        source=relpath(records.path, path.parent),
        images=relpath(images, path.parent),
        base=BASE,
        devices=[_device(m) for m in devices],
    )


def _device(m: Measured) -> dict[str, Any]:
    filtered = union(m.sizes("forward"), m.sizes("backward"))
    drawn = of_device(m)
    runs = dict.fromkeys((record.context["commit"], record.context["command"]) for record in m.rows.values())
    return {
        "name": m.device,
        "context": m.context,
        "commits": list(dict.fromkeys(commit for commit, _ in runs)),
        "runs": len(runs),
        "ceilings": m.ceilings,
        "main": words(filtered[0]) if filtered else "",
        "table": [_row(m, name, filtered[0]) for name in m.contenders] if filtered else [],
        "grids": [_grid(m, what, filtered) for what in ("forward", "backward") if len(filtered) > 1 and m.sizes(what)],
        "decode": _decode(m),
        "graphed": any(isinstance(record.figures.get("graph_ms"), float) for record in m.rows.values()),
        "failures": _failures(m),
        "pictures": {name: picture.alt for name, picture in drawn.items()},
    }


def _row(m: Measured, name: str, size: Size) -> dict[str, str] | None:
    """One contender at the main shape; ``None`` where it was not measured."""
    found = {what: m.rows.get((name, what, size)) for what in ("forward", "backward")}
    if not any(found.values()):
        return None
    last = found["backward"] or found["forward"]
    if last and "reason" in last.figures and found["forward"]:
        last = found["forward"]
    figures = last.figures if last else {}
    forward = found["forward"].figures if found["forward"] else {}
    return {
        "name": name,
        "forward": _time(found["forward"]),
        "forward_ratio": _ratio(m, name, "forward", size),
        "backward": _time(found["backward"]),
        "backward_ratio": _ratio(m, name, "backward", size),
        "memory": f"{figures['peak_bytes'] / 2**20:,.0f}" if figures.get("peak_bytes") is not None else "",
        "of_matmul": _share(figures, "flops", m.ceilings.get("matmul")),
        "of_copy": _share(figures, "bytes", m.ceilings.get("copy")),
        "error": f"{forward['error']:.0e}" if "error" in forward else "",
    }


def _grid(m: Measured, what: str, sizes: Sequence[Size]) -> dict[str, Any]:
    """Milliseconds of every contender at every size, and how many times the base's."""
    names = [name for name in m.contenders if any((name, what, size) in m.rows for size in sizes)]
    rows = [[words(size), *(_cell(m, name, what, size) for name in names)] for size in sorted(sizes, key=order)]
    return {"title": TITLES[what], "names": names, "rows": rows}


def _decode(m: Measured) -> dict[str, Any]:
    """Microseconds a token: rows contenders, columns sizes; called, and inside a CUDA graph."""
    sizes = sorted(m.sizes("decode"), key=order)
    names = [name for name in m.contenders if any((name, "decode", size) in m.rows for size in sizes)]
    return {"sizes": [words(size) for size in sizes], "rows": [[n, *(_step(m, n, s) for s in sizes)] for n in names]}


def _step(m: Measured, name: str, size: Size) -> str:
    row = m.rows.get((name, "decode", size))
    if row is None or "reason" in row.figures:
        return "" if row is None else "none"
    graph = row.figures.get("graph_ms")
    inside = f" / {_number(1e3 * graph)}" if isinstance(graph, float) else ""
    return f"{_number(1e3 * row.figures['steps_ms'])}{inside}"


def _cell(m: Measured, name: str, what: str, size: Size) -> str:
    row = m.rows.get((name, what, size))
    if row is None or "reason" in row.figures:
        return "" if row is None else "none"
    ratio = _ratio(m, name, what, size)
    return f"{_number(row.figures['median_ms'])}" + (f" ({ratio})" if ratio and name != BASE else "")


def _time(row: Record | None) -> str:
    if row is None or "reason" in row.figures:
        return "" if row is None else "none"
    figures = row.figures
    return " ".join([_number(figures["median_ms"]), f"({_number(figures['low_ms'])} to {_number(figures['high_ms'])})"])


def _ratio(m: Measured, name: str, what: str, size: Size) -> str:
    ours, base = m.median(name, what, size), m.median(BASE, what, size)
    return f"{ours / base:.2f}×" if ours and base else ""


def _share(figures: dict[str, Any], of: str, ceiling: float | int | None) -> str:
    if not ceiling or "median_ms" not in figures:
        return ""
    return f"{figures[of] / (1e-3 * figures['median_ms']) / ceiling:.1%}"


def _failures(m: Measured) -> list[str]:
    """What could not be measured and why, sizes of one reason together."""
    missing = [(n, TITLES[w], r.figures["reason"], s) for (n, w, s), r in m.rows.items() if "reason" in r.figures]
    missing.sort(key=lambda x: x[:3])
    told = []
    for (name, what, reason), group in groupby(missing, key=lambda x: x[:3]):
        sizes = "; ".join(words(size) for *_, size in group)
        told.append(f"`{name}`, {what} ({sizes}): {reason}")
    return told


def _number(time: float | int) -> str:
    return f"{time:,.0f}" if time >= 1000 else f"{time:#.3g}".rstrip(".")

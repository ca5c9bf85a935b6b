"""The records of ``bayesmem bench``, device by device."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bayesmem.report.plots import PALETTE
from bayesmem.report.records import Record, Records

EXPERIMENT = "bench"
BASE = "gated_deltanet"  # what times are set against
AXES = ("B", "T", "H", "K", "V")
TITLES = {"forward": "forward", "backward": "forward and backward", "decode": "one token"}
# A colour for a light page, one for a dark page, a marker; the rest of the colours stand in plots.RULES.
STYLES = {
    "bayesian": ("#1f6fd6", "#6db1ff", "o"),
    "bayesian_var": ("#0c8f7d", "#4fd6c0", "^"),
    "bayesian_reset": ("#7446cf", "#b9a0ff", "P"),
    "bayesian_reset_channel": ("#b0476a", "#f0a0bc", "d"),
    "bayesian_diagonal": ("#24415f", "#c3d4e8", "v"),
    "bayesian_additive": ("#6b6f12", "#d5da6a", "4"),
    "bayesian_additive_channel": ("#2f6f4f", "#8fd9b2", "3"),
    "bayesian_chunk": ("#5d3a1a", "#d8b798", "2"),
    "bayesian_recurrent": ("#b3202c", "#ff8080", "<"),
    "bayesian_in_place": ("#0c8f7d", "#4fd6c0", "X"),
    "bayesian_reset_in_place": ("#7446cf", "#b9a0ff", "p"),
    "bayesian_diagonal_in_place": ("#24415f", "#c3d4e8", "h"),
    "gated_deltanet": ("#d1600b", "#ffa35c", "s"),
    "kda": ("#8f6f10", "#e0c35a", "D"),
    "mesanet": ("#3f8f2f", "#86d06f", ">"),
    "gla": ("#3d7a00", "#9be35a", "*"),
    "mamba2": ("#b8328a", "#ff8fd2", "x"),
    "attention": ("#7d8696", "#9aa5b5", "1"),
}
for _name, (_light, _dark, _) in STYLES.items():
    PALETTE["light"][f"bench {_name}"], PALETTE["dark"][f"bench {_name}"] = _light, _dark

Size = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Measured:
    """What one device gave, the newest record of everything.

    Attributes:
        device: its name.
        rows: record by contender, what and size (B, T, H, K, V).
        ceilings: operations and bytes a second, by ``matmul`` and ``copy``.
        contenders: in the order of measurement.
        context: of the newest record.
    """

    device: str
    rows: dict[tuple[str, str, Size], Record]
    ceilings: dict[str, float | int]
    contenders: tuple[str, ...]
    context: dict[str, Any]

    def sizes(self, what: str) -> list[Size]:
        """Sizes measured, in order of measurement."""
        return list(dict.fromkeys(size for _, kind, size in self.rows if kind == what))

    def median(self, name: str, what: str, size: Size) -> float | int | None:
        """Milliseconds, where there are any."""
        row = self.rows.get((name, what, size))
        return row.figures.get("median_ms") if row else None


def beside(records: Records) -> Records:
    """The benchmark's records in the same folder as others."""
    return Records(records.path.with_name("bench.jsonl"))


def measured(records: Records) -> list[Measured]:
    """The benchmark, device by device."""
    found = [record for record in records.all() if record.experiment == EXPERIMENT]
    by_device: dict[str, list[Record]] = {}
    for record in found:
        by_device.setdefault(record.context["device"], []).append(record)
    return [_of_device(device, rows) for device, rows in by_device.items()]


def _of_device(device: str, records: list[Record]) -> Measured:
    rows, ceilings = {}, {}
    for record in records:
        if record.name == "ceilings":
            if "per_s" in record.figures:
                ceilings[record.settings["what"]] = record.figures["per_s"]
        else:
            size = tuple(record.settings[axis] for axis in AXES)
            rows[record.name, record.settings["what"], size] = record
    present = dict.fromkeys(name for name, *_ in rows)
    ordered = [name for name in STYLES if name in present] + [name for name in present if name not in STYLES]
    return Measured(device, rows, ceilings, tuple(ordered), records[-1].context)


def words(size: Size) -> str:
    """A size in words."""
    sizes = dict(zip(AXES, size, strict=True))
    keys = f"K=V={sizes['K']}" if sizes["K"] == sizes["V"] else f"K={sizes['K']} V={sizes['V']}"
    return f"B={sizes['B']} T={sizes['T']:,} H={sizes['H']} {keys}"


def order(size: Size) -> Size:
    """What sizes are sorted by: the head's size, then length, then batch."""
    batch, length, heads, key_dim, value_dim = size
    return key_dim, value_dim, length, heads, batch


def union(*lists: Iterable[Size]) -> list[Size]:
    """Every size once, in order."""
    return list(dict.fromkeys(size for sizes in lists for size in sizes))

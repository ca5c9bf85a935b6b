"""MQAR figures of runs whose records were lost: what they printed, told apart from records and from nothing else."""

import json
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

NAME = "mqar-printed.jsonl"
SHOWN = ((256, 64), (512, 64), (512, 128), (1024, 128), (1024, 256))


def section(folder: Path) -> str:
    """A table of them in Markdown, empty where ``folder`` has none.

    Args:
        folder: of the records; its lines carry model, learning rate, seed and accuracy by slice.
    """
    path = folder / NAME
    if not path.is_file():
        return ""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    rates: dict[str, dict[float, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        rates[line["model"]][line["learning_rate"]].append(line)
    heads = " | ".join(f"({length}, {pairs})" for length, pairs in SHOWN)
    told = [f"| model | learning rate | seeds | {heads} |", "|---" * (3 + len(SHOWN)) + "|"]
    for model, tried in rates.items():
        # The run went on with more seeds at the rate it chose; where it did not get there, all rates are shown.
        most = max(map(len, tried.values()))
        for rate, runs in sorted(tried.items()):
            if most == 1 or len(runs) == most:
                told.append(f"| `{model}` | {rate:g} | {len(runs)} | {' | '.join(_cells(runs))} |")
    return "\n".join(
        [
            "",
            "### Printed figures of the same study",
            "",
            f"{len(lines)} more trainings ran at these settings ({lines[0]['device']}, commit {lines[0]['commit']}).",
            "The call reached its time limit and their records were lost: these are the figures that they printed",
            f"([{NAME}](records/{NAME})). Mean, least and most over the seeds at the rate that the run chose;",
            "one seed and every rate, where it got no further. Rows, steps and sizes are those of the table above.",
            "",
            *told,
            "",
        ]
    )


def _cells(runs: list[dict[str, Any]]) -> list[str]:
    cells = []
    for at in SHOWN:
        values = [right for run in runs for *here, right in run["accuracy"] if tuple(here) == at]
        spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
        cells.append(f"{mean(values):.3f}{spread}")
    return cells

"""One token in place as Python calls it, outside a CUDA graph; and inside one at K = V = 64.

    python benchmarks/decode_called.py FILE

As called: medians of 200 calls between events, and the host's time of a call. Rows go to FILE, one JSON object a line.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

import decode_graph as graph
from bayesmem.ops.fused.decode import decode_op
from bayesmem.ops.triton.decode import decode_step
from bayesmem.report.records import context

CALLS, WARM = 200, 20
SMALL = 64
SPLITS = ((8, 128), (4, 128), (2, 128), (2, 256))


def called(call: Callable[[], object]) -> dict[str, float]:
    """Microseconds of a call between events (median), and of the host (mean)."""
    for _ in range(WARM):
        call()
    torch.cuda.synchronize()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(CALLS + 1)]
    marks[0].record()
    for mark in marks[1:]:
        call()
        mark.record()
    torch.cuda.synchronize()
    events = statistics.median(a.elapsed_time(b) for a, b in pairwise(marks)) * 1e3
    begun = time.perf_counter()
    for _ in range(CALLS):
        call()
    host = (time.perf_counter() - begun) / CALLS * 1e6
    torch.cuda.synchronize()
    return {"us": round(events, 2), "us_host": round(host, 2)}


def ours(
    sequences: int, size: int, tuning: dict[str, Any] | None = None, operator: bool = False
) -> Callable[[], object]:
    """A token of the exact filter, by the kernel or by the torch operator around it."""
    x = graph.inputs(sequences, graph.HEADS, graph.HEADS, size, size, torch.bfloat16, 0)
    floor = torch.full((graph.HEADS,), 1e-4, device=graph.DEVICE)
    mean, cov = graph.beliefs(sequences, graph.HEADS, size, size)
    if operator:
        return lambda: decode_op(*x, floor, mean, cov, None, "full", False, False)
    return lambda: decode_step(*x, floor, mean, cov, None, "full", False, False, tuning=tuning)


@torch.no_grad()
def main() -> None:
    """Time them all."""
    out = Path(sys.argv[1])
    about = {
        "command": "benchmarks/decode_called.py",
        "commit": context()["commit"],
        "card": torch.cuda.get_device_name(graph.DEVICE),
        "torch": torch.__version__,
    }

    def add(**row: Any) -> None:
        with out.open("a") as file:
            file.write(json.dumps(about | row) + "\n")
        print(row, flush=True)

    for sequences in (1, 2, 4, 8, 16, 256):
        x = graph.inputs(sequences, graph.HEADS, graph.HEADS, graph.SIZE, graph.SIZE, torch.bfloat16, 0)
        ways = {
            "chosen": ours(sequences, graph.SIZE),
            "operator": ours(sequences, graph.SIZE, operator=True),
            "triton": ours(sequences, graph.SIZE, {"cluster": 0}),
            "fla": graph.peer(sequences, x),
        }
        for name, call in ways.items():
            if call is not None:
                add(how="called", what=name, sequences=sequences, heads=graph.HEADS, size=graph.SIZE, **called(call))
    for sequences in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        tunings: dict[str, dict[str, Any] | None] = {"chosen": None, "triton": {"cluster": 0}}
        tunings |= {f"{c} x {t}": {"cluster": c, "threads": t} for c, t in SPLITS}
        for name, tuning in tunings.items():
            us = graph.microseconds(ours(sequences, SMALL, tuning))
            add(how="graph", what=name, sequences=sequences, heads=graph.HEADS, size=SMALL, us=round(us, 2))


if __name__ == "__main__":
    main()

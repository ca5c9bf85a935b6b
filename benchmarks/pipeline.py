"""The filter's forward by the number of pieces that its covariance and mean go through side by side.

    python benchmarks/pipeline.py FILE

Three times of each (H = 8, K = V = 128, bf16, nothing learned): as called one after the other, the L2 cache flushed
before each; inside a CUDA graph, where the host costs nothing; and what the host takes to launch one. Rows go to FILE,
one record a line.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bayesmem.ops import bayesian_filter
from bayesmem.ops.fused import filter as fused_filter
from bayesmem.report.records import Records

SIZES = ((8, 4096), (2, 4096), (1, 4096), (8, 8192), (8, 2048))
PARTS = (1, 2, 3, 4, 8)
HEADS, SIZE = 8, 128


def inputs(batch: int, length: int) -> list[Tensor]:
    """q, k, v, log decay, observation noise."""
    source = torch.Generator("cuda").manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, device="cuda")

    q, k = (normalize(rand(batch, length, HEADS, SIZE), dim=-1).bfloat16() for _ in range(2))
    v, gate = rand(batch, length, HEADS, SIZE).bfloat16(), rand(batch, length, HEADS)
    return [q, k, v, -0.05 * gate.sigmoid(), 0.01 + gate.sigmoid()]


def called(call: Callable[[], object]) -> dict[str, float | list[float]]:
    """Milliseconds: as called (least, median, most), and of the host."""
    from triton.testing import do_bench

    found = sorted(do_bench(call, warmup=25, rep=100, return_mode="all"))
    host = []
    for _ in range(30):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        call()
        host.append(1e3 * (time.perf_counter() - begun))
    return {"called_ms": [found[0], statistics.median(found), found[-1]], "host_ms": statistics.median(host)}


def times(x: list[Tensor]) -> dict[str, float | list[float]]:
    """The same of the filter's forward, and inside a CUDA graph."""
    from triton.testing import do_bench_cudagraph

    def call() -> None:
        bayesian_filter(*x)

    return called(call) | {"graph_ms": float(do_bench_cudagraph(call, rep=40, return_mode="median"))}


def main() -> None:
    """Every size by every number of pieces."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python benchmarks/pipeline.py FILE")
    if not torch.cuda.is_available():
        raise SystemExit("pipeline.py times kernels; it needs a GPU.")
    records = Records(Path(sys.argv[1]))
    with torch.no_grad():
        for batch, length in SIZES:
            x = inputs(batch, length)
            for parts in PARTS:
                fused_filter.parts_of = lambda *_, parts=parts: parts  # type: ignore[misc]
                figures = times(x)
                shape = {"B": batch, "T": length, "H": HEADS, "K": SIZE, "V": SIZE}
                records.add("pipeline", "forward", shape | {"parts": parts, "seed": 0}, figures)
                print(shape, parts, figures, flush=True)


if __name__ == "__main__":
    main()

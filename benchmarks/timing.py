"""Times of a call, which benchmarks share."""

import statistics
import time
from collections.abc import Callable

import torch


def called(call: Callable[[], object]) -> dict[str, float | list[float]]:
    """Milliseconds as called, the L2 cache flushed before each (least, median, most), and of the host."""
    from triton.testing import do_bench

    found = sorted(do_bench(call, warmup=25, rep=100, return_mode="all"))
    host = []
    for _ in range(30):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        call()
        host.append(1e3 * (time.perf_counter() - begun))
    return {"called_ms": [found[0], statistics.median(found), found[-1]], "host_ms": statistics.median(host)}


def in_graph(call: Callable[[], object]) -> float:
    """Milliseconds inside a CUDA graph, where the host costs nothing."""
    from triton.testing import do_bench_cudagraph

    return float(do_bench_cudagraph(call, rep=40, return_mode="median"))

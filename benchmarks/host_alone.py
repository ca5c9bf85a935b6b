"""What the filter's calls cost the host by themselves: on a CPU, with every kernel replaced by nothing.

    python benchmarks/host_alone.py FILE

Forward alone, and forward and backward (1 sequence of 512 tokens, H = 8, K = V = 128, bf16, seed 0). Kernels are
chosen as on a Hopper, and their launches made again from tapes or not (``ops/triton/tape.py``). Memory is a CPU's, and
what torch computes besides is computed. Rows go to FILE: the 10% quantile and the median of 400 calls, in ms.
"""

import ctypes
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn.functional import normalize

from bayesmem.ops import api, bayesian_filter
from bayesmem.ops.triton import (
    covariance_cuda,
    covariance_forward,
    cuda_launch,
    device,
    hopper,
    launched,
    mean_local_cuda,
    recording,
    tape,
)
from bayesmem.report.records import Records

CALLS, WARMUP = 400, 20
SIZES = {"B": 1, "T": 512, "H": 8, "K": 128, "V": 128, "seed": 0}


class Compiled:
    """What Triton gives for a kernel, and runs."""

    function = packed_metadata = 0

    def run(self, *args: Any) -> None:
        """Nothing."""


def without_a_gpu() -> None:
    """Kernels are chosen as for a Hopper; they, streams and the driver are replaced."""
    nothing = ctypes.CDLL(None).sched_yield  # any function that takes all and answers with 0
    driver = SimpleNamespace(cuLaunchKernel=nothing, cuMemsetD8Async=nothing)
    kernel = SimpleNamespace(func=ctypes.c_void_p(1))

    def made(*_: Any) -> cuda_launch.Launcher:
        return cuda_launch.Launcher(kernel, kernel.func, driver, 0)  # type: ignore[arg-type]

    hopper.compiled = covariance_cuda.compiled = made  # type: ignore[assignment]
    hopper.fits = mean_local_cuda.fits = lambda *_: True
    covariance_forward.chosen_cluster = lambda k: 1
    device.limits.cache_clear()
    for module in (cuda_launch, launched, tape):
        module.current_stream = lambda index: 0  # type: ignore[attr-defined]
    properties = SimpleNamespace(shared_memory_per_block_optin=232_448, major=9, minor=0, multi_processor_count=132)
    torch.cuda.get_device_properties = lambda _: properties  # type: ignore[assignment]
    torch.cuda.current_device = lambda: 0
    launched.JITFunction.__getitem__ = lambda self, grid: lambda *args, **options: Compiled()
    cuda_launch.driver = tape.clear = lambda *_: driver  # type: ignore[assignment]
    api.available = lambda q: None


def timed(run: Callable[[], object]) -> dict[str, float]:
    """Quantiles of the wall time of a call."""
    for _ in range(WARMUP):
        run()
    found = []
    for _ in range(CALLS):
        started = time.perf_counter()
        run()
        found.append(1e3 * (time.perf_counter() - started))
    low, median = torch.tensor(found).quantile(torch.tensor([0.1, 0.5])).tolist()
    return {"low_ms": round(low, 4), "median_ms": round(median, 4)}


def main() -> None:
    """Both ways, forward and with the backward."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python benchmarks/host_alone.py FILE")
    records = Records(Path(sys.argv[1]))
    torch.set_num_threads(1)
    without_a_gpu()
    source = torch.Generator().manual_seed(SIZES["seed"])
    size = (SIZES["B"], SIZES["T"], SIZES["H"], SIZES["K"])
    q, k, v = (torch.randn(size, generator=source) for _ in range(3))
    gate = torch.randn(size[:-1], generator=source).sigmoid()
    streams = [normalize(x, dim=-1).bfloat16() for x in (q, k)] + [v.bfloat16()]
    given = [x.requires_grad_() for x in (*streams, -0.05 * gate, 0.01 + gate)]

    def forward() -> torch.Tensor:
        return bayesian_filter(*given, backend="triton", validate=False).o

    def both() -> None:
        torch.autograd.grad(forward(), given, v.bfloat16())

    def repeated(_: torch.device, roots: Sequence[int]) -> bool:
        return recording.recording() is None and not any(root & 15 for root in roots)

    for tapes in (True, False):
        tape.repeatable = repeated if tapes else lambda *_: False
        for name, run in (("forward", torch.no_grad()(forward)), ("backward", both)):
            figures = timed(run)
            records.add("host_alone", name, SIZES | {"tapes": tapes}, figures)
            print(name, {"tapes": tapes}, figures, flush=True)


if __name__ == "__main__":
    main()

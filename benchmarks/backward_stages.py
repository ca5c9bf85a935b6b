"""Where the time of a forward and backward goes by stage, and what other blocks, warps and stages would make of it.

Run ``python benchmarks/backward_stages.py FILE`` on a machine with a GPU; records go to FILE, one a line: the kernels
of one call of the filter (bf16, T = 4096, H = 8, K = V = 128), then every stage by itself under the settings of
``VARIANTS``, each held to what the default gives. Times are the profiler's, of kernels alone, medians. What is not
timed within ``--seconds`` is left out, and said so. ``--small`` tries the script where there is no GPU (with
``TRITON_INTERPRET=1``): no times then.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import fields, is_dataclass
from multiprocessing import get_context
from os import cpu_count
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bayesmem.ops.triton import (
    covariance_chain,
    covariance_prepare,
    covariance_tokens_whole,
    mean_backward,
    mean_backward_local,
    mean_chain,
    mean_prepare,
)
from bayesmem.report.records import Records
from stage_inputs import DEVICE, Blanks, Stages

EXPERIMENT, HEADS, SIZE, LENGTH, CHUNK = "backward_stages", 8, 128, 4096, 64
REPEATS, WARM = 12, 2

# Stage: the name it has in a tuning, and the settings tried after the default. On Hopper that is the CUDA kernel where
# there is one, and any setting Triton's: those here are its own defaults. What else was tried is in the records.
VARIANTS: dict[str, tuple[str, list[dict[str, int]]]] = {
    "covariance prepare": ("prepare", [{"num_stages": 3}]),
    "covariance chain": ("chain", [{"num_stages": 1}]),
    "covariance tokens": ("tokens", [{"num_stages": 2}]),  # one stage Triton 3.6 compiles into reads outside of memory
    "mean prepare": ("prepare", []),
    "mean chain": ("chain", []),
    "mean chain backward": ("chain_backward", []),
    "mean local": ("local", [{"num_stages": 2}]),
}
KERNELS = {  # of the stages, as modules have them
    "covariance prepare": covariance_prepare.prepare_kernel,
    "covariance chain": covariance_chain.chain_kernel,
    "covariance tokens": covariance_tokens_whole.whole_tokens_kernel,
    "mean prepare": mean_prepare.prepare_kernel,
    "mean chain": mean_chain.chain_kernel,
    "mean chain backward": mean_backward.chain_backward_kernel,
    "mean local": mean_backward_local.local_kernel,
}


def tensors(x: Any) -> list[Tensor]:
    """All tensors of what a stage made; a pair of bfloat16 as the one it stands for."""
    if isinstance(x, Tensor):
        return [x]
    if is_dataclass(x):
        return [y for field in fields(x) for y in tensors(getattr(x, field.name))]
    if not isinstance(x, tuple | list):
        return []
    if len(x) == 2 and all(isinstance(y, Tensor) and y.dtype == torch.bfloat16 for y in x) and x[0].shape == x[1].shape:
        return [x[0].float() + x[1].float()]
    return [y for part in x for y in tensors(part)]


def difference(found: Any, expected: Any) -> float:
    """The largest relative difference (root mean square) of two results of one stage."""
    pairs = zip(tensors(found), tensors(expected), strict=True)
    return max(((a.float() - b.float()).norm() / b.float().norm().clamp(min=1e-30)).item() for a, b in pairs)


def spent(call: Callable[[], Any]) -> dict[str, float]:
    """Milliseconds of every kernel of a call, medians; those of one name are numbered in their order."""
    if DEVICE.type == "cpu":
        return {}
    for _ in range(WARM):
        call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(REPEATS):
            call()
        torch.cuda.synchronize()
    runs: dict[str, list[float]] = defaultdict(list)
    events = [e for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    for event in sorted(events, key=lambda e: e.time_range.start):
        runs[event.name[:60]].append(event.time_range.elapsed_us() / 1e3)
    found = {}
    for name, all_ms in runs.items():
        each, rest = divmod(len(all_ms), REPEATS)
        if rest:  # not the same number in every call
            found[f"{name} a call"] = round(sum(all_ms) / REPEATS, 4)
            continue
        for order in range(each):
            label = f"{name} {order + 1}" if each > 1 else name
            found[label] = round(median(all_ms[order::each]), 4)
    return found


def kernels_of(stage: str) -> dict[Any, Any]:
    """What Triton has compiled of a stage's kernel in this process, oldest first; empty where it does not tell."""
    try:
        return dict(KERNELS[stage].device_caches[torch.cuda.current_device()][0])
    except (AttributeError, IndexError, TypeError, RuntimeError, AssertionError):
        return {}


def resources(stage: str, before: dict[Any, Any]) -> dict[str, int]:
    """Registers and spills a thread and shared memory a program, of what was compiled since ``before``."""
    new = [kernel for key, kernel in kernels_of(stage).items() if key not in before]
    if not new:
        return {}
    return {"registers": new[-1].n_regs, "spills": new[-1].n_spills, "shared": new[-1].metadata.shared}


def compiled(stage: str, settings: dict[str, int], sizes: tuple[int, ...]) -> None:
    """Compile a variant in a process of its own, into the cache on disk that all share."""
    Blanks(*sizes).run(stage, {VARIANTS[stage][0]: settings})


def warmed(sizes: tuple[int, ...], jobs: list[tuple[str, dict[str, int]]]) -> None:
    """Compile all variants side by side; what fails does so again, and is recorded, where it is timed."""
    if DEVICE.type == "cpu":
        return
    workers = min(len(jobs), max(1, (cpu_count() or 2) - 2))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(compiled, stage, settings, sizes) for stage, settings in jobs]
        for job in as_completed(waiting):
            job.exception()


class Timer:
    """Times the stages of one shape and records them, until a time.

    Args:
        records: where to.
        stages: what is timed.
        shape: its sizes, for the records.
        until: by ``time.monotonic``.
    """

    def __init__(self, records: Records, stages: Stages, shape: dict[str, int], until: float):
        self.records, self.stages, self.shape, self.until = records, stages, shape, until

    def filter(self) -> None:
        """One call of all."""
        self.add("filter", {}, {"ms": spent(self.stages.filtered)})

    def stage(self, stage: str) -> None:
        """A stage under all settings, first and last under its default."""
        kernel, variants = VARIANTS[stage]
        expected = None
        for settings in ({}, *variants, {}):
            where = {"settings": settings or "default"}
            if time.monotonic() > self.until:
                self.add(stage, where, {"left_out": "the time was up"})
                continue
            tuning = {kernel: settings} if settings else None
            try:
                before = kernels_of(stage)
                found = self.stages.run(stage, tuning)
                held = resources(stage, before)
                expected = found if expected is None else expected
                off = difference(found, expected)
                del found
                self.add(stage, where, {"ms": spent(lambda t=tuning: self.stages.run(stage, t)), "off": off} | held)
            except Exception as error:  # a variant that does not fit the device is a result too
                self.add(stage, where, {"error": f"{type(error).__name__}: {str(error)[:200]}"})

    def add(self, name: str, settings: dict[str, Any], figures: dict[str, Any]) -> None:
        """Record and print."""
        self.records.add(EXPERIMENT, name, self.shape | settings, figures)
        print(name, self.shape["B"], settings, figures, flush=True)


def main() -> None:
    """Compile side by side, then time one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="where records go")
    parser.add_argument("--batches", type=int, nargs="*", default=[32, 8])
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), help="stages whose settings are tried")
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    if DEVICE.type == "cpu" and not options.small:
        raise SystemExit("backward_stages needs a GPU (or --small, and TRITON_INTERPRET=1, to try it without times).")
    until = time.monotonic() + options.seconds
    length, heads, size, chunk = (64, 2, 32, 16) if options.small else (LENGTH, HEADS, SIZE, CHUNK)
    batches = [2] if options.small else options.batches
    jobs = [(stage, settings) for stage in options.only for settings in ({}, *VARIANTS[stage][1])]
    warmed((max(batches), chunk, heads, size, chunk), jobs)
    for batch in batches:
        stages = Stages(batch, length, heads, size, chunk)
        timer = Timer(Records(options.file), stages, {"B": batch, "T": length, "H": heads, "K": size, "V": size}, until)
        timer.filter()
        for stage in options.only:
            timer.stage(stage)


if __name__ == "__main__":
    main()

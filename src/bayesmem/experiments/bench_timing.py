"""Times of a call, and the memory it takes, on a GPU or a CPU."""

import ctypes
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Call = Callable[[], Any]

LEAST, MOST = 5, 2000  # samples of a call on a CPU
LOOP = 200  # steps in a row that decoding is timed over


def first_call(call: Call, device: str) -> float:
    """Seconds of one call, done before anything else: compilation and autotuning are in it."""
    _wait(device)
    started = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - started


def peak_memory(call: Call, device: str) -> int | None:
    """Bytes that one call needs at its peak, beyond what is there before it (its inputs); ``None`` if unknown.

    It is not among the first calls, which may make room in other ways (ours record what later ones repeat). On a GPU by
    PyTorch's allocator, on a CPU by the process's resident memory (Linux).
    """
    if device == "cuda":
        call()
        call()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed would hide what this one takes
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
        before = _resident("VmRSS")
        call()
        return max(_resident("VmHWM") - before, 0)
    except (OSError, AttributeError):  # not Linux, or not glibc
        call()
        return None


def samples(call: Call, device: str, milliseconds: float | int) -> list[float]:
    """Milliseconds of single calls.

    On a GPU by events on the device, its L2 cache flushed before each (``triton.testing.do_bench``).

    Args:
        call: what is timed; it has been called before.
        device: ``cuda`` or ``cpu``.
        milliseconds: time to spend, at least five calls.
    """
    spent = 1e3 * first_call(call, device)
    milliseconds = max(milliseconds, LEAST * spent)
    if device == "cuda":
        from triton.testing import do_bench

        return list(do_bench(call, warmup=25, rep=int(1.1 * milliseconds) + 1, return_mode="all"))
    count = min(max(int(milliseconds / max(spent, 1e-3)), LEAST), MOST)
    return [1e3 * first_call(call, device) for _ in range(count)]


def spread(found: list[float]) -> dict[str, float | int]:
    """Median, 10% and 90% quantile, and count."""
    low, median, high = torch.tensor(found, dtype=torch.float64).quantile(torch.tensor([0.1, 0.5, 0.9]).double())
    named = {"median_ms": median, "low_ms": low, "high_ms": high}
    return {name: float(f"{value.item():.4g}") for name, value in named.items()} | {"samples": len(found)}


def steps(call: Call, device: str, milliseconds: float | int) -> float:
    """Milliseconds a step of many in a row, by the clock on the wall: what a decoder without CUDA graphs sees."""
    few = min(LOOP, max(LEAST, int(milliseconds / max(1e3 * first_call(call, device), 1e-3))))

    def loop() -> None:
        for _ in range(few):
            call()

    return sorted(1e3 * first_call(loop, device) / few for _ in range(5))[2]


def graphed(call: Call) -> float | str:
    """Milliseconds a step inside a CUDA graph, or why it cannot be in one."""
    from triton.testing import do_bench_cudagraph

    try:
        return float(do_bench_cudagraph(call, rep=20, return_mode="median"))
    except Exception as error:  # whatever a peer's op does not allow in a graph is its result
        return reason(error)


def reason(error: BaseException) -> str:
    """An error in one line."""
    words = re.sub(r"\s+", " ", str(error)).strip()
    return f"{type(error).__name__}: {words[:300]}" if words else type(error).__name__


def ceiling(what: str, device: str, milliseconds: float | int) -> dict[str, Any]:
    """The measured ceiling of this device: ``matmul``, in operations a second, or ``copy``, in bytes a second."""
    cuda = device == "cuda"
    if what == "matmul":
        size = 8192 if cuda else 1024
        dtype = torch.bfloat16 if cuda else torch.float32
        a, b, out = (torch.randn(size, size, device=device).to(dtype) for _ in range(3))
        amount, how = 2 * size**3, f"{size}^3 {str(dtype).removeprefix('torch.')}"
        found = _ceiling(lambda: torch.mm(a, b, out=out), device, milliseconds)
    else:
        mebibytes = 2048 if cuda else 256
        source = torch.ones(mebibytes << 20, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        amount, how = 2 * source.numel(), f"{mebibytes} MiB, read and written"
        found = _ceiling(lambda: target.copy_(source), device, milliseconds)
    return found | {"of": how, "per_s": amount / (1e-3 * found["median_ms"])}


def _ceiling(call: Call, device: str, milliseconds: float | int) -> dict[str, Any]:
    call()
    return spread(samples(call, device, milliseconds))


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _resident(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise OSError(f"no {name} in /proc/self/status")
    return 1024 * int(found[1])

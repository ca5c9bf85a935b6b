"""Times the filter's back ends on a CPU against transformers' chunked gated delta rule, and writes records.

Run ``make bench``. Each memory figure is the peak of a process of its own, forward and backward.
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bayesmem.ops import Assumptions, PriorMixing, bayesian_filter
from bayesmem.report.records import Records

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Shape:
    """Sizes of one measurement."""

    B: int = 2
    T: int = 1024
    H: int = 4
    K: int = 64
    V: int = 64
    threads: int = 2
    seed: int = 0


def inputs(shape: Shape) -> dict[str, Tensor]:
    """The same random inputs for every contender, each wanting a gradient."""
    generator = torch.Generator().manual_seed(shape.seed)

    def rand(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator)

    def randn(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    b, t, h = shape.B, shape.T, shape.H
    tensors = {
        "q": normalize(randn(b, t, h, shape.K), dim=-1),
        "k": normalize(randn(b, t, h, shape.K), dim=-1),
        "v": randn(b, t, h, shape.V),
        "log_decay": -0.1 * rand(b, t, h),
        "log_retention": -0.01 * rand(b, t, h),
        "obs_noise": 0.1 + rand(b, t, h),
    }
    return {name: x.requires_grad_() for name, x in tensors.items()}


def ours(backend: str, covariance: str) -> Callable[[dict[str, Tensor]], Tensor]:
    """``bayesian_filter`` under prior mixing."""

    def run(x: dict[str, Tensor]) -> Tensor:
        assumptions = Assumptions(covariance=covariance, process_noise=PriorMixing(x["log_retention"]))
        return bayesian_filter(x["q"], x["k"], x["v"], x["log_decay"], x["obs_noise"], assumptions, backend=backend).o

    return run


def peer(x: dict[str, Tensor]) -> Tensor:
    """The gated delta rule of Qwen3-Next as transformers computes it in PyTorch."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

    return torch_chunk_gated_delta_rule(x["q"], x["k"], x["v"], g=x["log_decay"], beta=1 / (1 + x["obs_noise"]))[0]


CONTENDERS = {
    "transformers' gated delta rule": peer,
    "chunk, reset": ours("chunk", "reset"),
    "chunk, full": ours("chunk", "full"),
    "chunk, diagonal": ours("chunk", "diagonal"),
    "recurrent, full": ours("recurrent", "full"),
}


def measure(name: str, shape: Shape, repeats: int) -> dict[str, float]:
    """Median, least and most seconds of forward and backward, and the peak memory they add."""
    torch.set_num_threads(shape.threads)
    x, run = inputs(shape), CONTENDERS[name]

    def once() -> tuple[float, float]:
        start = time.perf_counter()
        o = run(x)
        middle = time.perf_counter()
        o.square().sum().backward()
        return middle - start, time.perf_counter() - start

    small = Shape(**asdict(shape) | {"T": 64})
    run(inputs(small)).sum().backward()  # first calls set up threads and libraries
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = [once() for _ in range(repeats)]
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    forward, both = zip(*times, strict=True)
    return {
        "forward_s": statistics.median(forward),
        "forward_backward_s": statistics.median(both),
        "forward_backward_least_s": min(both),
        "forward_backward_most_s": max(both),
        "peak_memory_mb": (after - before) / 1024,
    }


def _child(queue: "multiprocessing.SimpleQueue[dict[str, float]]", *arguments: object) -> None:
    queue.put(measure(*arguments))  # type: ignore[arg-type]


def measure_apart(name: str, shape: Shape, repeats: int) -> dict[str, float]:
    """``measure`` in a fresh process."""
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.SimpleQueue[dict[str, float]] = context.SimpleQueue()
    process = context.Process(target=_child, args=(queue, name, shape, repeats))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{name} at {shape} ended with exit code {process.exitcode}")
    return queue.get()


def main() -> None:
    """Measure, record, and print a short table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "records" / "filter_cpu.jsonl")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--longest", type=int, default=16_384, help="longest T of the linearity check")
    options = parser.parse_args()
    records, base = Records(options.out), Shape()

    def report(name: str, shape: Shape, repeats: int) -> None:
        figures = measure_apart(name, shape, repeats)
        records.add("filter_cpu", name, asdict(shape) | {"repeats": repeats}, figures)
        print(
            f"T={shape.T:6d}  {name:32s} forward {figures['forward_s'] * 1e3:8.1f} ms  with backward "
            f"{figures['forward_backward_s'] * 1e3:8.1f} ms  memory {figures['peak_memory_mb']:7.0f} MB",
            flush=True,
        )

    for name in CONTENDERS:
        report(name, base, 1 if name.startswith("recurrent") else options.repeats)
    length = 2048
    while length <= options.longest:
        report("chunk, full", Shape(T=length), 3)
        length *= 2


if __name__ == "__main__":
    main()

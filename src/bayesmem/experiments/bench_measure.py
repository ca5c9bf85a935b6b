"""The process of one contender: reads its jobs from standard input, tells each result in a line of JSON.

``python -m bayesmem.experiments.bench_measure``, started by ``bench`` so that whatever a contender does to its
process is its own affair.
"""

import gc
import json
import os
import sys
import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bayesmem.experiments import bench_floors, bench_inputs, bench_timing
from bayesmem.experiments.bench_config import CEILINGS, Job, Shape
from bayesmem.experiments.bench_contenders import Op, contenders

BUDGET = {"quick": 20.0, "headline": 200.0, "grid": 100.0}  # milliseconds a measurement, at least five calls
CHECKED = 256  # tokens over which o is held to float64


def measure(job: Job, device: str, preset: str) -> dict[str, Any]:
    """The figures of one job.

    Args:
        job: what to measure.
        device: ``cuda`` or ``cpu``.
        preset: how long, by its name.
    """
    if job.contender == CEILINGS:
        return bench_timing.ceiling(job.what, device, BUDGET[preset])
    op = _op(job, device)
    x = _inputs(op, job, device)
    call = _call(op, x, job.what)
    figures: dict[str, Any] = {"op": op.label, "first_call_s": round(bench_timing.first_call(call, device), 3)}
    figures["peak_bytes"] = bench_timing.peak_memory(call, device)
    figures |= bench_timing.spread(bench_timing.samples(call, device, BUDGET[preset]))
    outputs = sum(map(_bytes, call() if job.what != "backward" else _call(op, x, "forward")()))
    figures["flops"] = bench_floors.flops(job)
    figures["bytes"] = bench_floors.traffic(job, {name: _bytes(tensor) for name, tensor in x.items()}, outputs)
    if job.what == "decode":
        figures["steps_ms"] = bench_timing.steps(call, device, BUDGET[preset])
        figures["graph_ms"] = bench_timing.graphed(call) if device == "cuda" else None
    elif op.reference:
        assert job.shape
        figures["error"] = _error(job.contender, device, job.dtype, job.seed, job.shape.H, job.shape.K, job.shape.V)
    return figures


def prepare(job: Job, device: str) -> None:
    """Call a job's op once at a small batch and length, so that its kernels are compiled."""
    if job.shape:
        s = job.shape
        small = Job(job.contender, job.what, Shape(min(s.B, 2), min(s.T, 1024), s.H, s.K, s.V), job.dtype, job.seed)
        op = _op(small, device)
        bench_timing.first_call(_call(op, _inputs(op, small, device), small.what), device)


def _op(job: Job, device: str) -> Op:
    op = contenders(device)[job.contender].op(job.what)
    assert op, f"{job.contender} has no op for {job.what}"
    return op


def _inputs(op: Op, job: Job, device: str) -> bench_inputs.Inputs:
    assert job.shape
    tokens = 1 if job.what == "decode" else job.shape.T
    x = bench_inputs.make(op.needs, job.shape, tokens, getattr(torch, job.dtype), device, job.seed)
    return {name: tensor.requires_grad_(job.what == "backward") for name, tensor in x.items()}


def _call(op: Op, x: bench_inputs.Inputs, what: str) -> bench_timing.Call:
    run = op.bind(x)
    if what != "backward":
        return torch.no_grad()(run)
    given: list[Tensor] = []  # gradients of the outputs, drawn at the first call

    def call() -> None:
        outputs = run()
        if not given:
            generator = torch.Generator(outputs[0].device).manual_seed(0)
            given.extend(
                torch.randn(o.shape, generator=generator, device=o.device, dtype=torch.float32).to(o.dtype)
                for o in outputs
            )
        torch.autograd.grad(outputs, list(x.values()), given, allow_unused=True)

    return call


@cache
def _error(contender: str, device: str, dtype: str, seed: int, heads: int, key_dim: int, value_dim: int) -> float:
    """Relative error of o against float64, given the same (rounded) inputs, over a short sequence."""
    job = Job(contender, "forward", Shape(1, CHECKED, heads, key_dim, value_dim), dtype, seed)
    op = _op(job, device)
    assert op.reference
    x = _inputs(op, job, device)
    with torch.no_grad():
        exact = op.reference({name: tensor.double() for name, tensor in x.items()})
        found = op.bind(x)()[0].double()
    return float(f"{((found - exact).norm() / exact.norm()).item():.3g}")


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def main() -> None:
    """Do the jobs of standard input; after an error go on with the next, unless the device is lost."""
    channel = os.fdopen(os.dup(1), "w")  # what others print goes elsewhere
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    order = json.load(sys.stdin)

    def tell(**event: Any) -> None:
        channel.write(json.dumps(event) + "\n")
        channel.flush()

    for index, data in enumerate(order["jobs"]):
        tell(started=index)
        try:
            job, device = Job.from_dict(data), order["device"]
            figures: dict[str, Any] = {}
            if order["ahead"]:
                prepare(job, device)
            else:
                figures = measure(job, device, order["preset"])
        except Exception as error:  # any failure of a contender is its result
            tell(failed=index, reason=bench_timing.reason(error))
            del error
        else:
            tell(done=index, figures=figures)
        gc.collect()
        if order["device"] == "cuda":
            torch.cuda.synchronize()  # raises, and ends this process, where an error has left the device unusable
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()

"""MesaNet's reads in bfloat16: a factorisation a token, conjugate gradients in float64, and the kernel in float32.

    python benchmarks/precision_solve.py FILE

One layer's filter forward and backward, 256 rows of 256 tokens (2 on a CPU, where TRITON_INTERPRET=1 runs the kernel),
K = V = 64: the least of ten calls after three (of one on a CPU). A row goes to FILE, as JSON: times, how far outputs
and gradients are from the factorisation's, and both solves of the kernel: its iterations, mean and most over chunks,
the largest true residual and whether it was believed.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bayesmem.ops import Assumptions, LogLinearMixing, bayesian_filter, chunk, fused, precision_kernel

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROWS, WARM, CALLS = (256, 3, 10) if DEVICE == "cuda" else (2, 0, 1)
TOKENS, SIZE = 256, 64
WAYS = {"factorised": (False, False), "conjugate_gradients": (True, False), "kernel": (True, True)}


def inputs() -> list[Tensor]:
    """q, k, v, log discount, observation noise from .1 to 1."""
    source = torch.Generator().manual_seed(0)
    q, k, v = (normalize(torch.randn(ROWS, TOKENS, 1, SIZE, generator=source), dim=-1) for _ in range(3))
    noise = 0.1 * 10 ** torch.rand(ROWS, TOKENS, 1, generator=source)
    streams = [x.bfloat16() for x in (q, k, v)]
    return [x.to(DEVICE).requires_grad_() for x in (*streams, torch.full((ROWS, TOKENS, 1), -0.001), noise)]


def run(iterate: bool, kernel: bool, given: list[Tensor]) -> tuple[float, list[Tensor]]:
    """Milliseconds, and the output with all gradients."""
    chunk.ITERATIVE_DEVICES = (DEVICE,) if iterate else ()
    precision_kernel.DEVICES = (DEVICE,) if kernel else ()
    times = []
    for _ in range(WARM + CALLS):
        started = time.perf_counter()
        o = bayesian_filter(*given, Assumptions(process_noise=LogLinearMixing()), backend="chunk").o
        found = [o.detach(), *torch.autograd.grad(o.float().square().sum(), given)]
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return 1e3 * min(times[WARM:]), found


def solves(given: list[Tensor]) -> list[dict[str, float]]:
    """Of every solve by the kernel: mean and most iterations of a chunk, largest residual, milliseconds."""
    launch, seen = fused.solve_chunks, []

    def watched(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        found = launch(*args)
        residual, iterations = found[1].max().item(), found[2].float()
        took = 1e3 * (time.perf_counter() - started)
        believed = residual <= precision_kernel.BOUND
        seen.append({"mean": iterations.mean().item(), "most": iterations.max().item(), "residual": residual})
        seen[-1] |= {"ms": took, "believed": believed}
        return found

    fused.solve_chunks = watched
    run(True, True, given)
    fused.solve_chunks = launch
    if len(seen) != 2 * (WARM + CALLS):
        raise RuntimeError("a solve was refined: choose milder inputs, or its two solves cannot be told apart")
    return seen[-2:]


def main() -> None:
    """All ways, and what they differ by."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python benchmarks/precision_solve.py FILE")
    given = inputs()
    card = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    row = {"card": card, "torch": torch.__version__, "rows": ROWS, "tokens": TOKENS, "key_dim": SIZE, "seed": 0}
    row |= {"dtype": "bfloat16", "names": ["o", "dq", "dk", "dv", "dlog_discount", "dobs_noise"]}
    found = {}
    for name, way in WAYS.items():
        row[f"{name}_ms"], found[name] = run(*way, given)
    for name in ("conjugate_gradients", "kernel"):
        pairs = zip(found["factorised"], found[name], strict=True)
        row[f"{name}_apart"] = [float((a.double() - b).abs().max() / a.double().abs().max()) for a, b in pairs]
    row["solves"] = solves(given)
    with Path(sys.argv[1]).open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(row)


if __name__ == "__main__":
    main()

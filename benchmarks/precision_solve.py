"""MesaNet's reads: every token's own factorisation against conjugate gradients on all of them, in time and in numbers.

    python benchmarks/precision_solve.py FILE

One layer's filter forward and backward, 256 rows of 256 tokens (4 on a CPU), K = V = 64, the fourth of four calls. A
row goes to FILE, as JSON.
"""

import json
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bayesmem.ops import Assumptions, LogLinearMixing, bayesian_filter, chunk

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROWS, TOKENS, SIZE = (256 if DEVICE == "cuda" else 4), 256, 64


def inputs() -> list[Tensor]:
    """q, k, v, log discount, observation noise from .1 to 1."""
    source = torch.Generator().manual_seed(0)
    q, k, v = (normalize(torch.randn(ROWS, TOKENS, 1, SIZE, generator=source), dim=-1) for _ in range(3))
    noise = 0.1 * 10 ** torch.rand(ROWS, TOKENS, 1, generator=source)
    return [x.to(DEVICE).requires_grad_() for x in (q, k, v, torch.full((ROWS, TOKENS, 1), -0.001), noise)]


def run(iterate: bool, given: list[Tensor]) -> tuple[float, list[Tensor]]:
    """Milliseconds, and the output with all gradients."""
    chunk.ITERATIVE_DEVICES = (DEVICE,) if iterate else ()
    for _ in range(4):
        started = time.perf_counter()
        o = bayesian_filter(*given, Assumptions(process_noise=LogLinearMixing()), backend="chunk").o
        found = [o.detach(), *torch.autograd.grad(o.square().sum(), given)]
        if DEVICE == "cuda":
            torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - started), found


def main() -> None:
    """Both ways, and what they differ by."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python benchmarks/precision_solve.py FILE")
    given = inputs()
    (exact, one), (iterated, other) = run(False, given), run(True, given)
    apart = [float((a - b).abs().max() / a.abs().max()) for a, b in zip(one, other, strict=True)]
    card = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    row = {"card": card, "torch": torch.__version__, "rows": ROWS, "tokens": TOKENS, "key_dim": SIZE, "seed": 0}
    row |= {"factorised_ms": exact, "conjugate_gradients_ms": iterated, "apart": apart}
    with Path(sys.argv[1]).open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(row)


if __name__ == "__main__":
    main()

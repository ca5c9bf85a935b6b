"""What the filter's calls cost the host, and what tapes, and calling operators and kernels by themselves, save of it.

    python benchmarks/host_cost.py FILE

Forward alone, and forward and backward (H = 8, K = V = 128, bf16), as called one after the other with the L2 cache
flushed before each, and what the host takes to launch one. Five ways: launches made again from tapes
(``triton/tape.py``), or else operators called by themselves or through torch's dispatcher (``ops/fused/operator.py``)
and kernels launched cheaply or Triton's own way (``triton/launched.py``).
Rows go to FILE, one record a line.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bayesmem.ops import bayesian_filter
from bayesmem.ops.fused.operator import Operator
from bayesmem.ops.triton import tape
from bayesmem.ops.triton.launched import Launched
from bayesmem.report.records import Records
from timing import called

SIZES = ((2, 4096), (8, 4096), (1, 512))
HEADS, SIZE = 8, 128
ITSELF, CHEAP, REPEATED = Operator.__call__, Launched.__getitem__, tape.repeatable


def inputs(batch: int, length: int) -> list[Tensor]:
    """q, k, v, log decay, observation noise."""
    source = torch.Generator("cuda").manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, device="cuda")

    q, k = (normalize(rand(batch, length, HEADS, SIZE), dim=-1).bfloat16() for _ in range(2))
    v, gate = rand(batch, length, HEADS, SIZE).bfloat16(), rand(batch, length, HEADS)
    return [q, k, v, -0.05 * gate.sigmoid(), 0.01 + gate.sigmoid()]


def dispatched(self: Operator, *args: object) -> object:
    """As of ``Operator.__call__``, through the dispatcher always."""
    return self.dispatched(*args)


def bound(self: Launched, grid: tuple[int, ...]) -> Callable[..., None]:
    """As of ``Launched.__getitem__``, arguments bound anew always."""
    launch: Callable[..., None] = self.kernel[grid]
    return launch


def never(device: torch.device, roots: Sequence[int]) -> bool:
    """As of ``tape.repeatable``: nothing is."""
    return False


def main() -> None:
    """Every size, each way."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python benchmarks/host_cost.py FILE")
    if not torch.cuda.is_available():
        raise SystemExit("host_cost.py times launches; it needs a GPU.")
    records = Records(Path(sys.argv[1]))
    for batch, length in SIZES:
        x = [one.requires_grad_() for one in inputs(batch, length)]
        gradient = torch.randn_like(x[2])

        def forward(x: list[torch.Tensor] = x) -> None:
            with torch.no_grad():
                bayesian_filter(*x)

        def both(x: list[torch.Tensor] = x, gradient: torch.Tensor = gradient) -> None:
            torch.autograd.grad(bayesian_filter(*x).o, x, gradient)

        plain = [(call, launch, never) for call in (ITSELF, dispatched) for launch in (CHEAP, bound)]
        for call, launch, repeated in ((ITSELF, CHEAP, REPEATED), *plain):
            Operator.__call__, Launched.__getitem__ = call, launch  # type: ignore[method-assign]
            tape.repeatable = repeated
            ways = {"operators": call is ITSELF, "kernels": launch is CHEAP, "tapes": repeated is REPEATED}
            for name, run in (("forward", forward), ("backward", both)):
                figures = called(run)
                shape = {"B": batch, "T": length, "H": HEADS, "K": SIZE, "V": SIZE, "seed": 0}
                records.add("host_cost", name, shape | {"by itself": ways}, figures)
                print(name, shape, ways, figures, flush=True)


if __name__ == "__main__":
    main()

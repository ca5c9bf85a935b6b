"""The covariance's chains whole and cut into segments (covariance_cuts.cu), and the filter with them.

    python benchmarks/chain_cuts.py FILE

For every size (H = 8, K = V, bf16, retention e^-.005 a token on average) and kind of retention: milliseconds of the
kernels, whole and cut; how many cuts agreed at once and how many chains were mended; and by how much results differ.
Kinds: ``mild``; ``late``, which in the second half of a sequence forgets nothing, though it is estimated to; ``never``;
``alike``, whose keys leave half of the directions out; ``few``, whose keys leave three quarters of them out.
Then the filter, forward (in a CUDA graph) and forward and backward (the sum of its kernels). Rows go to FILE, one
record a line.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from backward_stages import difference, spent
from bayesmem.ops import Assumptions, PriorMixing, bayesian_filter
from bayesmem.ops.triton import covariance_chain, covariance_cuda, covariance_forward
from bayesmem.ops.triton.covariance_cuts import cut_room, side_by_side
from bayesmem.report.records import Records
from stage_inputs import Stages
from timing import called, in_graph

HEADS, CHUNK = 8, 64
SIZES = [(1, 1024, 128), (1, 2048, 128), (1, 4096, 128), (1, 16384, 128), (1, 65536, 128), (2, 2048, 128)]
SIZES += [(2, 4096, 128), (2, 16384, 128), (4, 4096, 128), (8, 4096, 128), (8, 4096, 64), (4, 4096, 64)]
OTHER_KINDS = [(8, 4096, 128, "late"), (8, 4096, 128, "never"), (1, 16384, 128, "late"), (1, 16384, 128, "never")]
LEFT_OUT = {"alike": 2, "few": 4}
OTHER_KINDS += [(*sizes, 128, kind) for kind in LEFT_OUT for sizes in ((8, 4096), (2, 4096), (1, 16384))]


class Kind(Stages):
    """Inputs of the stages, their retention of a kind."""

    def __init__(self, batch: int, length: int, size: int, kind: str):
        super().__init__(batch, length, HEADS, size, CHUNK)
        if kind in LEFT_OUT:
            self.k[..., size // LEFT_OUT[kind] :] = 0
        elif kind != "mild":
            retention = self.log_retention.view(batch, length, HEADS)
            retention[:, length // 2 if kind == "late" else 0 :] = 0
            self.process_noise = -torch.expm1(2 * self.log_retention)

    def forward(self, keep: bool) -> tuple[Any, ...]:
        """The covariance pass."""
        start = torch.eye(self.size, device=self.k.device).expand(self.shape[0], HEADS, -1, -1).contiguous()
        gates = (self.log_retention, self.process_noise, self.obs_noise, self.floor)
        return covariance_forward.covariance_forward(self.k, *gates, start, self.spans, keep=keep)

    def output(self) -> Tensor:
        """The filter, nothing learned."""
        streams = (self.q, self.k, self.v, self.log_decay, self.obs_noise, self.log_retention)
        *given, retention = (x.view(*self.shape, *x.shape[2:]) for x in streams)
        with torch.no_grad():
            return bayesian_filter(*given, Assumptions(process_noise=PriorMixing(retention)), backend="triton").o


@contextmanager
def cuts(most: Callable[..., int]) -> Iterator[list[Tensor]]:
    """With so many segments at most; the counts of every pass, in their order."""
    seen: list[Tensor] = []

    def room(*sizes: Any) -> tuple[Tensor, Tensor]:
        edge, count = cut_room(*sizes)
        seen.append(count)
        return edge, count

    with (
        patch.object(covariance_forward, "side_by_side", most),
        patch.object(covariance_chain, "side_by_side", most),
        patch.object(covariance_cuda, "cut_room", room),
        patch.object(covariance_chain, "cut_room", room),
    ):
        yield seen


def kernels(call: Callable[[], Any]) -> float:
    """Milliseconds of all kernels of a call."""
    return round(sum(spent(call).values()), 4)


def found_of(count: Tensor) -> dict[str, int]:
    """Segments of the first chain, cuts, those that agreed at once, chains that were mended."""
    if not count.numel():
        return {"segments": 1, "cuts": 0, "agreed": 0, "mended": 0}
    most = count.shape[1] // 2 - 2
    done = count[:, -4]
    agreed = int(count[:, most : 2 * most].sum())
    cut = int((done - 1).clamp(min=0).sum())
    return {"segments": max(int(done[0]), 1), "cuts": cut, "agreed": agreed, "mended": int((count[:, -3] > 0).sum())}


def compared(call: Callable[[], Any]) -> dict[str, Any]:
    """A pass whole and cut."""
    with cuts(lambda *_: 1):
        whole, result = kernels(call), call()
    with cuts(side_by_side) as seen:
        cut, other = kernels(call), call()
        count = found_of(seen[-1])
    return {"whole_ms": whole, "cut_ms": cut, **count, "difference": difference(other, result)}


def main() -> None:
    """Every size and kind."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python benchmarks/chain_cuts.py FILE")
    if not torch.cuda.is_available():
        raise SystemExit("chain_cuts.py times kernels; it needs a GPU.")
    records = Records(Path(sys.argv[1]))
    for batch, length, size, kind in [*((*sizes, "mild") for sizes in SIZES), *OTHER_KINDS]:
        stages = Kind(batch, length, size, kind)
        settings = {"B": batch, "T": length, "H": HEADS, "K": size, "V": size, "kind": kind, "seed": 0}
        rows: dict[str, dict[str, Any]] = {
            "forward": compared(lambda: stages.forward(False)),  # noqa: B023
            "forward kept": compared(lambda: stages.forward(True)),  # noqa: B023
        }
        stages.prepared  # noqa: B018
        rows["reverse chain"] = compared(lambda: stages.run("covariance chain", None))  # noqa: B023
        whole: dict[str, Any] = {}
        for name, most in (("whole", lambda *_: 1), ("cut", side_by_side)):
            with cuts(most):
                whole |= {
                    f"{name}_graph_ms": in_graph(stages.output),
                    f"{name}_called_ms": called(stages.output)["called_ms"],
                }
                whole |= {f"{name}_both_kernels_ms": kernels(stages.filtered)}
                whole |= {f"{name}_both_called_ms": called(stages.filtered)["called_ms"]}
        rows["filter"] = whole
        for name, figures in rows.items():
            records.add("chain_cuts", name, settings, figures)
            print(batch, length, size, kind, name, figures, flush=True)
        del stages
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()

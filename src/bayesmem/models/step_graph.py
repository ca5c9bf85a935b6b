"""One token through all blocks as a CUDA graph: generation without Python between its kernels.

A memory has the same size after every token, so that a step of generation is the same work at the same places every
time. A few steps after a new batch has come, the work is recorded; from then on it is replayed.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesmem.layers import LayerCache

Step = Callable[[Tensor, list[LayerCache]], tuple[Tensor, list[LayerCache]]]
Recorded = tuple[Callable[[], None], tuple[Tensor, list[LayerCache]]]
Record = Callable[[Callable[[], tuple[Tensor, list[LayerCache]]]], Recorded]

PATIENCE = 2  # steps of a kind that run as they are, before one is recorded
KEPT = 2  # recordings, the latest used


def record_cuda(work: Callable[[], tuple[Tensor, list[LayerCache]]]) -> Recorded:
    """What replays ``work`` on a GPU, and what it then fills.

    Autocast's copies of weights are made anew at each replay: kept ones would be freed with the caller's autocast.
    """
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            work()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may go on
            out = work()
        return graph.replay, out
    finally:
        torch.set_autocast_cache_enabled(cached)


class StepGraphs:
    """A model's recorded steps, by batch, dtypes and the places of its weights.

    Caches stay immutable: what a replay reads is copied in and what it wrote is copied out. Weights are read where
    they lie, so that training on changes what is replayed; weights that move are recorded anew.

    Args:
        record: makes the replay of some work.
        devices: kinds of device whose steps are recorded.
    """

    def __init__(self, record: Record = record_cuda, devices: tuple[str, ...] = ("cuda",)):
        self.record = record
        self.devices = devices
        self.replayed = 0
        self._graphs: OrderedDict[Any, _Graph] = OrderedDict()
        self._seen: Counter[Any] = Counter()
        self._refused: set[Any] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of a model, or a model read back, begins without recordings."""
        return StepGraphs, (self.record, self.devices)

    def run(
        self, step: Step, parts: tuple[nn.Module, ...], x: Float[Tensor, "B 1 D"], layers: list[Any]
    ) -> tuple[Tensor, list[LayerCache]] | None:
        """One token of every row by a recording, or ``None`` where the caller has to do it.

        Args:
            step: the work.
            parts: the modules whose weights it reads.
            x: inputs.
            layers: what every block remembers.
        """
        if x.device.type not in self.devices or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        if not all(isinstance(layer, LayerCache) for layer in layers) or _hooked(parts):
            return None
        key = _kind(parts, x, layers)
        graph = self._graphs.get(key)
        if graph is None:
            self._seen[key] += 1
            if self._seen[key] <= PATIENCE or key in self._refused:
                return None
            try:
                graph = _Graph(step, x, layers, self.record)
            except RuntimeError:  # a module that waits for the GPU cannot be recorded, and need not be
                self._refused.add(key)
                return None
            self._graphs[key] = graph
            if len(self._graphs) > KEPT:
                self._graphs.popitem(last=False)
            self._seen.clear()
        self._graphs.move_to_end(key)
        self.replayed += 1
        return graph(x, layers)


class _Graph:
    def __init__(self, step: Step, x: Tensor, layers: list[LayerCache], record: Record):
        self.x = x.clone()
        self.before = [tensor.clone() for tensor in _tensors(layers)]
        given = _filled(layers, self.before)
        self.replay, (self.out, self.layers) = record(lambda: step(self.x, given))
        self.after = _tensors(self.layers)

    def __call__(self, x: Tensor, layers: list[LayerCache]) -> tuple[Tensor, list[LayerCache]]:
        self.x.copy_(x)
        torch._foreach_copy_(self.before, _tensors(layers))
        self.replay()
        fresh = [torch.empty_like(tensor) for tensor in self.after]
        torch._foreach_copy_(fresh, self.after)
        return self.out.clone(), _filled(self.layers, fresh)


def _tensors(layers: list[LayerCache]) -> list[Tensor]:
    return [tensor for layer in layers for tensor in layer.tensors]


def _filled(layers: list[LayerCache], tensors: list[Tensor]) -> list[LayerCache]:
    rest = iter(tensors)
    return [layer.filled(rest) for layer in layers]


def _hooked(parts: tuple[nn.Module, ...]) -> bool:
    """Whether anything listens to a module, which a replay would not call."""
    return any(module._forward_hooks or module._forward_pre_hooks for part in parts for module in part.modules())


def _kind(parts: tuple[nn.Module, ...], x: Tensor, layers: list[LayerCache]) -> tuple[Any, ...]:
    """All that a recording depends on besides the numbers it reads."""
    kind = x.device.type
    return (
        x.device,
        torch.is_inference_mode_enabled(),
        torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None,
        tuple((tensor.shape, tensor.dtype) for tensor in (x, *_tensors(layers))),
        tuple(parameter.data_ptr() for part in parts for parameter in part.parameters()),
    )

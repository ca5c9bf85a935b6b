"""One token through all blocks as a CUDA graph: generation without Python between its kernels.

A memory has the same size after every token, so that a step of generation is the same work at the same places every
time. A few steps after a new batch has come, the work is recorded; from then on it is replayed. What a recording could
not follow (hooks, adapters, weights elsewhere) is not recorded; ``model.steps.enabled = False`` turns all of it off.
"""

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesmem.layers import LayerCache
from bayesmem.ops.triton.device import matmul_precision

Stepped = tuple[Tensor, list[LayerCache]]
Step = Callable[[Tensor, list[LayerCache]], Stepped]
Recorded = tuple[Callable[[], None], Stepped]
Record = Callable[[Callable[[], Stepped], torch.device], Recorded]

PATIENCE = 2  # steps of a kind, one after the other, that run as they are before one is recorded
KEPT = 4  # recordings, the latest used
OWN = ("bayesmem.", "torch.nn.")  # modules that keep nothing from step to step besides their weights
_known: dict[type[nn.Module], bool] = {}


def record_cuda(work: Callable[[], Stepped], device: torch.device) -> Recorded:
    """What replays ``work`` on a GPU, and what it then fills.

    Autocast's copies of weights are made anew at each replay: kept ones would be freed with the caller's autocast.

    Raises:
        RuntimeError: work that waits for the GPU, found before anything is captured where it can be, or too little
            memory.
    """
    cached, watched = torch.is_autocast_cache_enabled(), torch.cuda.get_sync_debug_mode()
    torch.set_autocast_cache_enabled(False)
    with torch.cuda.device(device):
        current, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "a prototype feature"
                torch.cuda.set_sync_debug_mode("error")
            aside.wait_stream(current)
            with torch.cuda.stream(aside):
                work()
            torch.cuda.set_sync_debug_mode(watched)
            current.wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
                out = work()
        finally:
            torch.cuda.set_sync_debug_mode(watched)
            torch.cuda.set_stream(current)  # a capture that fails leaves its own behind
            torch.set_autocast_cache_enabled(cached)

    def replay() -> None:
        with torch.cuda.device(device):
            graph.replay()

    return replay, out


class StepGraphs:
    """A model's recorded steps, by batch, dtypes and the places of its weights.

    Caches stay immutable: what a replay reads is copied in and what it wrote is copied out. Weights are read where
    they lie, so that training on changes what is replayed; weights that move are recorded anew. One thread at a time
    replays; another's steps meanwhile run as they are.

    Args:
        record: makes the replay of some work.
        devices: kinds of device whose steps are recorded.

    Attributes:
        enabled: whether to record and replay; a step that could not be recorded turns it off, with a warning.
        replayed: how many steps were.
    """

    def __init__(self, record: Record = record_cuda, devices: tuple[str, ...] = ("cuda",)):
        self.record = record
        self.devices = devices
        self.enabled = True
        self.replayed = 0
        self._graphs: OrderedDict[Any, _Graph] = OrderedDict()
        self._last: Any = None
        self._count = 0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of a model, or a model read back, begins without recordings."""
        return StepGraphs, (self.record, self.devices)

    def run(
        self, step: Step, parts: tuple[nn.Module, ...], x: Float[Tensor, "B 1 D"], layers: list[Any]
    ) -> Stepped | None:
        """One token of every row by a recording, or ``None`` where the caller has to do it.

        Args:
            step: the work.
            parts: the modules whose weights it reads.
            x: inputs.
            layers: what every block remembers.
        """
        if not self.enabled or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        if x.device.type not in self.devices or (x.is_cuda and torch.cuda.is_current_stream_capturing()):
            return None
        if not all(isinstance(layer, LayerCache) for layer in layers) or not self._lock.acquire(blocking=False):
            return None
        try:
            key = _kind(parts, x, layers)
            graph = None if key is None else self._graphs.get(key) or self._recorded(key, step, parts, x, layers)
            if graph is None:
                return None
            self._graphs.move_to_end(key)
            self.replayed += 1
            return graph(x, layers)
        finally:
            self._lock.release()

    def _recorded(
        self, key: Any, step: Step, parts: tuple[nn.Module, ...], x: Tensor, layers: list[LayerCache]
    ) -> "_Graph | None":
        """A recording, once as many steps of this kind came one after the other."""
        self._last, self._count = key, self._count + 1 if key == self._last else 1
        if self._count <= PATIENCE or not _beside(parts, x):
            return None
        while len(self._graphs) >= KEPT:
            self._graphs.popitem(last=False)
        try:
            self._graphs[key] = _Graph(step, x, layers, self.record)
        except RuntimeError as reason:
            self.enabled = False
            said = str(reason).strip().split("\n")[0]
            warnings.warn(f"generation runs without a CUDA graph, more slowly: {said}", stacklevel=2)
            return None
        return self._graphs[key]


class _Graph:
    def __init__(self, step: Step, x: Tensor, layers: list[LayerCache], record: Record):
        self.x = x.clone()
        self.before = [tensor.clone() for tensor in _tensors(layers)]
        given = _filled(layers, self.before)
        self.replay, (self.out, self.layers) = record(lambda: step(self.x, given), x.device)
        self.after = _tensors(self.layers)

    def __call__(self, x: Tensor, layers: list[LayerCache]) -> Stepped:
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


def _kind(parts: tuple[nn.Module, ...], x: Tensor, layers: list[LayerCache]) -> tuple[Any, ...] | None:
    """All that a recording depends on besides the numbers it reads; ``None`` where it depends on more.

    It is asked at every step, so it walks over the modules as they lie.
    """
    every = torch.nn.modules.module
    if every._global_forward_hooks or every._global_forward_pre_hooks:
        return None
    places: list[int] = []
    choices: list[Any] = []
    rest = list(parts)
    while rest:
        module = rest.pop()
        held = module.__dict__
        if held["_forward_hooks"] or held["_forward_pre_hooks"] or "forward" in held or not _own(type(module)):
            return None
        if "backend" in held:
            choices.append(held["backend"])
        places.extend([one.data_ptr() for one in held["_parameters"].values() if one is not None])
        rest.extend(held["_modules"].values())
    kind = x.device.type
    return (
        x.device,
        torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else None,
        torch.is_inference_mode_enabled(),
        torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None,
        (matmul_precision(), torch.are_deterministic_algorithms_enabled()),
        tuple([(tensor.shape, tensor.dtype) for tensor in (x, *_tensors(layers))]),
        tuple(places),
        tuple(choices),
    )


def _own(kind: type[nn.Module]) -> bool:
    """Whether modules of a class do what it says: no adapter, which has switches of its own."""
    if kind not in _known:
        _known[kind] = kind.__module__.startswith(OWN)
    return _known[kind]


def _beside(parts: tuple[nn.Module, ...], x: Tensor) -> bool:
    """Whether all weights are plain tensors on the device of x."""
    return all(type(one) is nn.Parameter and one.device == x.device for part in parts for one in part.parameters())

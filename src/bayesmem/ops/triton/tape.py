"""What an operator launches, kept by the kinds of its arguments and launched again without the Python in between.

With few heads the GPU waits for the host, which chooses blocks, makes room and binds arguments at every call, and comes
to the same each time. So the second call of a kind is recorded: its launches, and which of their arguments lie in what
came in, in what goes out, or in between. Later calls make all room at once, and launch.

That is right where launches depend on shapes, dtypes, layouts and numbers alone. Whatever else a call does is seen, and
calls of its kind are then made as ever: another operation of torch's than making room or another view of it, a kernel
launched in another way, whole numbers on the device (offsets of packed sequences, which the host reads).
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton import JITFunction

from bayesmem.ops.triton.cuda_launch import clear, current_stream
from bayesmem.ops.triton.launched import watched
from bayesmem.ops.triton.recording import Recording, record, recording, refuse

Launch = Callable[[int, list[Any]], None]  # on a stream, with all arguments as numbers

ALIGNED = 512  # bytes, as torch's allocator does
MOST = 256  # kinds of calls an operator keeps
_seeing = Lock()
_aten = torch.ops.aten
ZEROED = {_aten.zeros, _aten.new_zeros, _aten.zeros_like}
MADE = {_aten.empty, _aten.new_empty, _aten.empty_like, _aten.empty_strided, _aten.new_empty_strided, *ZEROED}
VIEWS = {_aten.view, _aten._unsafe_view, _aten.as_strided, _aten.slice, _aten.select, _aten.transpose, _aten.t}
VIEWS |= {_aten.permute, _aten.expand, _aten.unsqueeze, _aten.squeeze, _aten.detach, _aten.alias}


@dataclass(slots=True)
class Room:
    """Memory made during a call.

    Attributes:
        address: of its first byte.
        size: bytes.
        first, last: the launches that use it.
        root: where its address comes from when the call is made again: an output, or the memory in between.
        place: bytes from there.
    """

    address: int
    size: int
    first: int = -1
    last: int = -1
    root: int = -1
    place: int = 0


class Recorder(Recording, TorchDispatchMode):
    """Sees one call of an operator.

    Args:
        inputs: its tensors.
    """

    def __init__(self, inputs: Sequence[Tensor]):
        super().__init__()
        self.inputs = [(x.data_ptr(), _extent(x)) for x in inputs]
        self.rooms: list[Room] = []
        self.steps: list[tuple[Launch, list[Any], list[tuple[int, Room | int, int]]]] = []
        self.held: list[Tensor] = []  # tables that are neither given nor made

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet in MADE:
            self.rooms.append(Room(made.data_ptr(), _extent(made)))
            if packet in ZEROED and made.numel():
                self.note(partial(clear, self.rooms[-1].size), [made])
        elif packet not in VIEWS:
            refuse(f"{func} is called")
        return made

    def note(self, launch: Launch, args: Iterable[Any]) -> None:
        """A launch; ``launch`` is what makes it again."""
        numbers = list(args)
        moving: list[tuple[int, Room | int, int]] = []
        for at, x in enumerate(numbers):
            if not isinstance(x, Tensor):
                continue
            address, numbers[at] = x.data_ptr(), 0
            if address == 0:
                continue
            room = next((r for r in reversed(self.rooms) if r.address <= address < r.address + r.size), None)
            if room is not None:
                room.first = len(self.steps) if room.first < 0 else room.first
                room.last = len(self.steps)
                moving.append((at, room, address - room.address))
                continue
            given = [i for i, (start, size) in enumerate(self.inputs) if start <= address < start + size]
            if given:
                moving.append((at, given[0], address - self.inputs[given[0]][0]))
            else:
                numbers[at] = address
                self.held.append(x)
        self.steps.append((launch, numbers, moving))


@dataclass(frozen=True, slots=True)
class Tape:
    """A call to be made again.

    Attributes:
        outputs: what makes each output, or ``None``.
        size: bytes of the memory for all that is in between.
        steps: launches, their numbers, and which of those move: their place, the root and the offset from it. Roots are
            the addresses of inputs, of outputs that there are, and of the memory in between.
        held: tables that launches read.
    """

    outputs: tuple[Callable[[], Tensor] | None, ...]
    size: int
    steps: tuple[tuple[Launch, list[Any], tuple[tuple[int, int, int], ...]], ...]
    held: tuple[Tensor, ...]

    def play(self, roots: list[int], device: torch.device) -> Any:
        """Make the call; ``roots`` are the addresses of its inputs."""
        made = [None if make is None else make() for make in self.outputs]
        roots = roots + [x.data_ptr() for x in made if x is not None]
        if self.size:
            between = torch.empty(self.size, dtype=torch.uint8, device=device)
            roots.append(between.data_ptr())
        stream = current_stream(device.index)
        for launch, numbers, moving in self.steps:
            now = numbers.copy()
            for at, root, offset in moving:
                now[at] = roots[root] + offset
            launch(stream, now)
        return tuple(made)


def taped(run: Callable[..., Any]) -> Callable[..., Any]:
    """``run``, an operator's, whose calls on a GPU are recorded and made again."""
    tapes: OrderedDict[tuple[Any, ...], Tape | str | None] = OrderedDict()

    def call(*args: Any) -> Any:
        inputs = [x for x in args if isinstance(x, Tensor)]
        device, roots = inputs[0].device, [x.data_ptr() for x in inputs]
        if not repeatable(device, roots):
            return run(*args)
        key = (device, *[_kind(x) if isinstance(x, Tensor) else x for x in args])
        tape = tapes.get(key, "new")
        if isinstance(tape, Tape):
            return tape.play(roots, device)
        if tape is None:  # it was refused
            return run(*args)
        if tape == "new":  # kernels are compiled
            tapes[key] = "seen"
            if len(tapes) > MOST:
                tapes.popitem(last=False)
            return run(*args)
        made, tapes[key] = _record(run, args, inputs)
        return made

    return call


def repeatable(device: torch.device, roots: Sequence[int]) -> bool:
    """Whether a call with inputs at these addresses may be made from a tape, or recorded for one."""
    if device.type != "cuda" or recording() is not None or watched():
        return False
    return torch.cuda.current_device() == device.index and not any(root & 15 for root in roots)


def _record(run: Callable[..., Any], args: tuple[Any, ...], inputs: list[Tensor]) -> tuple[Any, Tape | str | None]:
    """What the call gives, and its tape: none where it cannot be made again, ``seen`` where the next may be told of."""
    places = sorted((x.data_ptr(), x.data_ptr() + _extent(x)) for x in inputs if x.numel())
    if any(after < end for (_, end), (after, _) in pairwise(places)):
        return run(*args), "seen"  # which of two inputs an address belongs to would not be known
    if any(not x.dtype.is_floating_point for x in inputs):
        return run(*args), None
    recorder = Recorder(inputs)
    record(recorder)
    try:
        with recorder, _other_launches_seen():
            made = run(*args)
    finally:
        record(None)
    return made, _tape(recorder, made)


@contextmanager
def _other_launches_seen() -> Iterator[None]:
    """Refuse where Triton's own way of launching is gone; one thread at a time, others meanwhile launch as ever."""
    with _seeing:
        launch = JITFunction.run

        def seen(*args: Any, **options: Any) -> Any:
            refuse("a kernel is launched in Triton's own way")
            return launch(*args, **options)

        JITFunction.run = seen
        try:
            yield
        finally:
            JITFunction.run = launch


def _extent(x: Tensor) -> int:
    """Bytes from its first number to its last."""
    if x.numel() == 0:
        return 0
    return x.element_size() * (1 + sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True)))


def _kind(x: Tensor) -> tuple[Any, ...]:
    return x.dtype, x.shape, x.is_contiguous() or x.stride()


def _tape(recorder: Recorder, made: Any) -> Tape | None:
    if recorder.refused or not isinstance(made, tuple):
        return None
    outputs: list[Callable[[], Tensor] | None] = []
    root = len(recorder.inputs)
    for x in made:
        if x is None:
            outputs.append(None)
            continue
        size = x.numel() * x.element_size()
        if size:
            room = next((r for r in reversed(recorder.rooms) if r.address == x.data_ptr() and r.size == size), None)
            if room is None or room.root >= 0 or not x.is_contiguous():
                return None  # what goes out was not made here, or goes out twice, or is laid out in its own way
            room.root = root
        outputs.append(partial(torch.empty, tuple(x.shape), dtype=x.dtype, device=x.device))
        root += 1
    between = [room for room in recorder.rooms if room.root < 0 and room.first >= 0]
    size = pack(between)
    for room in between:
        room.root = root
    steps = [
        (
            launch,
            numbers,
            tuple((at, r.root, r.place + n) if isinstance(r, Room) else (at, r, n) for at, r, n in moving),
        )
        for launch, numbers, moving in recorder.steps
    ]
    return Tape(tuple(outputs), size, tuple(steps), tuple(recorder.held))


def pack(rooms: Sequence[Room]) -> int:
    """Place each where no other lies that is used while it is; the bytes of all."""
    placed: list[Room] = []
    for room in sorted(rooms, key=lambda r: -r.size):
        at = 0
        for other in sorted(placed, key=lambda r: r.place):
            apart = other.last < room.first or room.last < other.first
            if not apart and other.place < at + room.size and at < other.place + other.size:
                at = -(-(other.place + other.size) // ALIGNED) * ALIGNED
        room.place = at
        placed.append(room)
    return max((room.place + room.size for room in placed), default=0)

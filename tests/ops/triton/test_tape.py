"""Calls made again from a tape give what they give otherwise: kernels of this test's own, on memory of the CPU."""

import ctypes
from functools import partial

import numpy as np
import pytest
import torch

from bayesmem.ops import Assumptions, PriorMixing, bayesian_filter
from bayesmem.ops.triton import tape
from bayesmem.ops.triton.recording import recording, refuse
from bayesmem.ops.triton.tape import Room, Tape, pack, taped

GPU = torch.cuda.is_available()
TABLE = torch.tensor([5.0, 6.0, 7.0, 8.0])


def seen(address, count):
    return np.frombuffer((ctypes.c_float * count).from_address(address), dtype=np.float32)


class Kernel:
    """``out = x + scale y``; what it is launched with is an address, or a tensor that has one."""

    def __init__(self):
        self.launches = []

    def __call__(self, *args):
        self.again(0, [x.data_ptr() if isinstance(x, torch.Tensor) else x for x in args])
        if (recorder := recording()) is not None:
            recorder.note(self.again, args)

    def again(self, stream, numbers):
        x, y, out, scale, count = numbers
        self.launches.append((stream, tuple(numbers)))
        seen(out, count)[:] = seen(x, count) + scale * seen(y, count)


@pytest.fixture
def kernel(monkeypatch):
    """With a CPU in place of a GPU."""
    monkeypatch.setattr(tape, "repeatable", lambda device, roots: recording() is None)
    monkeypatch.setattr(tape, "current_stream", lambda device: 7)
    monkeypatch.setattr(tape, "clear", lambda size, stream, numbers: ctypes.memset(numbers[0], 0, size))
    return Kernel()


def run(kernel, calls, x, y, by, more=None):
    """``(x + by y, None, (x + y) + by (TABLE + (x + y)) [1:] ...)``, with memory in between, some of it zero."""
    calls.append(by)
    count = x.numel()
    first, second, zero = torch.empty_like(x), x.new_empty(x.shape), x.new_zeros(x.shape)
    kernel(x, y, first, 1, count)
    kernel(first, TABLE, second, 1, 4)
    kernel(first[4:], zero[4:], second[4:], by, count - 4)
    out, last = torch.empty_like(first), x.new_empty(count // 2, 2)
    kernel(x, y, out, by, count)
    third = torch.empty_like(x)
    kernel(first, second, third, by, count)
    kernel(third, zero, last, 3, count)
    return out, None, last.view(-1), x.new_empty(0, 3), x.new_empty(0) if more is None else more.new_empty(1)


def expected(x, y, by):
    first = x + y
    second = first.clone()
    second[:4] += TABLE
    return x + by * y, first + by * second


def inputs(count=12, seed=0):
    source = torch.Generator().manual_seed(seed)
    return [torch.randn(count, generator=source) for _ in range(2)]


def test_later_calls_are_made_from_the_tape(kernel):
    calls = []
    call = taped(partial(run, kernel, calls))
    addresses = set()
    kept = []
    for seed in range(6):
        x, y = inputs(seed=seed)
        out, none, last, *empty = call(x, y, 2.0)
        assert none is None and [one.shape for one in empty] == [(0, 3), (0,)]
        for found, wanted in zip((out, last), expected(x, y, 2.0), strict=True):
            assert torch.allclose(found, wanted)
        kept += [out, last]
        addresses |= {out.data_ptr(), last.data_ptr()}
    assert len(calls) == 2  # compiled at the first, recorded at the second
    assert len(addresses) == 12  # what goes out is nobody else's
    assert [stream for stream, _ in kernel.launches] == [0] * 12 + [7] * 24
    plain, again = kernel.launches[:6], kernel.launches[-6:]
    assert [numbers[3:] for _, numbers in plain] == [numbers[3:] for _, numbers in again]


def test_other_kinds_are_other_tapes(kernel):
    calls = []
    call = taped(partial(run, kernel, calls))
    kinds = [(inputs(12), 2.0), (inputs(20), 2.0), (inputs(12), 3.0)]
    for _ in range(4):
        for (x, y), by in kinds:
            assert torch.allclose(call(x, y, by)[0], expected(x, y, by)[0])
    assert calls == [2.0, 2.0, 3.0] * 2
    x, y = inputs(24)
    assert torch.allclose(call(x[::2], y[:12], 2.0, y)[0], x[:12] + 2 * y[:12])  # a layout of its own, with the default
    assert len(calls) == 7


def test_inputs_that_lie_in_one_another_are_recorded_another_time(kernel):
    calls = []
    call = taped(partial(run, kernel, calls))
    x, y = inputs()
    for _ in range(3):
        assert torch.allclose(call(x, x, 2.0)[0], 3 * x)
    for seed in range(3):
        x, y = inputs(seed=seed)
        assert torch.allclose(call(x, y, 2.0)[0], x + 2 * y)
        assert torch.allclose(call(x, x, 2.0)[0], 3 * x)
    assert len(calls) == 4


def other_operation(kernel, x):
    out = torch.empty_like(x)
    kernel(x, x + 1, out, 1, x.numel())
    return (out,)


def other_launch(kernel, x):
    out = torch.empty_like(x)
    kernel.again(0, [x.data_ptr(), x.data_ptr(), out.data_ptr(), 1, x.numel()])
    refuse("a test says so")
    return (out,)


def returns_what_came_in(kernel, x):
    return (x,)


def returns_one_twice(kernel, x):
    out = torch.zeros_like(x)
    return out, out.view(2, -1)


@pytest.mark.parametrize("run", [other_operation, other_launch, returns_what_came_in, returns_one_twice])
def test_what_cannot_be_made_again_is_made_as_ever(kernel, run):
    calls = []

    def noted(x):
        calls.append(x)
        return run(kernel, x)

    call = taped(noted)
    for seed in range(4):
        x = inputs(seed=seed)[0]
        assert all(torch.equal(a.view(-1), b.view(-1)) for a, b in zip(call(x), run(kernel, x), strict=True))
    assert len(calls) == 4


def test_offsets_on_the_device_are_read_every_time(kernel):
    calls = []

    def noted(x, offsets):
        calls.append(offsets.tolist())
        return (torch.zeros_like(x),)

    call = taped(noted)
    for last in (3, 4, 5):
        call(inputs()[0], torch.tensor([0, last]))
    assert calls == [[0, 3], [0, 4], [0, 5]]


def test_kinds_that_are_kept_are_bounded(kernel, monkeypatch):
    monkeypatch.setattr(tape, "MOST", 3)
    calls = []
    call = taped(partial(run, kernel, calls))
    for count in (8, 12, 16, 20):
        for _ in range(3):
            call(*inputs(count), 2.0)
    assert len(calls) == 8
    call(*inputs(8), 2.0)
    assert len(calls) == 9


def test_memory_in_between_is_shared_by_what_is_not_there_together():
    rooms = [Room(0, 1000, 0, 2), Room(0, 3000, 1, 3), Room(0, 2000, 3, 4), Room(0, 500, 5, 5), Room(0, 700, 0, 5)]
    size = pack(rooms)
    assert size < sum(room.size for room in rooms)
    for i, a in enumerate(rooms):
        assert a.place % tape.ALIGNED == 0 and a.place + a.size <= size
        for b in rooms[:i]:
            together = a.first <= b.last and b.first <= a.last
            assert not together or a.place + a.size <= b.place or b.place + b.size <= a.place
    assert pack([]) == 0


def test_a_cpu_and_odd_addresses_are_not_repeated():
    assert not tape.repeatable(torch.device("cpu"), [512])
    if GPU:
        assert tape.repeatable(torch.device("cuda", torch.cuda.current_device()), [512, 1024])
        assert not tape.repeatable(torch.device("cuda", torch.cuda.current_device()), [512, 1028])


@pytest.mark.skipif(not GPU, reason="tapes are for GPUs")
@pytest.mark.parametrize("covariance", ["full", "reset"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("batch", "length", "key_dim"), [(1, 1024, 128), (1, 4096, 64), (2, 300, 32)])
def test_filters_and_gradients_are_the_same_to_the_bit(batch, length, key_dim, dtype, covariance, monkeypatch):
    def call(seed):
        source = torch.Generator("cuda").manual_seed(seed)

        def rand(*shape):
            return torch.randn(*shape, generator=source, device="cuda")

        q, k, v = (rand(batch, length, 4, key_dim).to(dtype) / key_dim**0.5 for _ in range(3))
        gates = [-0.1 * rand(batch, length, 4).sigmoid() for _ in range(2)]
        given = [x.requires_grad_() for x in (q, k, v, *gates, 0.1 + rand(batch, length, 4).sigmoid())]
        *streams, decay, retention, noise = given
        noise_model = PriorMixing(retention if covariance == "full" else None)
        out = bayesian_filter(*streams, decay, noise, Assumptions(covariance, noise_model), outputs=("final_belief",))
        made = [out.o, out.final_belief.mean] + ([out.final_belief.cov] if covariance == "full" else [])
        weights = [rand(*x.shape).to(x.dtype) for x in made]
        return [*made, *(x for x in torch.autograd.grad(made, given, weights, allow_unused=True) if x is not None)]

    played = []
    play = Tape.play
    monkeypatch.setattr(Tape, "play", lambda self, *given: played.append(self) or play(self, *given))
    found = [call(seed) for seed in range(5)]
    assert played or dtype == torch.float32
    monkeypatch.setattr(tape, "repeatable", lambda device, roots: False)
    for seed, one in enumerate(found):
        for x, y in zip(one, call(seed), strict=True):
            assert torch.equal(x, y)

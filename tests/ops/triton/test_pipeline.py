"""Covariance and mean piece by piece: every chunk once, and nothing changed by it."""

import pytest
import torch

from bayesmem.ops.fused import filter_op
from bayesmem.ops.triton import pipeline
from bayesmem.ops.triton.device import Device
from bayesmem.ops.triton.spans import pieces_of, spans_of
from ops.cases import Design
from ops.test_fused import CHUNK, DEVICE, assert_filters, prepared

pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
FULL = Design("full", "prior_mixing")
PACKED = torch.tensor([0, 1, 16, 35, 83])


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
@pytest.mark.parametrize("room", [0, 11])
def test_pieces_hold_every_chunk_once(parts, room):
    spans = spans_of(tuple(PACKED.tolist()), CHUNK, DEVICE, room=room)
    pieces = pieces_of(spans, parts)
    assert len(pieces) == min(parts, 3)  # of the longest sequence's three chunks
    chunks = torch.cat([piece.order for piece in pieces]).tolist()
    assert sorted(chunks) == list(range(spans.chunks))
    assert spans.chunks == max(7, room)
    first, owner = spans.chunk_first.tolist(), spans.chunk_seq.tolist()
    begin = 0
    for piece in pieces:
        assert piece.begin == begin and piece.tokens(spans) == (begin * CHUNK, piece.count * CHUNK)
        assert all(begin <= c - first[owner[c]] < begin + piece.count for c in piece.order.tolist() if c < 7)
        begin += piece.count


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_the_filter_in_pieces_is_the_float64_form_and_its_gradients(monkeypatch, packed):
    monkeypatch.setattr("bayesmem.ops.fused.filter.parts_of", lambda *_: 3)
    sizes = {"batch": 1, "heads": 1, "length": 83, "rows": 4} if packed else {"batch": 2, "heads": 2, "length": 45}
    case = prepared(FULL, torch.float32, groups=1, key_dim=7, value_dim=5, **sizes)
    assert_filters(case, torch.float32, PACKED if packed else None)


def test_pieces_are_taken_where_multiprocessors_would_stand_idle(monkeypatch):
    monkeypatch.setattr(pipeline, "chosen_cluster", lambda _: 1)
    monkeypatch.setattr(pipeline, "limits", lambda _: Device((9, 0), 132, 232448))

    def parts(sequences: int, length: int, heads: int = 8, key_dim: int = 128) -> int:
        k = torch.empty(sequences * length, heads, key_dim, device="meta")
        bounds = tuple(range(0, sequences * length + 1, length))
        k = torch.Tensor.as_subclass(k, _OnGpu)
        return pipeline.parts_of(k, heads, spans_of(bounds, 64, torch.device("cpu")))

    assert parts(8, 16384) == parts(4, 8192) == pipeline.PARTS
    assert parts(32, 8192) == 1  # every multiprocessor has a chain
    assert parts(8, 4096) == 4 and parts(8, 4090) == 3
    assert parts(8, 4096, key_dim=64) == 2  # a step is shorter
    assert parts(2, 8192) == 2 and parts(2, 4096) == 1  # the host would be longer about it than the device
    monkeypatch.setattr(pipeline, "chosen_cluster", lambda _: None)
    assert parts(8, 8192) == 1  # the Triton chain is too slow to be worth it


class _OnGpu(torch.Tensor):
    """Says that it lies on a GPU."""

    device = torch.device("cuda", 0)


@pytest.mark.parametrize(("dtype", "want_var"), [(torch.float32, True), (torch.bfloat16, False)], ids=str)
def test_the_operator_is_sound(bfloat16, dtype, want_var):
    case = prepared(FULL, dtype, heads=1, batch=1, length=17, key_dim=4, value_dim=3)
    x = case.tensors
    row = lambda name: x[name][0].contiguous().requires_grad_()  # noqa: E731
    gates = [row("log_decay"), row("log_retention"), 0.1 + row("obs_noise").detach(), row("obs_noise")]
    start = [x["mean"].requires_grad_(), (0.5 * (x["cov"] + x["cov"].mT)).requires_grad_()]
    floor = torch.zeros(1, device=DEVICE)
    given = (row("q"), row("k"), row("v"), *gates, floor, *start, None, 1, CHUNK, want_var, True, True)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(filter_op.dispatched, given, test_utils=tests)

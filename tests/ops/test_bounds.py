"""Offsets of packed sequences are read from a GPU once, and anew when they change."""

import pytest
import torch

from bayesmem.ops import bounds
from bayesmem.ops.bounds import KEPT, bounds_of


class OnGpu(torch.Tensor):
    """Says that it lies on a GPU, and counts how often it is read."""

    device = torch.device("cuda", 0)
    reads = 0

    def tolist(self):
        OnGpu.reads += 1
        return self.as_subclass(torch.Tensor).tolist()


@pytest.fixture
def offsets(monkeypatch):
    monkeypatch.setattr(OnGpu, "reads", 0)
    monkeypatch.setattr(bounds, "_read", type(bounds._read)())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return torch.tensor([0, 2, 5, 7, 9, 12]).as_subclass(OnGpu)


def test_they_are_read_once(offsets):
    assert bounds_of(offsets) == bounds_of(offsets) == (0, 2, 5, 7, 9, 12)
    assert OnGpu.reads == 1


def test_a_change_in_place_is_seen(offsets):
    bounds_of(offsets)
    offsets[1] = 3
    assert bounds_of(offsets) == (0, 3, 5, 7, 9, 12)


def test_views_of_one_address_are_told_apart(offsets):
    assert bounds_of(offsets[:3]) == (0, 2, 5)
    assert bounds_of(offsets[::2]) == (0, 5, 9)
    assert bounds_of(offsets.view(torch.int32)[:3]) == (0, 0, 2)


def test_a_graphs_capture_reads_and_so_refuses(offsets, monkeypatch):
    """Replayed, it would not see the offsets change."""
    bounds_of(offsets)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    bounds_of(offsets)
    assert OnGpu.reads == 2


def test_inference_tensors_tell_of_no_change(offsets):
    with torch.inference_mode():
        mine = torch.tensor([0, 4]).as_subclass(OnGpu)
        bounds_of(mine)
        mine[1] = 5
        assert bounds_of(mine) == (0, 5)


def test_few_are_kept(offsets):
    for stop in range(KEPT + 2):
        bounds_of(torch.tensor([0, stop]).as_subclass(OnGpu))
    assert len(bounds._read) == KEPT

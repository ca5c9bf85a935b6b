"""The covariance's reverse chain cut into segments: the same as in one piece, and only where it pays."""

import pytest
import torch

from bayesmem.ops.triton import covariance_segments, mean_chain
from bayesmem.ops.triton.carry import leaving
from bayesmem.ops.triton.covariance_segments import CUTS, chain_segments
from bayesmem.ops.triton.segments import segment_chunks
from bayesmem.ops.triton.spans import dense_spans
from ops import test_fused as fused
from ops.triton import test_covariance_backward as backward
from ops.triton.test_covariance_forward import DEVICE

PROCESSORS = 132


@pytest.mark.parametrize("case", ["reset", "static", "float16"])
def test_backward_is_that_of_the_float64_form(case, monkeypatch):
    taken = []

    def spied(gathered, transition, d_final_cov, segments, both):
        taken.append(segments)
        return leaving(gathered, transition, d_final_cov, segments, both)

    monkeypatch.setattr(covariance_segments, "CUTS", (backward.CHUNK, 2))
    monkeypatch.setattr(covariance_segments, "leaving", spied)
    backward.test_the_kernels_have_the_gradients_of_the_float64_form(case)
    assert len(taken) == 1


# Chunks made room for but without tokens compute on whatever memory holds, and store nothing.
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
def test_the_filter_does_not_show_its_cuts(monkeypatch):
    """Packed sequences of unequal length, all outputs and gradients, every pass cut."""
    monkeypatch.setattr(covariance_segments, "CUTS", (fused.CHUNK, 2))
    monkeypatch.setattr(mean_chain, "CUTS", (fused.CHUNK, 2))
    sizes = {"heads": 1, "key_dim": 5, "value_dim": 7, "length": 51, "rows": 4}
    case = fused.prepared(fused.DESIGNS[0], torch.float32, **sizes)
    fused.assert_filters(case, torch.float32, fused.PACKED)


@pytest.mark.parametrize(
    ("counts", "heads", "chunks"),
    [
        ((1024,), 8, 64),  # 16 segments
        ((1024,), 16, 128),  # 8
        ((1024,), 32, None),  # 4 would be too few
        ((256,), 8, 32),  # 8: none is shorter
        ((128,), 8, None),
        ((1024, 20, 20), 8, 74),  # 14 of the long one, the others whole
        ((1024,) * 16, 1, 128),
        ((1024,) * 100, 1, None),
    ],
)
def test_cuts_fill_the_processors_and_no_more(counts, heads, chunks):
    least, parts = CUTS
    size = segment_chunks(counts, heads, PROCESSORS, least // 64, parts)
    assert size == chunks
    if size is not None:
        assert heads * sum(-(-count // size) for count in counts) <= PROCESSORS


def test_many_sequences_and_large_keys_stay_whole():
    def cuts(heads: int, key_dim: int, length: int) -> bool:
        final_cov, spans = torch.empty(1, heads, key_dim, key_dim, device=DEVICE), dense_spans(1, length, 64, DEVICE)
        return chain_segments(final_cov, spans, "tf32x3", None) is not None

    assert cuts(8, 64, 65536) and not cuts(8, 256, 65536)
    assert not cuts(67, 64, 65536) and not cuts(8, 64, 8192)

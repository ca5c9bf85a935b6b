"""The covariance pass cut into segments: the same as in one piece, forward and backward, and only where it pays."""

import pytest
import torch

from bayesmem.ops.triton import covariance_backward, covariance_segments, mean_chain
from bayesmem.ops.triton.carry import leaving
from bayesmem.ops.triton.covariance_forward import covariance_forward
from bayesmem.ops.triton.covariance_segments import FORWARD_CUTS, forward_segments, segmented_forward
from bayesmem.ops.triton.segments import cut, segment_chunks
from bayesmem.ops.triton.spans import dense_spans, spans_of
from ops import test_fused as fused
from ops.triton import test_covariance_backward as backward
from ops.triton import test_covariance_forward as forward

PROCESSORS = 132
CASES = [
    ((70, 7, 33), 1, 1, 24, "hard", torch.float16),
    ((1, 66), 2, 1, 33, "floored", torch.bfloat16),
]


@pytest.mark.parametrize(("lengths", "heads", "groups", "key_dim", "kind", "dtype"), CASES)
def test_forward_is_the_chunk_form(lengths, heads, groups, key_dim, kind, dtype):
    x = forward.inputs(lengths, heads, groups, key_dim, dtype, kind)
    bounds = (0, *torch.tensor(lengths).cumsum(0).tolist())
    # Room for a chunk more than there are, as packed sequences have it; A in halves, as for large keys.
    spans = spans_of(bounds, forward.CHUNK, forward.DEVICE, sum(-(-n // forward.CHUNK) for n in lengths) + 1)
    segments = cut(spans, heads, PROCESSORS, forward.CHUNK, 2)
    assert segments is not None and len(segments.rounds) == -(-max(lengths) // forward.CHUNK) - 1
    tuning = {"transition": {"BH": 16}} if key_dim == 24 else None
    found = segmented_forward(*x.values(), spans, segments, tuning=tuning)
    for name, actual, expected in zip(forward.NAMES, forward.wide(found), forward.reference(x, lengths), strict=True):
        error = (actual[: len(expected)].double() - expected).norm() / expected.norm()
        assert error < forward.TOLERANCE, f"{name}: {error:.2e}"


@pytest.mark.parametrize("case", ["reset", "static", "float16"])
def test_backward_is_that_of_the_float64_form(case, monkeypatch):
    taken = []

    def spied(gathered, transition, d_final_cov, segments, both):
        taken.append(segments)
        return leaving(gathered, transition, d_final_cov, segments, both)

    monkeypatch.setattr(covariance_segments, "BACKWARD_CUTS", (backward.CHUNK, 2))
    monkeypatch.setattr(covariance_backward, "leaving", spied)
    backward.test_the_kernels_have_the_gradients_of_the_float64_form(case)
    assert len(taken) == 1


def test_few_keys_told_often_are_no_evidence_about_the_others():
    """Three keys first, and J 1e5 along them; then other keys, which those said nothing about."""
    tokens, key_dim = 96, 16
    x = forward.inputs((tokens,), 1, 1, key_dim, torch.float32, "static")
    x["k"][: tokens // 2] = x["k"][:3].repeat(tokens, 1, 1)[: tokens // 2]
    x["obs_noise"] = torch.full_like(x["obs_noise"], 1e-4)
    spans = dense_spans(1, tokens, forward.CHUNK, forward.DEVICE)
    segments = cut(spans, 1, PROCESSORS, forward.CHUNK, 2)
    assert segments is not None
    found = segmented_forward(*x.values(), spans, segments)
    whole = covariance_forward(**x, spans=spans)
    made = (forward.wide(found), forward.wide(whole), forward.reference(x, (tokens,)))
    for name, actual, plain, expected in zip(forward.NAMES, *made, strict=True):
        error, known = ((y.double() - expected).norm() / expected.norm() for y in (actual, plain))
        assert error < max(3 * known, forward.TOLERANCE), f"{name}: {error:.2e} cut, {known:.2e} whole"


# Chunks made room for but without tokens compute on whatever memory holds, and store nothing.
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
def test_the_filter_does_not_show_its_cuts(monkeypatch):
    """Packed sequences of unequal length, all outputs and gradients, every pass cut."""
    monkeypatch.setattr(covariance_segments, "FORWARD_CUTS", (fused.CHUNK, 2))
    monkeypatch.setattr(covariance_segments, "BACKWARD_CUTS", (fused.CHUNK, 2))
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
        ((256,), 8, 24),  # 11: none is shorter
        ((128,), 8, None),
        ((1024, 20, 20), 8, 74),  # 14 of the long one, the others whole
        ((1024,) * 16, 1, 128),
        ((1024,) * 100, 1, None),
    ],
)
def test_cuts_fill_the_processors_and_no_more(counts, heads, chunks):
    least, parts = FORWARD_CUTS
    size = segment_chunks(counts, heads, PROCESSORS, least // 64, parts)
    assert size == chunks
    if size is not None:
        assert heads * sum(-(-count // size) for count in counts) <= PROCESSORS


def test_short_or_many_sequences_and_large_keys_stay_whole():
    long, short = (dense_spans(1, length, 64, forward.DEVICE) for length in (65536, 4096))
    assert forward_segments(torch.empty(0, 8, 128, device=forward.DEVICE), 8, long) is not None
    assert forward_segments(torch.empty(0, 8, 256, device=forward.DEVICE), 8, long) is None
    assert forward_segments(torch.empty(0, 8, 128, device=forward.DEVICE), 64, long) is None
    assert forward_segments(torch.empty(0, 8, 128, device=forward.DEVICE), 8, short) is None

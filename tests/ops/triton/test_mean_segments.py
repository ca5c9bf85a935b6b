"""The mean pass cut into segments: the same as in one piece, forward and backward."""

import pytest
import torch

from bayesmem.ops.triton import mean_chain
from ops.triton import test_mean as mean


@pytest.mark.parametrize(
    ("case", "dtype", "whole"),
    [
        ("undecayed", torch.float32, True),
        ("padded", torch.float16, False),
    ],
    ids=str,
)
def test_the_cut_passes_are_the_float64_form_and_its_gradients(case, dtype, whole, monkeypatch):
    cuts = []

    def counted(*given):
        cuts.append(cut(*given))
        return cuts[-1]

    cut = mean_chain.cut
    monkeypatch.setattr(mean_chain, "CUTS", (16, 2))
    monkeypatch.setattr(mean_chain, "cut", counted)
    mean.check(dtype=dtype, whole=whole, **mean.CASES[case])
    assert len(cuts) == 2 and all(made is not None and made.rounds for made in cuts)

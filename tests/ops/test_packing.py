"""Edge cases of packed rows; that packed is separate, for every design, is in test_conformance."""

import pytest
import torch

from bayesmem.ops import Backend
from ops.cases import DESIGNS, Design, assert_close, assert_same, fields, label, make_case

DEFAULT = Design("full", "prior_mixing")


@pytest.mark.parametrize("backend", ["auto", "recurrent", "chunk"])
@pytest.mark.parametrize("outputs", [(), ("predictive_var",), ("final_belief",)], ids=lambda names: "-".join(names))
@pytest.mark.parametrize("design", DESIGNS, ids=label)
def test_what_is_asked_for_comes_back_at_any_length(design: Design, outputs: tuple[str, ...], backend: str):
    """A packed row may hold single tokens, which ``auto`` filters by the token loop, beside longer runs."""
    case = make_case(design, length=8, rows=4)
    bounds = torch.tensor([0, 1, 4, 5, 8])
    some, every = case.run(backend, outputs=outputs, cu_seqlens=bounds), case.run("recurrent", cu_seqlens=bounds)
    for name, field in fields(some).items():
        assert_close(field, fields(every)[name], 1e-9, name)
    assert (some.predictive_var is not None) == ("predictive_var" in outputs)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_one_sequence_packed_is_the_row(dtype: torch.dtype):
    case = make_case(DEFAULT, length=9)
    packed = case.run(Backend("chunk", 4), cu_seqlens=torch.tensor([0, 9], dtype=dtype))
    assert_same(packed, case.run(Backend("chunk", 4)))


def test_single_tokens_packed_are_a_batch_of_single_tokens():
    case = make_case(DEFAULT, length=6, rows=6)
    turned = case.with_(**{name: x.transpose(0, 1) for name, x in case.tensors.items() if x.shape[:2] == (1, 6)})
    packed, batch = case.run("auto", cu_seqlens=torch.arange(7)), turned.run("auto")
    for name, field in fields(batch).items():
        found = fields(packed)[name]
        assert_close(found, field if name in ("mean", "cov") else field.transpose(0, 1), 1e-12, name)


def test_beliefs_come_back_in_the_order_of_the_sequences():
    """Long and short in turn, so that sorting by length would show."""
    lengths = [9, 1, 5, 2, 8, 1]
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    case = make_case(DEFAULT, length=sum(lengths), rows=6)
    packed = case.run("chunk", cu_seqlens=bounds).final_belief
    for row, (start, stop) in enumerate(zip(bounds.tolist(), bounds.tolist()[1:], strict=False)):
        alone = case.between(start, stop).rows(row, row + 1).run("chunk").final_belief
        assert_close(packed.mean[row], alone.mean[0], 1e-12)
        assert_close(packed.cov[row], alone.cov[0], 1e-12)

"""Second rung: the chunk form against the token loop, in float64, over awkward lengths and chunks."""

import pytest
import torch

from bayesmem.ops import Backend
from ops.cases import DESIGNS, Design, assert_same, each_design, label, make_case

DEFAULT = Design("full", "prior_mixing")
# Chunk length, then sequence lengths: 1, C - 1, C, C + 1 and primes.
LENGTHS = [(1, 1), (1, 5), (4, 1), (4, 3), (4, 4), (4, 5), (4, 13), (5, 23), (7, 11), (64, 17)]


@pytest.mark.parametrize(("size", "length"), LENGTHS)
@pytest.mark.parametrize(("design", "channels"), each_design(), ids=label)
def test_chunk_is_the_token_loop(design: Design, channels: bool, size: int, length: int):
    case = make_case(design, channels=channels, length=length, key_dim=3, value_dim=5, seed=length)
    assert_same(case.run(Backend("chunk", size)), case.run("recurrent"))


@pytest.mark.parametrize("backend", ["chunk", "auto"])
@pytest.mark.parametrize("length", [1, 33, 67])
@pytest.mark.parametrize("design", DESIGNS, ids=label)
def test_default_chunks(design: Design, length: int, backend: str):
    case = make_case(design, length=length, heads=1)
    assert_same(case.run(backend), case.run("recurrent"))


SHAPES = {
    "grouped": {"batch": 2, "groups": 2, "heads": 6},
    "wide-values": {"heads": 1, "value_dim": 512},
    "one-channel": {"key_dim": 1, "value_dim": 3},
    "one-value": {"key_dim": 6, "value_dim": 1},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("design", "channels"), each_design(), ids=label)
def test_chunk_is_the_token_loop_at_every_shape(design: Design, channels: bool, shape: str):
    case = make_case(design, channels=channels, length=9, **SHAPES[shape])
    assert_same(case.run(Backend("chunk", 4)), case.run("recurrent"))


@pytest.mark.parametrize("mixed", ["log_decay", "log_retention"])
@pytest.mark.parametrize("covariance", ["full", "diagonal", "isotropic", "reset", "steady_state"])
def test_one_decay_per_head_and_the_other_per_channel(covariance: str, mixed: str):
    design = Design(covariance, "prior_mixing")
    case = make_case(design, channels=True)
    case = case.with_(**{mixed: make_case(design).tensors[mixed]})
    assert_same(case.run(Backend("chunk", 3)), case.run("recurrent"))


@pytest.mark.parametrize("mixed", ["log_decay", "variance"])
@pytest.mark.parametrize("covariance", ["full", "diagonal", "isotropic"])
def test_decay_and_added_noise_of_unlike_kinds(covariance: str, mixed: str):
    design = Design(covariance, "additive")
    case = make_case(design, channels=True)
    case = case.with_(**{mixed: make_case(design).tensors[mixed]})
    assert_same(case.run(Backend("chunk", 3)), case.run("recurrent"))


@pytest.mark.parametrize("outputs", [(), ("predictive_var",), ("log_evidence",), ("final_belief",)])
@pytest.mark.parametrize("design", [*DESIGNS[:4], Design("reset", "prior_mixing")], ids=label)
def test_asking_for_less_changes_nothing(design: Design, outputs: tuple[str, ...]):
    """Of the fields asked for each is the same, and the others are not there."""
    case = make_case(design)
    some, every = case.run(Backend("chunk", 3), outputs=outputs), case.run(Backend("chunk", 3))
    torch.testing.assert_close(some.o, every.o, rtol=1e-13, atol=1e-13)
    for name in design.outputs:
        assert (getattr(some, name) is not None) == (name in outputs)
    for name in set(outputs) - {"final_belief"}:
        torch.testing.assert_close(getattr(some, name), getattr(every, name), rtol=1e-13, atol=1e-13)


def test_inputs_need_not_be_contiguous_and_stay_as_they_are():
    case = make_case(DEFAULT, batch=2)
    turned = case.with_(**{name: x.transpose(0, 1).contiguous().transpose(0, 1) for name, x in case.tensors.items()})
    before = {name: x.clone() for name, x in turned.tensors.items()}
    assert_same(turned.run(Backend("chunk", 3)), case.run(Backend("chunk", 3)))
    for name, x in turned.tensors.items():
        assert torch.equal(x, before[name])

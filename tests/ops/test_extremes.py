"""Long sequences, hard resets and strong decays in float32, against float64."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bayesmem.ops import Assumptions, Backend, Discount
from bayesmem.ops.decays import segment_ratios
from ops.cases import BACKENDS, CARRIED, DESIGNS, Case, Design, each_design, fields, label, make_case

LONG = 16_384
FORGOTTEN = 400  # tokens, at decays of 0.9, after which nothing of the past is left in float64


def error(actual: Tensor, expected: Tensor) -> float:
    """Largest error, as a fraction of the largest entry."""
    return ((actual.double() - expected).abs().max() / expected.abs().max()).item()


def mark_slow(design: Design) -> object:
    """One design of each structure and of each full-covariance noise stays in the quick run."""
    slow = design.noise != "prior_mixing" and design.covariance != "full"
    return pytest.param(design, marks=pytest.mark.slow) if slow else design


def steadily(case: Case, log_gate: float, noise: float) -> Case:
    """Constant gates and observation noise, unit keys, the prior at the start."""
    x = case.tensors
    gates = {"log_decay": log_gate, "log_retention": log_gate, "log_discount": log_gate, "obs_noise": noise}
    changed = {name: torch.full_like(x[name], value) for name, value in gates.items() if name in x}
    keys = x["k"] / x["k"].norm(dim=-1, keepdim=True)
    return case.with_(k=keys, mean=None, cov=None, **changed)


@pytest.mark.parametrize("design", [mark_slow(design) for design in DESIGNS], ids=label)
def test_long_sequences_in_float32_stay_on_course(design: Design):
    """After 16,384 tokens the float32 chunks agree with a float64 loop that saw the last few hundred only."""
    case = steadily(make_case(design, length=LONG, heads=1, key_dim=4, value_dim=2), -0.1, 0.1)
    end = case.between(LONG - FORGOTTEN - 50).run("recurrent")
    out = case.to(torch.float32).run("chunk")
    for name, expected in fields(end).items():
        found = fields(out)[name]
        if name not in ("mean", "cov"):
            assert found.isfinite().all(), name
            found, expected = found[:, -50:], expected[:, -50:]
        assert error(found, expected) < 1e-4, name


@pytest.mark.slow
@pytest.mark.parametrize(("design", "channels"), each_design(), ids=label)
def test_long_sequences_without_forgetting_stay_beliefs(design: Design, channels: bool):
    """Evidence for ever: variances shrink to 1e-5 of the prior, and must not pass zero on the way."""
    case = steadily(make_case(design, channels=channels, length=LONG, heads=1, key_dim=4, value_dim=2), 0.0, 0.1)
    if design.noise == "additive":
        case = case.with_(variance=torch.zeros_like(case.tensors["variance"]))
    out = case.to(torch.float32).run("chunk")
    for name, field in fields(out).items():
        assert field.isfinite().all(), name
    assert (out.predictive_var >= 0).all()
    cov = out.final_belief.cov
    if cov is not None:
        assert ((torch.linalg.eigvalsh(cov) if cov.ndim == 4 else cov) > 0).all()
    torch.testing.assert_close(out.o.double(), case.run("chunk").o, rtol=0, atol=1e-2)


@pytest.mark.parametrize("zero", [-60.0, -45.3])
@pytest.mark.parametrize("channels", [1, 3])
def test_ratios_after_resets_keep_their_accuracy(zero: float, channels: int):
    """Differences of one cumulative sum lose 1e-4 here."""
    rng = torch.Generator().manual_seed(0)
    decay = -0.05 * torch.rand(64, channels, generator=rng)
    decay[::7] = zero
    ratios, exact = segment_ratios(decay), segment_ratios(decay.double())
    alive = exact > 1e-15  # of pairs with no reset between them
    assert ((ratios.double() / exact - 1).abs()[alive] < 1e-6).all()
    assert (ratios <= 1).all()


@pytest.mark.parametrize("backend", [Backend("recurrent"), Backend("chunk", 64)], ids=label)
@pytest.mark.parametrize(("design", "channels"), each_design(), ids=label)
def test_accuracy_after_hard_resets_in_float32(design: Design, channels: bool, backend: Backend):
    case = steadily(make_case(design, channels=channels, length=48), -0.05, 0.5).to(torch.float32)
    gates = {
        name: case.tensors[name].clone()
        for name in ("log_decay", "log_retention", "log_discount")
        if name in case.tensors
    }
    for gate in gates.values():
        gate[:, 5::12], gate[:, 11::12] = -60.0, -torch.inf
    case = case.with_(**gates)
    out, exact = case.run(backend), case.to(torch.float64).run("recurrent")
    for name, expected in fields(exact).items():
        assert error(fields(out)[name], expected) < 2e-6, name


def strong(case: Case) -> Case:
    """Decays of e^-50 a token, then none, then log 0 in turn: their products underflow and never overflow."""
    x = {
        name: case.tensors[name].clone()
        for name in ("log_decay", "log_retention", "log_discount")
        if name in case.tensors
    }
    for gate in x.values():
        gate[:, :40], gate[:, 40:60] = -50.0, 0.0
        gate[:, 60::3] = -torch.inf
    return case.with_(**x)


@pytest.mark.parametrize("backend", [Backend("recurrent"), Backend("chunk", 64)], ids=label)
@pytest.mark.parametrize(("design", "channels"), each_design(), ids=label)
def test_strong_decays_neither_overflow_nor_lose_gradients(design: Design, channels: bool, backend: Backend):
    case = strong(make_case(design, channels=channels, length=80, heads=1))
    leaves = case.to(torch.float32).leaves()
    out, exact = leaves.run(backend), case.run("recurrent")
    for name, expected in fields(exact).items():
        assert error(fields(out)[name].detach(), expected) < 1e-4, name
    loss = sum(field.sum() for field in fields(out).values())
    tensors = leaves.tensors
    found = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True, materialize_grads=True)
    for name, gradient in zip(tensors, found, strict=True):
        assert gradient.isfinite().all(), name


def assumed(case: Case) -> Assumptions:
    """The assumptions of a case, with the default floor where it discounts."""
    given = case.assumptions()
    if case.design.noise != "discount":
        return given
    return replace(given, process_noise=Discount(case.tensors["log_discount"]))


@pytest.mark.parametrize("backend", BACKENDS, ids=label)
@pytest.mark.parametrize("design", DESIGNS, ids=label)
def test_split_and_resumed_in_float32(design: Design, backend: Backend):
    """What a belief is rounded to between calls must not cost more than float32 itself does."""
    case = steadily(make_case(design, length=160, heads=1), -0.1, 1e-2).to(torch.float32)
    # Two keys of three channels: one direction is never written, and its variance winds up to the floor.
    case = case.with_(k=case.tensors["k"][:, :2].repeat(1, 80, 1, 1))
    whole = case.run(backend, assumptions=assumed(case))
    first = case.between(0, 120)
    rest = case.between(120).after(first.run(backend, assumptions=assumed(first)).final_belief)
    resumed = rest.run(backend, assumptions=assumed(rest))
    for name, found in fields(resumed).items():
        expected = fields(whole)[name]
        expected = expected if name in ("mean", "cov") else expected[:, 120:]
        assert error(found, expected.double()) < 1e-3, name


@pytest.mark.parametrize("backend", [Backend("recurrent"), Backend("chunk")], ids=label)
@pytest.mark.parametrize("norm", [10.0, 100.0])
@pytest.mark.parametrize("design", [*CARRIED, Design("reset", "prior_mixing")], ids=label)
def test_keys_of_any_norm_in_float32(design: Design, norm: float, backend: Backend):
    """One key for ever, not normalised, under the least observation noise that is let through."""
    case = steadily(make_case(design, length=64, heads=1), 0.0, 1e-4).to(torch.float32)
    if design.noise == "additive":
        case = case.with_(variance=torch.zeros_like(case.tensors["variance"]))
    case = case.with_(k=norm * case.tensors["k"][:, :1].expand(-1, 64, -1, -1))
    out, exact = case.run(backend), case.to(torch.float64).run("recurrent")
    for name, field in fields(out).items():
        assert field.isfinite().all(), name
    # Few digits are left, but what is read must not outgrow what was written.
    assert out.o.abs().max() < 3 * exact.o.abs().max()

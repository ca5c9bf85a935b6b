"""The isotropic scan against its equations in float64, forward and by autograd, and the filter that takes it."""

from itertools import pairwise

import pytest
import torch

from bayesmem.ops import Additive, Assumptions, Backend, PriorMixing, bayesian_filter
from bayesmem.ops.fused import isotropic_op
from bayesmem.ops.triton.isotropic import isotropic_backward, isotropic_forward
from bayesmem.ops.triton.spans import spans_of
from bayesmem.types import Belief
from ops.cases import Design, fields, make_case

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def problem(bounds, heads):
    """Squared retention, added noise, |k|^2, obs noise ([N, H]) and initial variances, float32, with hard cases."""
    generator = torch.Generator().manual_seed(len(bounds))
    rand = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    tokens = bounds[-1]
    keep, added = (-0.2 * rand(tokens, heads).abs()).exp(), 0.2 * rand(tokens, heads).abs()
    power, noise = rand(tokens, heads).square(), 0.1 * rand(tokens, heads).exp()
    keep[tokens // 2], added[tokens // 2], power[tokens // 3] = 0.0, 0.5, 0.0  # a hard reset; a key that says nothing
    keep[tokens // 2 + 2 :: 9], added[tokens // 2 + 2 :: 9] = 1.0, 0.0  # a token that is static
    noise[2::7] = 1e-4  # K = 1: all but certain
    return keep, added, power, noise, rand(len(bounds) - 1, heads).exp()


def textbook(bounds, key_dim, keep, added, power, noise, initial):
    """docs/math.md 2.3, a token at a time, and what is left as one quotient: nothing is subtracted."""
    predicted, final = [], []
    for s, (start, stop) in enumerate(pairwise(bounds)):
        cov = initial[s]
        for t in range(start, stop):
            prior = keep[t] * cov + added[t]
            predicted.append(prior)
            seen = prior * power[t]
            cov = prior * (noise[t] + (1 - 1 / key_dim) * seen) / (noise[t] + seen)
        final.append(cov)
    return torch.stack(predicted), torch.stack(final)


def close(got, expected, tolerance=2e-6):
    """Relative in the norm."""
    assert got.shape == expected.shape
    assert (got.cpu().double() - expected).norm() <= tolerance * expected.norm()


CASES = [((0, 37), 2, 5), ((0, 1, 17, 18, 50), 3, 1), ((0, 16, 20, 33), 3, 2), ((0, 9), 1, 64)]


@pytest.mark.parametrize(("bounds", "heads", "key_dim"), CASES)
@pytest.mark.parametrize("with_final", [False, True])
def test_variances_and_gradients(bounds, heads, key_dim, with_final):
    tensors = problem(bounds, heads)
    spans = spans_of(bounds, 16, DEVICE, room=9)  # more chunks than tokens fill
    leaves = [x.double().requires_grad_() for x in tensors]
    expected, expected_final = textbook(bounds, key_dim, *leaves)
    moved = [x.to(DEVICE) for x in tensors]
    predicted, final = isotropic_forward(*moved, key_dim, spans)
    close(predicted, expected.detach())
    close(final, expected_final.detach())

    source = torch.Generator().manual_seed(0)
    d_predicted, d_final = (torch.randn(x.shape, generator=source).to(DEVICE) for x in (predicted, final))
    loss = (expected * d_predicted.cpu()).sum()
    if with_final:
        loss = loss + (expected_final * d_final.cpu()).sum()
    loss.backward()
    keep, _, power, noise, initial = moved
    found = isotropic_backward(
        keep, power, noise, predicted, initial, key_dim, spans, d_predicted, d_final if with_final else None
    )
    for got, leaf in zip(found, leaves, strict=True):
        close(got, leaf.grad)


def test_a_static_memory_that_is_told_nothing_stays_as_it_is_to_the_last_bit():
    """Rounding that leans one way would add up over tokens."""
    keep, _, _, noise, initial = (x.to(DEVICE) for x in problem((0, 40), 1))
    keep, nothing = torch.ones_like(keep), torch.zeros_like(keep)
    spans = spans_of((0, 40), 16, DEVICE)
    for key_dim in (3, 49):
        predicted, _ = isotropic_forward(keep, nothing, nothing, noise, initial, key_dim, spans)
        assert torch.equal(predicted, initial.expand_as(predicted))
        found = isotropic_backward(keep, nothing, noise, predicted, initial, key_dim, spans, nothing, initial)
        assert torch.equal(found[-1], initial)


@pytest.mark.parametrize("tuning", [{"tokens": 1}, {"tokens": 4, "lanes": 2}, {"lanes": 1}], ids=str)
def test_how_tokens_and_lanes_are_cut_changes_nothing(tuning):
    """Lanes of unequal length in a program, and lanes too many."""
    bounds = (0, 9, 10, 13)
    keep, added, power, noise, initial = (x.to(DEVICE) for x in problem(bounds, 1))
    spans, found = spans_of(bounds, 16, DEVICE), []
    for given in (None, tuning):
        out = isotropic_forward(keep, added, power, noise, initial, 5, spans, given)
        found.append((*out, *isotropic_backward(keep, power, noise, out[0], initial, 5, spans, power, initial, given)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def results(case, backend, **given):
    """Outputs, and gradients of a random functional of them all."""
    leaves = case.leaves()
    out = fields(leaves.run(backend, **given))
    source = torch.Generator().manual_seed(1)
    loss = sum((x.cpu().double() * torch.randn(x.shape, generator=source).double()).sum() for x in out.values())
    slopes = torch.autograd.grad(loss, list(leaves.tensors.values()))
    return out | {f"d {name}": slope for name, slope in zip(leaves.tensors, slopes, strict=True)}


@pytest.mark.parametrize(
    ("noise", "key_dim", "channels"), [("prior_mixing", 6, True), ("additive", 6, True), ("additive", 1, False)]
)
def test_the_filter_is_the_token_loop(noise, key_dim, channels):
    """Decays, retention and noise per channel count as their means, while the mean decays by channel."""
    design = Design("isotropic", noise)
    case = make_case(design, channels=channels, batch=2, length=18, heads=2, key_dim=key_dim, value_dim=3)
    narrow = case.with_(**{name: x.to(DEVICE, torch.float32) for name, x in case.tensors.items()})
    got, exact = results(narrow, Backend("triton", 16)), results(narrow.to(torch.float64), "recurrent")
    assert got.keys() == exact.keys()
    for name, x in exact.items():
        assert (got[name].double() - x).norm() <= 1e-5 * x.norm(), name


def test_one_token_at_a_time_from_the_prior_is_the_whole():
    """The cache of a model: a belief of one variance a head; a missing decay, and noise given as a number."""
    q, k, v = torch.randn(3, 2, 5, 2, 4, device=DEVICE).unbind()
    given, noise = Assumptions(covariance="isotropic", process_noise=Additive(0.1)), q[..., 0].exp()
    options = {"outputs": ("final_belief", "predictive_var"), "backend": Backend("triton", 16)}
    whole = bayesian_filter(q, k, v, None, noise, given, **options)
    belief, steps = None, []
    for t in range(5):
        now = slice(t, t + 1)
        step = bayesian_filter(
            q[:, now], k[:, now], v[:, now], None, noise[:, now], given, initial_belief=belief, **options
        )
        belief = Belief(step.final_belief.mean, step.final_belief.cov)
        steps.append(step)
    assert belief.cov.shape == (2, 2, 1)
    torch.testing.assert_close(belief.cov, whole.final_belief.cov)
    for name in ("o", "predictive_var"):
        torch.testing.assert_close(torch.cat([getattr(x, name) for x in steps], 1), getattr(whole, name))


def test_nothing_is_kept_where_retention_is_nought():
    """Under prior mixing a reset at every token is the reset structure, but for the belief that it hands on."""
    q, k, v = torch.randn(3, 1, 18, 1, 4, device=DEVICE).unbind()
    gates = torch.full((1, 18, 1), -torch.inf, device=DEVICE)
    o = [
        bayesian_filter(
            q, k, v, -0.1 * k[..., 0].square(), torch.ones_like(gates),
            Assumptions(covariance=covariance, process_noise=PriorMixing(gates)), backend=Backend("triton", 16),
        ).o
        for covariance in ("isotropic", "reset")
    ]  # fmt: skip
    torch.testing.assert_close(*o)


def test_the_operator_is_sound():
    keep, *rest = (x.to(DEVICE).requires_grad_() for x in problem((0, 3, 5), 2))
    bounds = torch.tensor([0, 3, 5], dtype=torch.int32, device=DEVICE)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(isotropic_op.dispatched, (keep, *rest, 4, bounds, 1, 16), test_utils=tests)

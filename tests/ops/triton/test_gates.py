"""Gates of a full covariance through the kernel against their equations in float64, and every gradient."""

import pytest
import torch

from bayesmem.ops.fused.gates import gates_op
from bayesmem.ops.normalise import LOG_ZERO

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
RATIO = 1e-3
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 4e-3 if GPU else 8e-3}  # the interpreter cuts, where GPUs round


def exact(log_decay, log_retention, obs_noise, prior, key_dim):
    """The equations; ``prior`` is ``[H]``."""
    retention = log_decay if log_retention is None else log_retention
    decay, retention, noise = (x.flatten(0, 1) for x in (log_decay, retention, obs_noise))
    decay, retention = decay.clamp(min=LOG_ZERO), retention.clamp(min=LOG_ZERO)
    start = prior[None, :, None, None] * torch.eye(key_dim, dtype=prior.dtype, device=prior.device)
    return decay, retention, -torch.expm1(2 * retention) * prior, noise, RATIO * prior, start


def inputs(dtype, tied, seed=0):
    source = torch.Generator().manual_seed(seed)
    batch, length, heads = 2, 700, 3  # more than one tile, the last one not whole
    logs = [-torch.rand(batch, length, heads, generator=source).pow(8) for _ in range(1 if tied else 2)]
    for x in logs:
        x[0, 0], x[0, 1], x[0, 2, 0] = -torch.inf, 0.0, -1e-7
    noise = torch.rand(batch, length, heads, generator=source) + 0.01
    log_decay, *rest = (x.to(DEVICE, dtype).requires_grad_() for x in (*logs, noise))
    return log_decay, rest[0] if not tied else None, rest[-1]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gates_and_gradients(dtype, learned, tied):
    log_decay, log_retention, noise = inputs(dtype, tied)
    prior = torch.tensor([0.5, 1.0, 3.0], device=DEVICE)
    number, key_dim = 2.0, 40  # more rows than a program has
    if learned:
        prior.requires_grad_()
    given = [x for x in (log_decay, log_retention, noise) if x is not None] + [prior] * learned
    made = gates_op(log_decay, log_retention, noise, prior if learned else None, number, RATIO, key_dim)
    leaves = {id(x): x.detach().double().requires_grad_() for x in given}
    wide = [None if x is None else leaves[id(x)] for x in (log_decay, log_retention, noise)]
    p = leaves[id(prior)] if learned else torch.full((3,), number, dtype=torch.float64, device=DEVICE)
    expected = exact(*wide, p, key_dim)
    for x, y in zip(made, expected, strict=True):
        assert x.dtype == torch.float32 and x.requires_grad == y.requires_grad
        if x.shape == y.shape:
            assert ((x - y).abs() <= 3e-7 * y.abs()).all()
        else:  # one for all sequences
            assert torch.equal(x.double(), y.expand_as(x))
    source = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=source).to(DEVICE).double() for x in made]
    sums = [sum((x.double() * w).sum() for x, w in zip(every, weights, strict=True)) for every in (made, expected)]
    found, wanted = torch.autograd.grad(sums[0], given), torch.autograd.grad(sums[1], leaves.values())
    for x, y, leaf in zip(found, wanted, given, strict=True):
        assert x.dtype == leaf.dtype and x.shape == leaf.shape
        assert ((x.double() - y).abs() <= TOLERANCE[leaf.dtype] * (1 + y.abs())).all()


def test_a_reset_is_bounded_and_nan_is_not_hidden():
    log_decay = torch.tensor([-torch.inf, -100.0, -3.0, 0.0, torch.nan], device=DEVICE).view(1, 5, 1).requires_grad_()
    decay, retention, added, *_ = gates_op(log_decay, None, torch.ones_like(log_decay), None, 1.0, 0.0, 0)
    assert decay[:4, 0].tolist() == retention[:4, 0].tolist() == [LOG_ZERO, LOG_ZERO, -3, 0]
    assert all(x[4].isnan() for x in (decay, retention, added))
    assert added[:4, 0].tolist() == pytest.approx([1.0, 1.0, 1 - 2.718281828**-6, 0.0])
    decay[:4].sum().backward()
    assert log_decay.grad[0, :4, 0].tolist() == [0, 0, 1, 1]


def test_gradients_that_are_not_asked_for():
    log_decay, log_retention, noise = inputs(torch.float32, False)
    prior = torch.ones(3, device=DEVICE, requires_grad=True)
    _, _, added, observed, floor, start = gates_op(log_decay, log_retention, noise, prior, 1.0, RATIO, 5)
    (only,) = torch.autograd.grad(floor.sum(), prior, retain_graph=True)
    assert only.tolist() == pytest.approx([RATIO] * 3)
    (only,) = torch.autograd.grad(start.sum(), prior, retain_graph=True)
    assert only.tolist() == [5.0] * 3
    zero, *_ = torch.autograd.grad(observed.sum(), (log_decay, noise), retain_graph=True)
    assert not zero.any()
    (slope,) = torch.autograd.grad(added.sum(), prior)
    assert torch.allclose(slope, -torch.expm1(2 * log_retention.clamp(min=LOG_ZERO)).sum((0, 1)))


def test_as_the_dispatcher_sees_it():
    log_decay, log_retention, noise = inputs(torch.bfloat16, False)
    prior = torch.ones(3, device=DEVICE, requires_grad=True)
    for retention, held in ((log_retention, prior), (None, None)):
        given = (log_decay, retention, noise, held, 1.0, RATIO, 5)
        torch.library.opcheck(gates_op.dispatched, given)

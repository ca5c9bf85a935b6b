"""Every reduction of the zoo: outputs and gradients against the peer, both back ends."""

from functools import partial

import pytest
import torch
from torch import Tensor

from bayesmem.design import ZOO
from peers.cases import RELEASES, Reduction, Run, Shape, make_leaves
from peers.driven import DRIVEN
from peers.measured import MEASURED
from peers.released import lifted

BACKENDS = ("chunk", "recurrent")
PAIRS = [(reduction, shape) for reduction in DRIVEN + MEASURED for shape in reduction.shapes()]
RELEASED = [pair for pair in PAIRS if pair[0].peer.startswith(RELEASES) and pair[1].T > 13]
EPS32 = torch.finfo(torch.float32).eps


def name(x: object) -> str | None:
    return x.name if isinstance(x, Shape) else str(x) if isinstance(x, Reduction) else None


def runner(reduction: Reduction, backend: str) -> Run:
    return lambda *args, **inputs: ZOO[reduction.design].filter(*args, backend=backend, **inputs).o


def close(actual: Tensor, expected: Tensor, rtol: float, what: str) -> None:
    """Equal to ``rtol``; entries near 0 to ``rtol / 100`` of the largest entry, or rounding where all are 0."""
    atol = rtol / 100 * expected.abs().max().item() + 1e-14
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol, msg=lambda text: f"{what}: {text}")


@pytest.mark.parametrize(("reduction", "shape"), PAIRS, ids=name)
def test_equal_in_float64(reduction: Reduction, shape: Shape):
    """Tolerance 1e-9 for outputs and for the gradients of a random functional by every shared input."""
    x = make_leaves(reduction, shape, seed=PAIRS.index((reduction, shape)))
    with lifted(), torch.set_grad_enabled(reduction.grad):
        theirs = reduction.theirs(x)
    assert theirs.dtype == torch.float64
    weights = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(1), dtype=theirs.dtype)
    gradients = partial(torch.autograd.grad, inputs=list(x.values()), grad_outputs=weights)
    expected = gradients(theirs) if reduction.grad else ()
    for backend in BACKENDS:
        ours = reduction.ours(runner(reduction, backend), x)
        close(ours, theirs, reduction.rtol, f"{backend} o")
        found = gradients(ours) if reduction.grad else ()
        for leaf, a, b in zip(x, found, expected, strict=False):
            close(a, b, reduction.rtol, f"{backend} gradient of {leaf}")


@pytest.mark.parametrize(("reduction", "shape"), RELEASED, ids=name)
def test_equal_in_float32(reduction: Reduction, shape: Shape):
    """As released, without the lift: both sides within float32's rounding of the exact value.

    An output sums about T + K products, in any order, so it is off by at most (T + K) eps times the sum
    of their sizes; a few more roundings come with the gates and the V values. Taken: (T + K + V) eps of
    the largest output.
    """
    x = {n: leaf.detach() for n, leaf in make_leaves(reduction, shape, seed=2).items()}
    single = {n: leaf.float() for n, leaf in x.items()}
    exact = reduction.ours(runner(reduction, "chunk"), {n: leaf.double() for n, leaf in single.items()})
    bound = (exact.shape[1] + shape.K + shape.V) * EPS32 * exact.abs().max()
    theirs = reduction.theirs(single)
    assert theirs.dtype == torch.float32 and (theirs - exact).abs().max() < bound
    for backend in BACKENDS:
        assert (reduction.ours(runner(reduction, backend), single) - exact).abs().max() < bound

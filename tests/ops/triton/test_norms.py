"""The norms and the gated product through the kernels against PyTorch in float64, outputs and every gradient."""

import pytest
import torch
from torch import Tensor

from bayesmem.ops.fused.norms import gated_product_op, norm_op, unit_norm_op
from bayesmem.ops.pointwise import gated_product, rms_norm, unit_norm

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
SHAPES = [(3, 5, 16), (70, 24), (1, 1), (2, 300, 2, 128)] if GPU else [(3, 5, 16), (70, 24), (1, 1)]


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def held_to(actual: tuple[Tensor, ...], exact: tuple[Tensor, ...], leaves: list[Tensor], wide: list[Tensor], dtype):
    weights = [drawn(9 + i, *x.shape).double() for i, x in enumerate(actual)]
    loss, truth = (sum((x.double() * w).sum() for x, w in zip(xs, weights, strict=True)) for xs in (actual, exact))
    slopes = torch.autograd.grad(loss, leaves), torch.autograd.grad(truth, wide)
    for found, wanted in zip((*actual, *slopes[0]), (*exact, *slopes[1]), strict=True):
        assert found.shape == wanted.shape
        assert (found.double() - wanted).norm() <= TOLERANCE[dtype] * wanted.norm().clamp(min=1e-2)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("activation", [None, "silu", "sigmoid"])
def test_rms_norm(activation, shape, dtype):
    x, weight = drawn(0, *shape).to(dtype), drawn(1, shape[-1])
    gate = None if activation is None else drawn(2, *shape).to(dtype)
    leaves = [t.requires_grad_() for t in (x, weight, gate) if t is not None]
    wide = [t.detach().double().requires_grad_() for t in leaves]
    out = norm_op(x, gate, weight, 1e-5, activation, dtype)
    assert out.dtype == dtype
    exact = rms_norm(wide[0], wide[1], 1e-5, wide[2] if gate is not None else None, activation or "silu")
    held_to((out,), (exact,), leaves, wide, dtype)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_unit_norm_and_what_it_lacks(shape, dtype):
    x = drawn(0, *shape).to(dtype).requires_grad_()
    wide = x.detach().double().requires_grad_()
    unit, missing = unit_norm_op(x, 0.3)  # so much that a great deal is missing
    exact, lacking = unit_norm(wide, 0.3)
    held_to((unit, 1 - missing), (exact, 1 - lacking), [x], [wide], dtype)
    assert torch.allclose(missing, 1 - unit.float().square().sum(-1), atol=1e-6)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_gated_product(dtype):
    leaves = [drawn(i, 3, 1700).to(dtype).requires_grad_() for i in range(2)]
    wide = [x.detach().double().requires_grad_() for x in leaves]
    held_to((gated_product_op(*leaves),), (gated_product(*wide),), leaves, wide, dtype)


def test_the_norm_of_a_wide_row_in_another_dtype():
    x, weight = drawn(0, 3, 33), drawn(1, 33)
    out = norm_op(x, None, weight, 1e-6, None, torch.float16)
    assert out.dtype == torch.float16
    assert torch.allclose(out.float(), rms_norm(x.cpu(), weight.cpu(), 1e-6).to(DEVICE), atol=2e-3)

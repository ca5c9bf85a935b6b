"""Gains of a constant covariance through the kernel against their equations in float64, and every gradient."""

import pytest
import torch

from bayesmem.ops.fused.constant_gain import constant_gain_op

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize(("groups", "heads", "size"), [(1, 3, 5), (2, 4, 16), (2, 2, 128)])
def test_gains_and_gradients(groups, heads, size, dtype):
    source = torch.Generator().manual_seed(0)
    count = 45
    k = torch.randn(count, groups, size, generator=source).to(DEVICE, dtype)
    noise, variance = (torch.rand(*shape, generator=source).to(DEVICE) + 0.1 for shape in ((count, heads), (heads,)))
    leaves = [x.requires_grad_() for x in (k, noise, variance)]
    wide = [x.detach().double().requires_grad_() for x in leaves]
    keys = wide[0].repeat_interleave(heads // groups, 1)
    exact_var = wide[2] * keys.square().sum(-1) + wide[1]
    exact = (wide[2] / exact_var)[..., None] * keys
    gain, innovation_var = constant_gain_op(*leaves)
    assert gain.dtype == dtype and innovation_var.dtype == torch.float32
    weights = [torch.randn(x.shape, generator=source).to(DEVICE).double() for x in (gain, innovation_var)]
    found = torch.autograd.grad(
        (gain.double() * weights[0]).sum() + (innovation_var.double() * weights[1]).sum(), leaves
    )
    wanted = torch.autograd.grad((exact * weights[0]).sum() + (exact_var * weights[1]).sum(), wide)
    for x, y in zip((gain, innovation_var, *found), (exact, exact_var, *wanted), strict=True):
        assert x.shape == y.shape and (x.double() - y).norm() <= TOLERANCE[dtype] * y.norm()

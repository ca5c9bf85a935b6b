"""Gates as the kernels take them."""

import torch

from bayesmem.ops.fused_noise import log_gate
from bayesmem.ops.normalise import LOG_ZERO


def test_a_hard_reset_is_finite_and_nan_is_not_hidden():
    given = torch.tensor([[[-torch.inf], [-100.0], [-3.0], [0.0], [torch.nan]]], dtype=torch.bfloat16)
    given.requires_grad_()
    cut = log_gate(given)
    assert cut.shape == (5, 1) and cut.dtype == torch.float32
    assert cut[:4, 0].tolist() == [LOG_ZERO, LOG_ZERO, -3, 0] and cut[4].isnan()
    cut[:4].sum().backward()
    assert given.grad[0, :4, 0].tolist() == [0, 0, 1, 1]

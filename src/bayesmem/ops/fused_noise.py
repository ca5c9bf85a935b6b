"""The process noise as the kernels take it: log retention and added variance of every token."""

import torch
from torch import Tensor

from bayesmem.ops.assumptions import Additive, Assumptions, PriorMixing
from bayesmem.ops.normalise import LOG_ZERO


def row(x: Tensor) -> Tensor:
    """``[B, T, ...]`` as one row of all tokens, ``[N, ...]``."""
    return x.flatten(0, 1).contiguous()


def gate(x: Tensor) -> Tensor:
    """The row in float32."""
    return row(x.to(torch.float32))


def log_gate(x: Tensor) -> Tensor:
    """Of a logarithm, which may be minus infinity; its gradient is one launch, where that of ``clamp`` is three."""
    return torch.threshold(gate(x), LOG_ZERO, LOG_ZERO)


def scalar_noise(a: Assumptions, decay: Tensor, prior: Tensor | float) -> tuple[Tensor, Tensor]:
    """Log retention and added variance of every token, ``[N, H]``; of a prior by head or for all."""
    noise = a.process_noise
    if isinstance(noise, PriorMixing):
        retention = decay if noise.log_retention is None else log_gate(noise.log_retention)
        return retention, torch.expm1(2 * retention) * -prior
    assert isinstance(noise, Additive)
    if isinstance(noise.variance, Tensor):
        return decay, gate(noise.variance)
    return decay, torch.full_like(decay, float(noise.variance))


def channel_noise(a: Assumptions, decay: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
    """As ``scalar_noise``, either of them ``[N, H]`` or ``[N, H, K]``."""
    noise = a.process_noise
    if isinstance(noise, PriorMixing):
        retention = decay if noise.log_retention is None else log_gate(noise.log_retention)
        lost = -torch.expm1(2 * retention)
        if prior.ndim == 2 and lost.ndim == 2:
            lost = lost[..., None]
        return retention, lost * (prior if prior.ndim == lost.ndim - 1 else prior[:, None])
    return scalar_noise(a, decay, prior)

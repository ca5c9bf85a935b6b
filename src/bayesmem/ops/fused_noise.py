"""The process noise as the kernels take it: log retention and added variance of every token."""

import torch
from torch import Tensor

from bayesmem.ops.assumptions import Additive, Assumptions, PriorMixing
from bayesmem.ops.normalise import LOG_ZERO


def scalar_noise(a: Assumptions, decay: Tensor, prior: Tensor, gate) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    """Log retention and added variance of every token, ``[N, H]``."""
    noise = a.process_noise
    if isinstance(noise, PriorMixing):
        given = noise.log_retention
        retention = decay if given is None else gate(given).clamp(min=LOG_ZERO)
        return retention, -torch.expm1(2 * retention) * prior
    assert isinstance(noise, Additive)
    if isinstance(noise.variance, Tensor):
        return decay, gate(noise.variance)
    return decay, torch.full_like(decay, float(noise.variance))


def channel_noise(a: Assumptions, decay: Tensor, prior: Tensor, gate) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    """As ``scalar_noise``, either of them ``[N, H]`` or ``[N, H, K]``."""
    noise = a.process_noise
    if isinstance(noise, PriorMixing):
        retention = decay if noise.log_retention is None else gate(noise.log_retention).clamp(min=LOG_ZERO)
        lost = -torch.expm1(2 * retention)
        if prior.ndim == 2 and lost.ndim == 2:
            lost = lost[..., None]
        return retention, lost * (prior if prior.ndim == lost.ndim - 1 else prior[:, None])
    return scalar_noise(a, decay, prior, gate)

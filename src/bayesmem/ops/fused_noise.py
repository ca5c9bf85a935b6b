"""Gates as the kernels take them: log decay and retention, process and observation noise of every token, in float32."""

from typing import NamedTuple

import torch
from torch import Tensor

from bayesmem.ops.assumptions import Additive, Assumptions, PriorMixing
from bayesmem.ops.normalise import LOG_ZERO


class Gates(NamedTuple):
    """Of N tokens of all sequences in one row.

    Attributes:
        decay: log decay of the mean, ``[N, H]`` or ``[N, H, K]``.
        noise: observation noise variance, ``[N, H]``.
        mixed: of a full covariance under prior mixing by head, log retention and process noise ``[N, H]`` and the least
            noise ``[H]``.
        start: with these, the covariance before the first token of any sequence, ``[1, H, K, K]``, unless one is given.
    """

    decay: Tensor
    noise: Tensor
    mixed: tuple[Tensor, Tensor, Tensor] | None = None
    start: Tensor | None = None


def gates_of(
    log_decay: Tensor | None, obs_noise: Tensor | None, a: Assumptions, prior: Tensor | float, v: Tensor, key_dim: int
) -> Gates:
    """Gates of values ``[B, T, H, V]``: all that a full covariance under prior mixing needs in one launch.

    ``key_dim`` is K, where a covariance to start from is wanted, or 0.
    """
    noise = a.process_noise
    if (
        a.covariance == "full"
        and isinstance(noise, PriorMixing)
        and obs_noise is not None
        and log_decay is not None
        and log_decay.ndim == 3
    ):
        from bayesmem.ops import fused

        retained = None if noise.log_retention is None else noise.log_retention.contiguous()
        held, number = (prior.contiguous(), 1.0) if isinstance(prior, Tensor) else (None, prior)
        given = (log_decay.contiguous(), retained, obs_noise.contiguous(), held, number, a.obs_noise_floor, key_dim)
        decay, retention, added, observed, floor, start = fused.gates_op(*given)
        return Gates(decay, observed, (retention, added, floor), start if key_dim else None)
    batch, length, heads, _ = v.shape
    size, wide = (batch * length, heads), torch.float32
    decay = v.new_zeros(size, dtype=wide) if log_decay is None else log_gate(log_decay)
    return Gates(decay, v.new_ones(size, dtype=wide) if obs_noise is None else gate(obs_noise))


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

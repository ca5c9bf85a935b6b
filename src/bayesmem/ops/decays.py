"""Decays inside a chunk, as ratios of a later to an earlier time, which never exceed 1.

``R_t = prod_{i<=t} a_i`` is never inverted: with strong decay ``1 / R`` overflows, and differences
of one cumulative sum lose float32 accuracy after a reset. Each ratio sums its own segment.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def segment_ratios(log_decay: Float[Tensor, "*axes C D"]) -> Float[Tensor, "*axes C C D"]:
    """``ratio[t, s] = R_t / R_s = exp(sum_{s < i <= t} log_decay_i)`` for s <= t, 0 above.

    Each segment is summed by itself, so that it is exact to rounding whatever lies before it.
    """
    size = log_decay.shape[-2]
    ones = torch.ones(size, size, dtype=torch.bool, device=log_decay.device)
    terms = log_decay[..., :, None, :].expand(*log_decay.shape[:-1], size, log_decay.shape[-1])
    sums = terms.masked_fill(~ones.tril(-1)[..., None], 0.0).cumsum(-3)
    return sums.masked_fill(~ones.tril()[..., None], -torch.inf).exp()


def decayed_scores(
    x: Float[Tensor, "*axes C K"], y: Float[Tensor, "*axes C K"], ratios: Float[Tensor, "*axes C C D"]
) -> Float[Tensor, "*axes C C"]:
    """``sum_i x[t, i] (R_t / R_s)_i y[s, i]``, lower triangular in (t, s)."""
    if ratios.shape[-1] == 1:
        return (x @ y.mT) * ratios[..., 0]
    return ((ratios * y[..., None, :, :]) @ x[..., :, :, None])[..., 0]


def decayed_mix(
    weights: Float[Tensor, "*axes C C"], y: Float[Tensor, "*axes C E"], ratios: Float[Tensor, "*axes C C D"]
) -> Float[Tensor, "*axes C E"]:
    """``sum_s weights[t, s] (R_t / R_s)_i y[s, i]``."""
    if ratios.shape[-1] == 1:
        return (weights * ratios[..., 0]) @ y
    return (weights[..., None, :] @ (ratios * y[..., None, :, :]))[..., 0, :]

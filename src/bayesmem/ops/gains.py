"""Gain rules of the reduced covariance structures. The mean pass serves them all.

A rule takes keys, noises and its own initial covariance and returns ``Gains``. Adding one means a
function here, its one-token form in ``step.py`` and its name in ``assumptions.py``.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from bayesmem.ops.covariance_pass import Gains
from bayesmem.ops.problem import Problem
from bayesmem.ops.step import AffineNoise, PrecisionNoise


def constant_gains(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B H T K"],
    obs_noise: Float[Tensor, "B H T"],
    predicted_cov: Float[Tensor, "B H T 1"] | Float[Tensor, "B H T K"],
) -> Gains:
    """Reset and steady state: every token meets the same predicted covariance, a given diagonal.

    With prior variance 1 and unit keys this is the delta rule, ``beta = 1 / (1 + obs_noise)``.
    """
    cov_k = predicted_cov * k
    innovation_var = (k * cov_k).sum(-1) + obs_noise
    gain = cov_k / innovation_var[..., None]
    explained = innovation_var * (gain * q).sum(-1) ** 2
    var = ((predicted_cov * q**2).sum(-1) - explained).clamp(min=0)
    return Gains(gain, innovation_var, None, var)


def constant_cov(p: Problem) -> Float[Tensor, "B H T D"] | None:
    """Predicted covariance of the structures that carry none: a diagonal for every token."""
    batch, heads, length, key_dim = p.k.shape
    if p.covariance == "reset":
        return p.prior_var[:, None, :].expand(batch, heads, length, key_dim)
    if p.covariance != "steady_state":
        return None
    if p.steady_var is not None:
        return p.steady_var[:, None, None].expand(batch, heads, length, 1)
    assert isinstance(p.noise, AffineNoise)
    return steady_var(p.noise.log_retention, p.obs_noise, p.prior_var, key_dim)


def steady_var(
    log_retention: Float[Tensor, "B H T D"],
    obs_noise: Float[Tensor, "B H T"],
    prior_var: Float[Tensor, "H K"],
    key_dim: int,
) -> Float[Tensor, "B H T 1"]:
    """Predicted variance at the mean-field fixed point under prior mixing and unit keys.

    Non-negative root of ``(K w + rho^2) m^2 + K w (r - p0) m - K w p0 r = 0``, where ``m`` is the
    predicted variance and ``w = 1 - rho^2``: Eq. (36) of docs/math.md section 6.
    """
    lost = -torch.expm1(2 * log_retention).mean(-1)
    prior = prior_var.mean(-1)[:, None]
    quadratic = key_dim * lost + (1 - lost)
    linear = key_dim * lost * (obs_noise - prior)
    constant = key_dim * lost * prior * obs_noise
    tiny = torch.finfo(linear.dtype).tiny
    root = (linear**2 + 4 * quadratic * constant).clamp(min=tiny).sqrt()
    cancelling = 2 * constant / (root + linear.abs())
    return torch.where(linear > 0, cancelling, (root + linear.abs()) / (2 * quadratic))[..., None]


def diagonal_gains(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B H T K"],
    obs_noise: Float[Tensor, "B H T"],
    noise: AffineNoise | PrecisionNoise,
    initial_cov: Float[Tensor, "B H K"],
) -> Gains:
    """Mean-field diagonal: every channel's variance is carried through a chain of Moebius maps.

    Predict and update both send p to ``(a p + b) / (c p + d)`` with non-negative a, b, c, d, and so
    do their compositions, which a two-level scan forms without subtraction.
    """
    channels = k.shape
    if isinstance(noise, AffineNoise):
        keep, add = (2 * noise.log_retention).exp(), noise.variance
        damp, denominator = torch.zeros_like(keep), torch.ones_like(keep)
    else:
        keep, add = torch.ones_like(noise.log_discount), torch.zeros_like(noise.log_discount)
        damp = -torch.expm1(noise.log_discount) * noise.floor[:, None, :]
        denominator = noise.log_discount.exp()
    predict = tuple(x.expand(channels) for x in (keep, add, damp, denominator))
    precision = k**2 / obs_noise[..., None]
    a, b, c, d = predict
    posterior = _moebius_scan((a, b, c + precision * a, d + precision * b), initial_cov)
    before = torch.cat([initial_cov[:, :, None], posterior[:, :, :-1]], 2)
    predicted = (a * before + b) / (c * before + d)
    gains = constant_gains(q, k, obs_noise, predicted)
    var = (posterior * q**2).sum(-1)
    return Gains(gains.gain, gains.innovation_var, posterior[:, :, -1], var, _moved(noise, before))


def isotropic_gains(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B H T K"],
    obs_noise: Float[Tensor, "B H T"],
    noise: AffineNoise | PrecisionNoise,
    initial_cov: Float[Tensor, "B H 1"],
) -> Gains:
    """Isotropic: one variance a head, the trace matched after each update; a loop over scalars."""
    power = (k**2).sum(-1)
    if isinstance(noise, AffineNoise):
        keep, add = (2 * noise.log_retention).exp().mean(-1), noise.variance.mean(-1)
        damp, denominator = torch.zeros_like(keep), torch.ones_like(keep)
    else:
        gamma = noise.log_discount[..., 0]
        keep, add, denominator = torch.ones_like(gamma), torch.zeros_like(gamma), gamma.exp()
        damp = -torch.expm1(gamma) * noise.floor[:, :1]
    over_time = (x.expand_as(power).unbind(-1) for x in (keep, add, damp, denominator, power, obs_noise))
    cov, before, predicted = initial_cov[..., 0], [], []
    for a, b, c, d, n, r in zip(*over_time, strict=True):
        prior = (a * cov + b) / (c * cov + d)
        before.append(cov)
        predicted.append(prior)
        cov = prior * (1 - prior * n / (k.shape[-1] * (prior * n + r)))
    posterior = torch.stack([*before[1:], cov], -1)
    gains = constant_gains(q, k, obs_noise, torch.stack(predicted, -1)[..., None])
    var = posterior * (q**2).sum(-1)
    log_decay = _moved(noise, torch.stack(before, -1)[..., None])
    return Gains(gains.gain, gains.innovation_var, cov[..., None], var, log_decay)


def _moved(noise: AffineNoise | PrecisionNoise, before: Float[Tensor, "B H T D"]) -> Tensor | None:
    """Log decay of the mean under log-linear mixing: ``gamma / (gamma + (1 - gamma) floor p)``."""
    if isinstance(noise, AffineNoise) or not noise.moves_mean:
        return None
    gamma, refill = noise.log_discount.exp(), -torch.expm1(noise.log_discount)
    floor = noise.floor[:, None, : before.shape[-1]]
    return noise.log_discount - (gamma + refill * floor * before).log()


Moebius = tuple[Tensor, Tensor, Tensor, Tensor]


def _compose(late: Moebius, early: Moebius) -> Moebius:
    """The map ``late(early(p))``, rescaled (a Moebius map does not see its scale)."""
    a, b, c, d = late
    w, x, y, z = early
    out = a * w + b * y, a * x + b * z, c * w + d * y, c * x + d * z
    scale = torch.stack([m.detach() for m in out]).amax(0)
    return out[0] / scale, out[1] / scale, out[2] / scale, out[3] / scale


def _moebius_scan(maps: Moebius, start: Float[Tensor, "B H K"], block: int = 32) -> Float[Tensor, "B H T K"]:
    """Apply T maps in turn to ``start`` and keep every value, in about T / block + block steps."""
    length = maps[0].shape[2]
    extra = -length % block
    fill = (1.0, 0.0, 0.0, 1.0)
    padded = (
        torch.nn.functional.pad(m, (0, 0, 0, extra), value=f).unflatten(2, (-1, block))
        for m, f in zip(maps, fill, strict=True)
    )
    columns = list(zip(*(m.unbind(3) for m in padded), strict=True))
    prefixes = [columns[0]]
    for column in columns[1:]:
        prefixes.append(_compose(column, prefixes[-1]))
    p, starts = start, []
    for a, b, c, d in zip(*(m.unbind(2) for m in prefixes[-1]), strict=True):
        starts.append(p)
        p = (a * p + b) / (c * p + d)
    entering = torch.stack(starts, 2)[:, :, :, None]
    a, b, c, d = (torch.stack(parts, 3) for parts in zip(*prefixes, strict=True))
    return ((a * entering + b) / (c * entering + d)).flatten(2, 3)[:, :, :length]

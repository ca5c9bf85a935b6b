"""One token of the filter: predict, update, read out. THE equations; all else is speed.

Legend: M mean, P cov, a decay, k key, v value, q query, r obs_noise, s innovation_var,
g gain, e innovation. Leading axes [B, H] ride along.

    predict   M- = a M                     P- = rho P rho + n
    update    s = k^T P- k + r             g = P- k / s            e = v - M-^T k
              M = M- + g e^T               P = P- - s g g^T
    read out  o = M^T q                    var = q^T P q
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bayesmem.ops.assumptions import Covariance
from bayesmem.types import Belief

Cov = Float[Tensor, "B H 1"] | Float[Tensor, "B H K"] | Float[Tensor, "B H K K"]


@dataclass(frozen=True, slots=True)
class AffineNoise:
    """``P- = rho P rho + diag(variance)``; trailing axis 1 (scalar) or K (per channel)."""

    log_retention: Float[Tensor, "*axes D"]
    variance: Float[Tensor, "*axes E"]


@dataclass(frozen=True, slots=True)
class PrecisionNoise:
    """``P-^{-1} = gamma P^{-1} + (1 - gamma) diag(floor)``; ``moves_mean``: also info- = gamma info."""

    log_discount: Float[Tensor, "*axes 1"]
    floor: Float[Tensor, "H K"]
    moves_mean: bool


@dataclass(frozen=True, slots=True)
class Update:
    """One token's correction."""

    belief: Belief
    gain: Float[Tensor, "B H K"]
    innovation: Float[Tensor, "B H V"]
    innovation_var: Float[Tensor, "B H"]


def times(cov: Cov, x: Float[Tensor, "B H K"]) -> Float[Tensor, "B H K"]:
    """``P x``, whether P is kept dense ``[B, H, K, K]`` or as a diagonal ``[B, H, K or 1]``."""
    return (cov @ x[..., None])[..., 0] if cov.ndim == x.ndim + 1 else cov * x


def symmetric(cov: Float[Tensor, "*axes K K"]) -> Float[Tensor, "*axes K K"]:
    """What rounding left of asymmetry taken away."""
    return 0.5 * (cov + cov.mT)


def predict(
    belief: Belief,
    log_decay: Float[Tensor, "B H D"],
    noise: AffineNoise | PrecisionNoise,
    covariance: Covariance = "full",
) -> Belief:
    """Let one step of time pass: the mean decays, the covariance loses certainty.

    Args:
        belief: posterior of the token before; ``cov`` ``None`` passes through as ``None``.
        log_decay: log of the mean's transition, per head (D = 1) or per channel (D = K).
        noise: the process noise of this token.
        covariance: structure in which ``belief.cov`` is kept.
    """
    mean = log_decay.exp()[..., None] * belief.mean  # Eq. (1)
    cov = belief.cov
    if cov is None:
        return Belief(mean, None)
    if isinstance(noise, AffineNoise):  # Eq. (2)
        retention, variance = noise.log_retention.exp(), noise.variance
        if covariance == "full":
            kept = cov * (retention[..., :, None] * retention[..., None, :])
            return Belief(mean, kept + torch.diag_embed(variance.expand(cov.shape[:-1])))
        if covariance == "isotropic":
            retention, variance = (x.mean(-1, True) for x in (retention**2, variance))
            return Belief(mean, retention * cov + variance)
        return Belief(mean, retention**2 * cov + variance)
    gamma, refill = noise.log_discount.exp(), -torch.expm1(noise.log_discount)
    if covariance == "full":  # Eq. (3): (gamma I + (1 - gamma) P Lambda)^{-1} P
        eye = torch.eye(cov.shape[-1], dtype=cov.dtype, device=cov.device)
        mix = gamma[..., None] * eye + refill[..., None] * cov * noise.floor[..., None, :]
        moved = torch.linalg.solve(mix, torch.cat([cov, belief.mean], -1))
        predicted, moved_mean = moved[..., : cov.shape[-1]], moved[..., cov.shape[-1] :]
        return Belief(gamma[..., None] * moved_mean if noise.moves_mean else mean, symmetric(predicted))
    mix = gamma + refill * cov * noise.floor[..., : cov.shape[-1]]
    return Belief((gamma / mix)[..., None] * belief.mean if noise.moves_mean else mean, cov / mix)


def update(
    predicted: Belief,
    k: Float[Tensor, "B H K"],
    v: Float[Tensor, "B H V"],
    obs_noise: Float[Tensor, "B H"],
    covariance: Covariance = "full",
) -> Update:
    """Condition the predicted belief on ``v = S^T k + e``, ``e ~ N(0, obs_noise I)``.

    ``predicted.cov`` must be given: under ``reset`` it is the prior's diagonal, under
    ``steady_state`` the steady variance. Their posterior is dense, and of this token alone.
    """
    cov = predicted.cov
    assert cov is not None
    cov_k = times(cov, k)
    innovation_var = (k * cov_k).sum(-1) + obs_noise  # Eq. (4)
    gain = cov_k / innovation_var[..., None]  # Eq. (5)
    innovation = v - (predicted.mean.mT @ k[..., None])[..., 0]  # Eq. (6)
    mean = predicted.mean + gain[..., :, None] * innovation[..., None, :]  # Eq. (7)
    noise = obs_noise[..., None]
    if covariance == "diagonal":  # mean field: precisions add
        posterior = cov * noise / (noise + cov * k**2)
    elif covariance == "isotropic":  # the trace is matched
        power = (k**2).sum(-1, True)
        posterior = cov * (1 - cov * power / (k.shape[-1] * (cov * power + noise)))
    else:  # Eq. (8)
        dense = cov if covariance == "full" else torch.diag_embed(cov.expand_as(k))
        written = innovation_var.sqrt()[..., None] * gain
        posterior = dense - written[..., :, None] * written[..., None, :]
    return Update(Belief(mean, posterior), gain, innovation, innovation_var)


def read_out(belief: Belief, q: Float[Tensor, "B H K"]) -> tuple[Float[Tensor, "B H V"], Float[Tensor, "B H"]]:
    """Predictive mean ``M^T q`` and variance ``q^T P q`` of what is stored at q."""
    assert belief.cov is not None
    mean = (belief.mean.mT @ q[..., None])[..., 0]  # Eq. (9)
    return mean, (q * times(belief.cov, q)).sum(-1)  # Eq. (10)

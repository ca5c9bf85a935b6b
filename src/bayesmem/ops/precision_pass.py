"""The covariance pass in precision form, for noises that are linear in the precision.

Discount and log-linear mixing obey ``H- = gamma H + (1 - gamma) Lambda``, ``H = H- + k k^T / r``, so every
token's precision follows from the chunk's first by one decayed sum. Their noise has full rank
in the covariance, which rules out the C x C factorisation of ``covariance_pass``: each token
solves its own K x K system, by Cholesky. Callers pass float64, since 1 / r spans many decades.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bayesmem.ops.chunking import map_chunks
from bayesmem.ops.decays import segment_ratios


@dataclass(frozen=True, slots=True)
class PrecisionGains:
    """Gains, and what reading an information vector needs.

    Attributes:
        gain: posterior gain, as the covariance pass gives it.
        innovation_var: ``k^T P- k + r``.
        predicted_k: ``P- k``, before the token's own update.
        posterior_q: ``P q``, after it.
        predictive_var: ``q^T P q``.
        final_precision: inverse covariance after the last token.
    """

    gain: Float[Tensor, "B H T K"]
    innovation_var: Float[Tensor, "B H T"]
    predicted_k: Float[Tensor, "B H T K"]
    posterior_q: Float[Tensor, "B H T K"]
    predictive_var: Float[Tensor, "B H T"]
    final_precision: Float[Tensor, "B H K K"]


def precision_pass(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B H T K"],
    log_discount: Float[Tensor, "B H T 1"],
    floor: Float[Tensor, "H K"],
    obs_noise: Float[Tensor, "B H T"],
    initial_precision: Float[Tensor, "B H K K"],
    chunk_size: int = 16,
) -> PrecisionGains:
    """Propagate the precision through T tokens and solve for every token's gain.

    Args:
        q: queries.
        k: keys, any norm.
        log_discount: log gamma of each token.
        obs_noise: observation noise variance.
        initial_precision: inverse covariance before the first token.
        floor: diagonal of Lambda, the precision that forgetting tends to.
        chunk_size: tokens whose K x K precisions are formed at once; memory, not results.
    """

    def step(precision: Tensor, *chunk: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return _chunk(precision, floor, *chunk)

    streams = (q, k, log_discount, obs_noise[..., None])
    (gain, innovation_var, predicted_k, posterior_q, var), final = map_chunks(
        step, initial_precision, streams, (0, 0, 0, 1), chunk_size, remat=True
    )
    return PrecisionGains(gain, innovation_var[..., 0], predicted_k, posterior_q, var[..., 0], final)


def _chunk(
    precision: Float[Tensor, "B H K K"],
    floor: Float[Tensor, "H K"],
    q: Float[Tensor, "B H C K"],
    k: Float[Tensor, "B H C K"],
    log_discount: Float[Tensor, "B H C 1"],
    obs_noise: Float[Tensor, "B H C 1"],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    ratios = segment_ratios(log_discount)[..., 0]  # Gamma_t / Gamma_s
    total = log_discount[..., 0].cumsum(-1)  # log Gamma_t
    written = (k[..., :, None] * k[..., None, :] / obs_noise[..., None]).flatten(-2)
    gathered = (ratios.tril(-1) @ written).unflatten(-1, precision.shape[-2:])
    refill = -torch.expm1(total)[..., None] * floor[:, None, :]  # (1 - Gamma_t) Lambda
    predicted = total.exp()[..., None, None] * precision[:, :, None] + gathered + torch.diag_embed(refill)
    factor = torch.linalg.cholesky_ex(predicted).L
    solved = torch.cholesky_solve(torch.stack([k, q], -1), factor)
    predicted_k, predicted_q = solved.unbind(-1)
    innovation_var = (k * predicted_k).sum(-1, True) + obs_noise
    gain = predicted_k / innovation_var
    overlap = (predicted_k * q).sum(-1, True)
    posterior_q = predicted_q - gain * overlap
    var = (q * posterior_q).sum(-1, True).clamp(min=0)
    last = predicted[:, :, -1] + written[:, :, -1].unflatten(-1, precision.shape[-2:])
    return last, (gain, innovation_var, predicted_k, posterior_q, var)

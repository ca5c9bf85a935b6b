"""The covariance pass in chunks: keys and noises to gains and variances, exactly.

Legend (docs/math.md section 3): P_0 covariance before the chunk, R_t product of retentions since
then, c_t noise gathered since then. Within a chunk the innovations' joint covariance is

    G_sj = R_s R_j k_s^T P_0 k_j + (R_s / R_j) c_j k_s^T k_j + [s = j] r_s,        j <= s

``G = L D L^T``: D holds the innovation variances, and ``L^{-1}`` whitens the values, from which
every gain follows. All products but the one C x C factorisation are matrix products.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bayesmem.ops.chunking import map_chunks
from bayesmem.ops.decays import decayed_mix, decayed_scores, segment_ratios
from bayesmem.ops.step import symmetric


@dataclass(frozen=True, slots=True)
class Gains:
    """What a gain rule tells the mean pass, and what it knows of uncertainty."""

    gain: Float[Tensor, "B H T K"]
    innovation_var: Float[Tensor, "B H T"]
    final_cov: Tensor | None
    predictive_var: Float[Tensor, "B H T"] | None
    log_decay: Float[Tensor, "B H T D"] | None = None  # set where the rule moves the mean itself


def covariance_pass(
    k: Float[Tensor, "B H T K"],
    log_retention: Float[Tensor, "B H T D"],
    process_noise: Float[Tensor, "B H T E"],
    obs_noise: Float[Tensor, "B H T"],
    initial_cov: Float[Tensor, "B H K K"],
    q: Float[Tensor, "B H T K"] | None = None,
    chunk_size: int = 64,
) -> Gains:
    """Propagate the dense covariance through T tokens, chunk by chunk.

    Args:
        k: keys, any norm.
        log_retention: log of what the covariance keeps, per head (D = 1) or per channel (D = K).
        process_noise: variance added after the retention of each token, E = 1 or K.
        obs_noise: observation noise variance.
        initial_cov: symmetric positive semidefinite.
        q: queries, where the predictive variance is asked for.
        chunk_size: tokens factorised at once; it changes the speed and nothing else.

    Returns:
        Gains with the covariance after the last token.
    """
    streams = [k, log_retention, process_noise, obs_noise[..., None]]
    streams += [] if q is None else [q]
    outputs, final_cov = map_chunks(
        _chunk, initial_cov, streams, (0, 0, 0, 1, 0), chunk_size, remat=log_retention.shape[-1] > 1
    )
    var = outputs[2][..., 0] if q is not None else None
    return Gains(outputs[0], outputs[1][..., 0], final_cov, var)


def _chunk(
    cov: Float[Tensor, "B H K K"],
    k: Float[Tensor, "B H C K"],
    log_retention: Float[Tensor, "B H C D"],
    process_noise: Float[Tensor, "B H C E"],
    obs_noise: Float[Tensor, "B H C 1"],
    q: Float[Tensor, "B H C K"] | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    ratios = segment_ratios(log_retention)  # R_t / R_s
    since = log_retention.cumsum(-2).exp()  # R_t
    if ratios.shape[-1] == 1:
        gathered = ratios[..., 0] ** 2 @ process_noise  # c_t = sum_{i<=t} (R_t / R_i)^2 n_i
    else:
        gathered = (ratios**2 * process_noise[..., None, :, :]).sum(-2)
    carried, fresh = since * k, gathered * k
    through = carried @ cov
    lower = decayed_scores(k, fresh, ratios)
    joint = through @ carried.mT + lower + lower.tril(-1).mT + torch.diag_embed(obs_noise[..., 0])
    root = torch.linalg.cholesky_ex(joint).L  # L sqrt(D)
    eye = torch.eye(k.shape[-2], dtype=k.dtype, device=k.device)
    whiten = torch.linalg.solve_triangular(root, eye, upper=False)  # D^{-1/2} L^{-1}
    scale = root.diagonal(dim1=-2, dim2=-1)[..., None]  # sqrt(D)
    written = since * (whiten @ through) + decayed_mix(whiten, fresh, ratios)  # sqrt(D_s) gain_s
    outputs = [written / scale, scale**2]
    if q is not None:
        seen = since * q
        heard = seen @ through.mT + decayed_scores(q, fresh, ratios)
        explained = (heard @ whiten.mT).tril().square().sum(-1, True)
        prior = ((seen @ cov) * seen).sum(-1, True) + (gathered * q**2).sum(-1, True)
        outputs.append((prior - explained).clamp(min=0))
    kept = since[..., -1, :]
    left = ratios[..., -1, :, :] * written
    cov = cov * (kept[..., :, None] * kept[..., None, :]) - left.mT @ left
    cov = cov + torch.diag_embed(gathered[..., -1, :].expand(cov.shape[:-1]))
    return symmetric(cov), tuple(outputs)

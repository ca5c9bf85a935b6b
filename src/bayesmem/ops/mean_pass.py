"""The mean pass in chunks: gains and values to outputs, one for every measurement design.

The error-correcting write ``M_t = a_t M_{t-1} + g_t (v_t - a_t M_{t-1}^T k_t)^T``. Within a chunk the
innovations E solve a unit triangular system (the UT transform of the DeltaNet kernels, with
read key k and write key g; docs/math.md section 4):

    X_ts = k_t^T (R_t / R_s) g_s,  s < t         E = (I + X)^{-1} (V - (R K) M_0)
    O = (R Q) M_0 + tril(q_t^T (R_t / R_s) g_s) E        M_C = R_C M_0 + sum_s (R_C / R_s) g_s E_s^T
"""

import torch
from jaxtyping import Float
from torch import Tensor

from bayesmem.ops.chunking import map_chunks
from bayesmem.ops.decays import decayed_scores, segment_ratios


def mean_pass(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B H T K"],
    v: Float[Tensor, "B H T V"],
    gain: Float[Tensor, "B H T K"],
    log_decay: Float[Tensor, "B H T D"],
    initial_mean: Float[Tensor, "B H K V"],
    chunk_size: int = 64,
) -> tuple[Float[Tensor, "B H T V"], Float[Tensor, "B H T V"], Float[Tensor, "B H K V"]]:
    """Write every innovation along its gain and read out after each write.

    Returns:
        Outputs ``mean_t^T q_t``, innovations ``v_t - a_t mean_{t-1}^T k_t``, the final mean.
    """
    (o, innovation), final_mean = map_chunks(
        _chunk, initial_mean, (q, k, v, gain, log_decay), (0,) * 5, chunk_size, remat=log_decay.shape[-1] > 1
    )
    return o, innovation, final_mean


def _chunk(
    mean: Float[Tensor, "B H K V"],
    q: Float[Tensor, "B H C K"],
    k: Float[Tensor, "B H C K"],
    v: Float[Tensor, "B H C V"],
    gain: Float[Tensor, "B H C K"],
    log_decay: Float[Tensor, "B H C D"],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    ratios = segment_ratios(log_decay)
    since = log_decay.cumsum(-2).exp()
    reads = decayed_scores(k, gain, ratios)  # its diagonal is taken as ones below
    surprise = v - (since * k) @ mean
    innovation = torch.linalg.solve_triangular(reads, surprise, upper=False, unitriangular=True)
    o = (since * q) @ mean + decayed_scores(q, gain, ratios) @ innovation
    left = ratios[..., -1, :, :] * gain
    mean = since[..., -1, :, None] * mean + left.mT @ innovation
    return mean, (o, innovation)

"""The additive write in chunks: ``M_t = a_t M_{t-1} + w_t v_t^T``, nothing measured.

Serves the latent-input designs (linear attention, RetNet, GLA, Mamba-2) and, on information
vectors, the log-linear mixing of MesaNet.
"""

from jaxtyping import Float
from torch import Tensor

from bayesmem.ops.chunking import map_chunks
from bayesmem.ops.decays import decayed_scores, segment_ratios


def additive_write(
    q: Float[Tensor, "B H T K"],
    write_key: Float[Tensor, "B H T K"],
    v: Float[Tensor, "B H T V"],
    log_decay: Float[Tensor, "B H T D"],
    initial_mean: Float[Tensor, "B H K V"],
    chunk_size: int = 64,
) -> tuple[Float[Tensor, "B H T V"], Float[Tensor, "B H K V"]]:
    """Add every value along its write key and read out after each write.

    Returns:
        Outputs ``mean_t^T q_t`` and the final mean.
    """
    (o,), final_mean = map_chunks(
        _chunk, initial_mean, (q, write_key, v, log_decay), (0,) * 4, chunk_size, remat=log_decay.shape[-1] > 1
    )
    return o, final_mean


def _chunk(
    mean: Float[Tensor, "B H K V"],
    q: Float[Tensor, "B H C K"],
    write_key: Float[Tensor, "B H C K"],
    v: Float[Tensor, "B H C V"],
    log_decay: Float[Tensor, "B H C D"],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    ratios = segment_ratios(log_decay)
    since = log_decay.cumsum(-2).exp()
    o = (since * q) @ mean + decayed_scores(q, write_key, ratios) @ v
    left = ratios[..., -1, :, :] * write_key
    return since[..., -1, :, None] * mean + left.mT @ v, (o,)

"""The backward of the exact covariance pass: three launches, and up to two that read P_0 again.

Legend: Lambda_t = dLoss / dP_t after token t (symmetric), gamma, sigma, nu the gradients of gain g, innovation
variance s and predictive variance, P- predicted covariance. Differentiating one token of ``ops/step.py``,

    wbar = gamma / s - 2 Lambda_t g         sbar = sigma - gamma . g / s + g^T Lambda_t g
    Lambda-_t = Lambda_t + (wbar k^T + k wbar^T) / 2 + sbar k k^T
    Lambda_{t-1} = rho_t^2 Lambda-_t + nu_{t-1} q_{t-1} q_{t-1}^T

so Lambda is driven by keys and gradients alone, and only the gradients of keys and queries need P. In chunks:
``covariance_prepare`` (parallel), ``covariance_chain`` (a matrix product recurrence over the chunks, backwards),
``covariance_tokens`` (parallel), ``variance`` (products with P), for float32 streams ``covariance_retention``.
Where few heads go through long sequences, the chain runs over segments side by side (in CUDA covariance_cuts.cu, in
Triton ``covariance_segments``).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from bayesmem.ops.triton.covariance_chain import chain, chain_in_cuda
from bayesmem.ops.triton.covariance_prepare import prepare
from bayesmem.ops.triton.covariance_products import Pair
from bayesmem.ops.triton.covariance_segments import chain_segments, segmented_chain
from bayesmem.ops.triton.covariance_tokens import tokens
from bayesmem.ops.triton.mean_config import Tuning
from bayesmem.ops.triton.spans import Spans
from bayesmem.ops.triton.variance import posterior_times

# Products with P_0: what is subtracted from them can be nearly all there is.
PRODUCT_PRECISION = "tf32x3"

Gradients = tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor | None, Tensor]


def covariance_backward(
    k: Float[Tensor, "N G K"],
    q: Float[Tensor, "N G K"] | None,
    gain: Pair,
    innovation_var: Float[Tensor, "N H"],
    checkpoints: Float[Tensor, "NC H K K"],
    final_cov: Float[Tensor, "S H K K"],
    log_retention: Float[Tensor, "N H"],
    process_noise: Float[Tensor, "N H"],
    obs_noise: Float[Tensor, "N H"],
    floor: Float[Tensor, "H"],
    spans: Spans,
    dgain: Float[Tensor, "N H K"],
    dinnovation_var: Float[Tensor, "N H"] | None,
    dvar: Float[Tensor, "N H"] | None,
    d_final_cov: Float[Tensor, "S H K K"] | None,
    prec: str,
    tuning: Tuning | None = None,
    dk: Float[Tensor, "N H K"] | None = None,
    want_floor: bool = True,
) -> Gradients:
    """Gradients of the covariance pass.

    Args:
        k: keys; value head h reads key head ``h // (H // G)``.
        q: queries, where ``dvar`` is given.
        gain: of the forward pass ``[N, H, K]``, a pair of bfloat16 only with ``bf16x3`` and without ``dvar``.
        innovation_var: of the forward pass, float32, as all that follows.
        checkpoints: the symmetric covariance before every chunk.
        final_cov: the covariance after every sequence.
        log_retention: at most 0.
        process_noise: variance added after the retention.
        obs_noise: as given, before the floor.
        floor: the effective noise is ``max(obs_noise, floor |k|^2)``.
        spans: where sequences and chunks lie.
        dgain: gradient of the gains.
        dinnovation_var: gradient of the innovation variances.
        dvar: gradient of the predictive variances.
        d_final_cov: gradient of ``final_cov``, symmetric or not.
        prec: precision of the products that make Lambda (``covariance_products``): ``bf16x3`` for streams of 16 bits,
            ``tf32x3`` for those of float32, which also get ``covariance_retention``. Products with P_0 that make dq
            subtract, and are always ``tf32x3``.
        tuning: overrides a kernel: ``prepare``, ``chain``, ``tokens``, ``retention``, ``posterior``.
        dk: what other passes have found of the gradient of k; this one's is added to it in place.
        want_floor: whether the gradient of the floor is asked for.

    Returns:
        Gradients of k ``[N, H, K]`` (a value head each; ``dk`` where it is given) and q (None without ``dvar``) in the
        dtype of the streams, of log_retention, process_noise, obs_noise ``[N, H]``, floor ``[H]`` (None where it
        is not asked for), and the initial covariance (symmetric).

    Raises:
        ValueError: the gain is a pair, and another precision or the gradient of variances asks for float32.
    """
    if gain[1] is not None and (prec != "bf16x3" or dvar is not None):
        raise ValueError("a pair of gains is for the products of bf16x3, and not for gradients of variances")
    covariance = (gain[0], innovation_var, checkpoints, log_retention, process_noise)
    dq = var = None
    if q is not None and dvar is not None:
        dq, var = posterior_times(q, 2 * dvar, covariance, spans, PRODUCT_PRECISION, tuning)
        dvar = torch.where(var > 0, dvar, 0)  # it was cut there
    gradients = (dgain, dinnovation_var, dvar)
    prepared = prepare(k, q, gain, innovation_var, log_retention, *gradients, spans, prec, tuning)
    gates = (log_retention, process_noise, obs_noise, floor)
    given = (prepared, dvar, k, gates, checkpoints, final_cov, d_final_cov)
    in_cuda = chain_in_cuda(final_cov, k.dtype, dvar, spans, prec, tuning)
    segments = None if in_cuda else chain_segments(final_cov, spans, prec, tuning)
    if segments is None:
        chained, d_initial_cov = chain(*given, spans, prec, tuning)
    else:
        chained, d_initial_cov = segmented_chain(*given, segments, prec, tuning)
        spans = segments.spans
    known = (var, checkpoints, prepared, chained)
    made = tokens(k, q, innovation_var, gates, gradients, *known, spans, prec, tuning, dk, want_floor)
    gates_made = (made.log_retention, made.process_noise, made.obs_noise)
    return made.k, dq, *gates_made, made.floor.sum(0) if want_floor else None, d_initial_cov

"""From the checked arguments of ``bayesian_filter`` to a ``Problem``: heads first, one dtype, nothing implied."""

import torch
from torch import Tensor

from bayesmem.ops.assumptions import Additive, Assumptions, Discount, PriorMixing
from bayesmem.ops.problem import Problem
from bayesmem.ops.step import AffineNoise, PrecisionNoise
from bayesmem.types import Belief

LOG_ZERO = -60.0  # e^-60: a hard reset (log 0) without infinities in sums


def working_dtype(q: Tensor) -> torch.dtype:
    """float64 for float64 inputs, else float32."""
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def normalised(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    obs_noise: Tensor | None,
    assumptions: Assumptions,
    belief: Belief | None,
    bounds: list[int] | None,
) -> Problem:
    """State the filtering problem in full: defaults filled in, floors applied, keys shared out to value heads.

    Args:
        q: queries ``[B, T, G, K]``.
        k: keys ``[B, T, G, K]``.
        v: values ``[B, T, H, V]``.
        log_decay: ``[B, T, H]``, ``[B, T, H, K]`` or none.
        obs_noise: ``[B, T, H]`` or none.
        assumptions: of the filter.
        belief: initial belief, if one is given.
        bounds: offsets of packed sequences, each of which gets a row of the initial belief.
    """
    noise, covariance = assumptions.process_noise, assumptions.covariance
    # In precision form 1 / obs_noise spans more decades than float32 has digits.
    precise = covariance == "full" and not isinstance(noise, PriorMixing | Additive)
    dtype = torch.float64 if precise else working_dtype(q)
    (batch, length, heads, value_dim), key_dim = v.shape, q.shape[-1]
    groups = heads // q.shape[2]
    queries, keys = (_heads_first(x, dtype) for x in (q, k))
    if groups > 1:
        queries, keys = (x.repeat_interleave(groups, 1) for x in (queries, keys))
    decay = q.new_zeros(batch, heads, length, 1, dtype=dtype) if log_decay is None else _log_gate(log_decay, dtype)
    prior = torch.as_tensor(assumptions.prior_var, dtype=dtype, device=q.device)
    prior = (prior if prior.ndim == 2 else prior[..., None]).expand(heads, key_dim)
    if covariance == "isotropic":
        prior = prior.mean(-1, True).expand(heads, key_dim)
    observed = decay.new_ones(batch, heads, length) if obs_noise is None else _heads_first(obs_noise, dtype)
    if obs_noise is not None and covariance != "reset":
        along_key = prior.mean(-1)[:, None] * keys.square().sum(-1)
        observed = torch.maximum(observed, assumptions.obs_noise_floor * along_key)
    rows = batch if bounds is None else len(bounds) - 1
    mean = q.new_zeros(rows, heads, key_dim, value_dim, dtype=dtype) if belief is None else belief.mean.to(dtype)
    given = None if belief is None or belief.cov is None else belief.cov.to(dtype)
    return Problem(
        q=queries,
        k=keys,
        v=_heads_first(v, dtype),
        log_decay=decay,
        obs_noise=observed,
        noise=_noise(assumptions, decay, prior),
        prior_var=prior,
        steady_var=None if assumptions.steady_var is None else assumptions.steady_var.to(dtype),
        initial=Belief(mean, _prior_cov(prior, covariance, rows) if given is None else given),
        covariance=covariance,
        measured=assumptions.write == "measurement",
        dof=assumptions.dof,
        half=q.dtype.itemsize == 2,
        from_prior=given is None,
    )


def _heads_first(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype).transpose(1, 2)


def _gate(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``[B, H, T, D]``, D = 1 or K."""
    return _heads_first(x if x.ndim == 4 else x[..., None], dtype)


def _log_gate(x: Tensor, dtype: torch.dtype) -> Tensor:
    return _gate(x, dtype).clamp(min=LOG_ZERO)


def _noise(assumptions: Assumptions, decay: Tensor, prior: Tensor) -> AffineNoise | PrecisionNoise:
    """The process noise as one of the two forms that ``step.predict`` knows."""
    noise, dtype = assumptions.process_noise, decay.dtype
    if isinstance(noise, PriorMixing):
        retention = decay if noise.log_retention is None else _log_gate(noise.log_retention, dtype)
        shared = prior.stride(-1) == 0  # one prior variance a head: keep the noise scalar too
        mixed = prior[:, None, : 1 if shared else None]
        return AffineNoise(retention, -torch.expm1(2 * retention) * mixed)
    if isinstance(noise, Additive):
        given = noise.variance
        scalar = (*decay.shape[:3], 1)
        return AffineNoise(decay, _gate(given, dtype) if isinstance(given, Tensor) else decay.new_full(scalar, given))
    if isinstance(noise, Discount):
        return PrecisionNoise(_log_gate(noise.log_discount, dtype), noise.floor / prior, moves_mean=False)
    return PrecisionNoise(decay, 1 / prior, moves_mean=True)


def _prior_cov(prior: Tensor, covariance: str, rows: int) -> Tensor | None:
    """The prior as an initial covariance, in the structure's own layout."""
    heads, key_dim = prior.shape
    if covariance == "full":
        return torch.diag_embed(prior).expand(rows, heads, key_dim, key_dim)
    if covariance == "diagonal":
        return prior.expand(rows, heads, key_dim)
    return prior[:, :1].expand(rows, heads, 1) if covariance == "isotropic" else None

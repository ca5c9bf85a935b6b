"""Gates of a full covariance under prior mixing as a torch operator."""

import torch
from torch import Tensor

from bayesmem.ops.fused.operator import operator
from bayesmem.ops.fused.tables import whole
from bayesmem.ops.triton import gates as kernels


@operator("bayesmem::gates", repeats=True)
def gates_op(
    log_decay: Tensor,
    log_retention: Tensor | None,
    obs_noise: Tensor,
    prior: Tensor | None,
    prior_var: float,
    ratio: float,
    key_dim: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What a full covariance under prior mixing starts from, and what it goes by at every token.

    Arguments and what it returns are those of ``ops/triton/gates.py``.
    """
    return kernels.gates(log_decay, log_retention, obs_noise, prior, prior_var, ratio, key_dim)


@gates_op.register_fake
def _(log_decay, log_retention, obs_noise, prior, prior_var, ratio, key_dim):  # type: ignore[no-untyped-def]
    batch, length, heads = log_decay.shape
    wide = {"dtype": torch.float32}
    made = (log_decay.new_empty(batch * length, heads, **wide) for _ in range(4))
    return *made, log_decay.new_empty(heads, **wide), log_decay.new_empty(1, heads, key_dim, key_dim, **wide)


@operator("bayesmem::gates_backward", repeats=True)
def _backward_op(
    d_decay: Tensor | None,
    d_retention: Tensor | None,
    d_added: Tensor | None,
    d_noise: Tensor | None,
    log_decay: Tensor,
    log_retention: Tensor | None,
    prior: Tensor | None,
    retention: Tensor,
    noise_dtype: torch.dtype,
    prior_var: float,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Gradients of both logs (of the second where it was given), the noise, and of the prior by the third."""
    gradients = (d_decay, d_retention, d_added, d_noise)
    given = (log_decay, log_retention, noise_dtype, prior, prior_var, retention)
    return kernels.gates_backward(gradients, *given)


@_backward_op.register_fake
def _(d_decay, d_retention, d_added, d_noise, log_decay, log_retention, prior, retention, noise_dtype, prior_var):  # type: ignore[no-untyped-def]
    d_log_retention = None if log_retention is None else torch.empty_like(log_retention)
    d_prior = None if prior is None or d_added is None else torch.empty_like(prior)
    d_log_decay = torch.empty_like(log_decay)
    return d_log_decay, d_log_retention, torch.empty_like(log_decay, dtype=noise_dtype), d_prior


def _context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    log_decay, log_retention, obs_noise, prior, ctx.prior_var, ctx.ratio, _ = inputs
    ctx.noise_dtype = obs_noise.dtype
    ctx.set_materialize_grads(False)
    if prior is None:
        ctx.mark_non_differentiable(*output[4:])
    ctx.save_for_backward(log_decay, log_retention, prior, output[1])


def _gradient(ctx, d_decay, d_retention, d_added, d_noise, d_floor, d_start):  # type: ignore[no-untyped-def]
    log_decay, log_retention, prior, retention = ctx.saved_tensors
    gradients = map(whole, (d_decay, d_retention, d_added, d_noise))
    place = (log_decay, log_retention, prior, retention, ctx.noise_dtype, ctx.prior_var)
    d_log_decay, d_log_retention, d_obs_noise, d_prior = _backward_op(*gradients, *place)
    if prior is not None:
        d_prior = torch.zeros_like(prior) if d_added is None else d_prior
        if d_floor is not None:
            d_prior = d_prior + ctx.ratio * d_floor
        if d_start is not None and d_start.numel():
            d_prior = d_prior + d_start[0].diagonal(dim1=-2, dim2=-1).sum(-1)
    retained = None if log_retention is None else d_log_retention
    return d_log_decay, retained, d_obs_noise, None if prior is None else d_prior, None, None, None


gates_op.register_autograd(_gradient, _context)

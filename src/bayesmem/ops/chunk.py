"""The chunk-parallel back end: a gain rule, then the mean pass. Exact, differentiable, linear in T."""

import torch
from torch import Tensor

from bayesmem.ops.additive_write import additive_write
from bayesmem.ops.covariance_pass import Gains, covariance_pass
from bayesmem.ops.gains import constant_cov, constant_gains, diagonal_gains, isotropic_gains
from bayesmem.ops.mean_pass import mean_pass
from bayesmem.ops.precision_kernel import kernel_chunk, kernel_write
from bayesmem.ops.precision_pass import PrecisionGains, precision_pass
from bayesmem.ops.precision_solve import inverse_of, last_information, solve_precision
from bayesmem.ops.problem import Problem, Solution
from bayesmem.ops.step import AffineNoise, PrecisionNoise
from bayesmem.types import Belief

# Tokens a chunk: scalar decays pay C^2 (so less where K is small), per-channel decays C^2 K,
# precision form K^2 a token.
SCALAR_CHUNK, SMALL_KEY_CHUNK, CHANNEL_CHUNK, PRECISION_CHUNK = 64, 32, 16, 16
# Where log-linear mixing without evidence iterates (products are quick there) instead of factorising at every token.
ITERATIVE_DEVICES = ("cuda",)


def filter_chunk(
    problem: Problem,
    want_var: bool,
    chunk_size: int | None = None,
    want_evidence: bool = True,
    want_belief: bool = True,
) -> Solution:
    """Filter in chunks.

    Args:
        problem: evidence and assumptions.
        want_var: whether the predictive variance is asked for (it costs the full covariance
            two more C x C products a chunk).
        chunk_size: tokens a chunk; ``None`` chooses by the kind of decay.
        want_evidence: whether innovations and their variances are asked for (they cost log-linear mixing
            every token's gain); without, the solution may leave them out.
        want_belief: whether the final belief is asked for; likewise.
    """
    p = problem
    if not p.measured:
        return _filter_latent(p, want_var, chunk_size)
    if p.covariance == "full" and isinstance(p.noise, PrecisionNoise):
        return _filter_precision(p, want_evidence, want_belief, chunk_size)
    gains = _gains(p, want_var, chunk_size)
    log_decay = p.log_decay if gains.log_decay is None else gains.log_decay
    size = chunk_size or _size(log_decay, p.q.shape[-1])
    o, innovation, mean = mean_pass(p.q, p.k, p.v, gains.gain, log_decay, p.initial.mean, size)
    belief = Belief(mean, gains.final_cov)
    return Solution(o, belief, gains.predictive_var, innovation, gains.innovation_var)


def _size(log_decay: Tensor, key_dim: int) -> int:
    if log_decay.shape[-1] > 1:
        return CHANNEL_CHUNK
    return SCALAR_CHUNK if key_dim > SMALL_KEY_CHUNK else SMALL_KEY_CHUNK


def _gains(p: Problem, want_var: bool, chunk_size: int | None) -> Gains:
    constant = constant_cov(p)
    if constant is not None:
        return constant_gains(p.q, p.k, p.obs_noise, constant)
    cov = p.initial.cov
    assert cov is not None
    if p.covariance == "diagonal":
        return diagonal_gains(p.q, p.k, p.obs_noise, p.noise, cov)
    if p.covariance == "isotropic":
        return isotropic_gains(p.q, p.k, p.obs_noise, p.noise, cov)
    assert isinstance(p.noise, AffineNoise)
    retention, variance = p.noise.log_retention, p.noise.variance
    size = chunk_size or _size(retention, p.q.shape[-1])
    return covariance_pass(p.k, retention, variance, p.obs_noise, cov, p.q if want_var else None, size)


def _filter_precision(p: Problem, want_evidence: bool, want_belief: bool, chunk_size: int | None) -> Solution:
    assert isinstance(p.noise, PrecisionNoise) and p.initial.cov is not None
    iterate = p.noise.moves_mean and not want_evidence and p.initial.cov.device.type in ITERATIVE_DEVICES
    if iterate and p.from_prior:
        start = torch.diag_embed(1 / p.prior_var).expand_as(p.initial.cov)
        return _read_precision(p, p.noise, start, want_belief, chunk_size)
    factor, failed = torch.linalg.cholesky_ex(p.initial.cov)
    if p.initial.cov.device.type == "cpu" and failed.any():
        raise ValueError(
            "initial_belief.cov is not positive definite; this noise works on its inverse: add a diagonal."
        )
    if iterate:
        return _read_precision(p, p.noise, inverse_of(factor), want_belief, chunk_size)
    start = torch.cholesky_inverse(factor)
    size = chunk_size or PRECISION_CHUNK
    gains: PrecisionGains = precision_pass(p.q, p.k, p.noise.log_discount, p.noise.floor, p.obs_noise, start, size)
    cov = torch.cholesky_inverse(torch.linalg.cholesky_ex(gains.final_precision).L)
    size = chunk_size or _size(p.log_decay, p.q.shape[-1])
    if not p.noise.moves_mean:
        o, innovation, mean = mean_pass(p.q, p.k, p.v, gains.gain, p.log_decay, p.initial.mean, size)
    else:  # the information vector decays by gamma: an additive write, read through P
        info, write_key = start @ p.initial.mean, p.k / p.obs_noise[..., None]
        o, last = additive_write(gains.posterior_q, write_key, p.v, p.noise.log_discount, info, size)
        seen, _ = additive_write(gains.predicted_k, write_key, p.v, p.noise.log_discount, info, size)
        own = (gains.predicted_k * write_key).sum(-1, True)
        innovation, mean = (1 + own) * p.v - seen, cov @ last
    return Solution(o, Belief(mean, cov), gains.predictive_var, innovation, gains.innovation_var)


def _read_precision(
    p: Problem, noise: PrecisionNoise, start: Tensor, want_belief: bool, chunk_size: int | None
) -> Solution:
    """Log-linear mixing without gains: the information vector, read through the precision."""
    rest = (noise.log_discount, noise.floor, p.obs_noise, start)
    posterior_q = solve_precision(p.q, p.k, *rest, None, kernel_chunk(p))
    info = start @ p.initial.mean
    written = (posterior_q, p.k / p.obs_noise[..., None], p.v, noise.log_discount, info)
    if posterior_q.dtype == torch.float32:  # the kernel's
        o = kernel_write(*written)
    else:
        o, _ = additive_write(*written, chunk_size or _size(p.log_decay, p.q.shape[-1]))
    var = (p.q * posterior_q).sum(-1).clamp(min=0)
    if not want_belief:
        return Solution(o, None, var)
    precision, info = last_information(p.k, p.v, *rest, info)
    cov = inverse_of(torch.linalg.cholesky_ex(precision).L)
    return Solution(o, Belief(cov @ info, cov), var)


def _filter_latent(p: Problem, want_var: bool, chunk_size: int | None) -> Solution:
    size = chunk_size or _size(p.log_decay, p.q.shape[-1])
    o, mean = additive_write(p.q, p.k, p.v, p.log_decay, p.initial.mean, size)
    if p.covariance == "none":
        return Solution(o, Belief(mean, None))
    assert isinstance(p.noise, AffineNoise) and p.initial.cov is not None
    # The covariance runs open loop: a measurement through a zero key says nothing.
    silent, noise = torch.zeros_like(p.k), torch.ones_like(p.obs_noise)
    retention, size = p.noise.log_retention, chunk_size or _size(p.noise.log_retention, p.q.shape[-1])
    query = p.q if want_var else None
    open_loop = covariance_pass(silent, retention, p.noise.variance, noise, p.initial.cov, query, size)
    return Solution(o, Belief(mean, open_loop.final_cov), open_loop.predictive_var)

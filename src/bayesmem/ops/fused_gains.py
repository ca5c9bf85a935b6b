"""Evidence as the kernels take it, one row of all tokens with gates in float32, and gains that come before the mean."""

from typing import NamedTuple

import torch
from torch import Tensor

from bayesmem.ops.assumptions import Assumptions
from bayesmem.ops.fused_noise import Gates, channel_noise, scalar_noise
from bayesmem.ops.step import symmetric


class Evidence(NamedTuple):
    """N tokens of all sequences in one row.

    Attributes:
        q: queries ``[N, G, K]``; where the covariance is full and decays are by head, ``[B, T, G, K]`` as they came,
            and so the next two.
        k: keys ``[N, G, K]``.
        v: values ``[N, H, V]``.
        gates: of every token.
        prior: prior variance, a number, ``[H]`` or ``[H, K]``.
        mean: initial ones, ``[S, H, K, V]``; ``None`` is zero.
        cov: initial ones, as the structure carries them; ``None`` is the prior.
        place: offsets of packed sequences or ``None``, else sequences of equal length, and tokens a chunk.
        sequences: S.
        want_var: whether the predictive variance is asked for.
        want_energy: whether the squared innovations are asked for.
        want_belief: whether the belief after the last token is asked for.
        learning: whether a backward pass may follow.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    gates: Gates
    prior: Tensor | float
    mean: Tensor | None
    cov: Tensor | None
    place: tuple[Tensor | None, int, int]
    sequences: int
    want_var: bool
    want_energy: bool
    want_belief: bool
    learning: bool


class FusedGains(NamedTuple):
    """What the mean is written along.

    Attributes:
        gain: ``[N, H, K]``.
        innovation_var: ``[N, H]``.
        var: predictive variance ``[N, H]``, where asked for.
        final_cov: after the last token, where one is carried.
    """

    gain: Tensor
    innovation_var: Tensor
    var: Tensor | None = None
    final_cov: Tensor | None = None


def dense_start(e: Evidence) -> Tensor:
    """The full covariance before the first token, ``[S, H, K, K]``."""
    if e.cov is not None:
        return e.cov
    heads, key_dim = e.v.shape[-2], e.k.shape[-1]
    if e.gates.start is not None:
        return e.gates.start.expand(e.sequences, -1, -1, -1)
    if isinstance(e.prior, Tensor):
        return torch.diag_embed(e.prior[None, :, None].expand(e.sequences, -1, key_dim))
    start = e.gates.noise.new_zeros(e.sequences, heads, key_dim, key_dim)
    start.diagonal(dim1=-2, dim2=-1).fill_(e.prior)
    return start


def dense_end(cov: Tensor, e: Evidence) -> Tensor | None:
    """The full covariance after the last token without rounding's asymmetry, where it is asked for."""
    return symmetric(cov) if e.want_belief else None


def dense_gates(e: Evidence, a: Assumptions) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log retention, process noise and observation noise ``[N, H]``, and the floor ``[H]``, of a full covariance."""
    if e.gates.mixed is not None:
        retention, added, floor = e.gates.mixed
        return retention, added, e.gates.noise, floor
    least = a.obs_noise_floor * e.prior
    if not isinstance(least, Tensor):
        least = e.gates.noise.new_full(e.v.shape[-2:-1], least)
    return *scalar_noise(a, e.gates.decay, e.prior), e.gates.noise, least


def gains_of(e: Evidence, a: Assumptions) -> FusedGains:
    """Gains of any structure, without the mean; a latent-input write's are its keys."""
    from bayesmem.ops import fused

    heads = e.v.shape[1]
    if a.write == "latent_input":
        return FusedGains(e.k.repeat_interleave(heads // e.k.shape[1], 1), e.gates.noise)
    if a.covariance == "full":
        query = e.q if e.want_var else None
        passed = fused.covariance_op(e.k, query, *dense_gates(e, a), dense_start(e), *e.place, e.learning)
        gain, innovation_var, final_cov, var, _ = passed
        return FusedGains(gain, innovation_var, var, dense_end(final_cov, e))
    prior = e.prior if isinstance(e.prior, Tensor) else e.gates.noise.new_full((heads,), e.prior)
    if a.covariance == "reset" and prior.ndim == 1:
        gain, innovation_var = fused.constant_gain_op(e.k, e.gates.noise, prior)
        if not e.want_var:
            return FusedGains(gain, innovation_var)
        given = (_wide(e.k, heads), prior[:, None], e.gates.noise, gain, innovation_var)
        return FusedGains(gain, innovation_var, _reduced_var("reset", _wide(e.q, heads), *given))
    return _elementwise(e, a, prior)


def _elementwise(e: Evidence, a: Assumptions, prior: Tensor) -> FusedGains:
    """Of a variance a channel, or one for all: carried, or constant."""
    from bayesmem.ops import fused

    heads, noise, final_cov = e.v.shape[1], e.gates.noise, None
    keys = _wide(e.k, heads)
    if a.covariance != "reset":
        mean_prior = prior if prior.ndim == 1 else prior.mean(-1)
        noise = torch.maximum(noise, a.obs_noise_floor * mean_prior * keys.square().sum(-1))
    if a.covariance == "isotropic":
        start = mean_prior[:, None].expand(e.sequences, heads, 1).contiguous() if e.cov is None else e.cov
        gates = (*channel_noise(a, e.gates.decay, mean_prior), noise)
        predicted, final_cov = _isotropic_variances(keys, *gates, start, e.place)
    elif a.covariance == "diagonal":
        wide = (prior if prior.ndim == 2 else prior[:, None]).expand(e.sequences, heads, keys.shape[-1])
        start = wide.contiguous() if e.cov is None else e.cov
        gates = (*channel_noise(a, e.gates.decay, prior), noise)
        predicted, final_cov = fused.diagonal_op(e.k, *gates, start, *e.place)
    else:
        constant = prior if a.covariance == "reset" else a.steady_var.float()  # type: ignore[union-attr]
        predicted = constant if constant.ndim == 2 else constant[:, None]
    cov_k = predicted * keys
    innovation_var = (keys * cov_k).sum(-1) + noise
    gain, var = cov_k / innovation_var[..., None], None
    if e.want_var:
        given = (keys, predicted, noise, gain, innovation_var)
        var = _reduced_var(a.covariance, _wide(e.q, heads), *given)
    return FusedGains(gain, innovation_var, var, final_cov)


def _wide(x: Tensor, heads: int) -> Tensor:
    """Streams ``[N, G, K]`` in float32, one a value head."""
    return x.float().repeat_interleave(heads // x.shape[1], 1)


def _isotropic_variances(
    keys: Tensor, retention: Tensor, added: Tensor, noise: Tensor, given: Tensor, place: tuple[Tensor | None, int, int]
) -> tuple[Tensor, Tensor]:
    """Predicted variances ``[N, H, 1]`` and final ones ``[S, H, 1]``.

    Of retention and noise per channel the means count: of squares, and of variances.
    """
    from bayesmem.ops import fused

    keep, added = (x if x.ndim == 2 else x.mean(-1) for x in ((2 * retention).exp(), added))
    power = keys.square().sum(-1)
    predicted, final = fused.isotropic_op(keep, added, power, noise, given[..., 0], keys.shape[-1], *place)
    return predicted[..., None], final[..., None]


def _reduced_var(
    covariance: str,
    queries: Tensor,
    keys: Tensor,
    predicted: Tensor,
    noise: Tensor,
    gain: Tensor,
    innovation_var: Tensor,
) -> Tensor:
    """Predictive variance after the update, of a carried diagonal or of the one-token posterior from a constant."""
    if covariance == "diagonal":
        posterior = predicted * noise[..., None] / (noise[..., None] + predicted * keys.square())
        return (posterior * queries.square()).sum(-1)
    if covariance == "isotropic":  # of K channels one is explained but for noise / innovation_var
        left = (keys.shape[-1] - 1 + noise / innovation_var) / keys.shape[-1]
        return predicted[..., 0] * left * queries.square().sum(-1)
    explained = innovation_var * (gain * queries).sum(-1).square()
    return ((predicted * queries.square()).sum(-1) - explained).clamp(min=0)

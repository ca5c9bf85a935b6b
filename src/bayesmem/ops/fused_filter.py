"""The kernel back end: the filter's arguments, as they come, through the fused passes. Float32 covariance, linear in T.

Nothing is transposed or copied: kernels read ``[B, T, H, D]`` as one row of tokens. What they do not know is refused
here by name (or, under ``backend="auto"``, left to the chunk form).
"""

import math
import os
from typing import Any

import torch
from torch import Tensor

from bayesmem.ops.assumptions import Additive, Assumptions, PriorMixing
from bayesmem.ops.fused_noise import channel_noise, scalar_noise
from bayesmem.ops.normalise import LOG_ZERO
from bayesmem.ops.triton.device import LARGE_SHARED, limits
from bayesmem.ops.validate import MEASURED
from bayesmem.types import Belief, FilterOutput

MAX_KEY_DIM, MAX_VALUE_DIM, SMALL_KEY_DIM = 256, 512, 128
CHUNKS = (16, 32, 64)


def available(q: Tensor) -> str | None:
    """Why there are no kernels for this device, or ``None``."""
    if q.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "it needs a GPU (q is on the CPU; TRITON_INTERPRET=1, set before Python starts, runs it there for tests)"
    try:
        import triton  # noqa: F401
    except ImportError:
        return "it needs Triton: pip install 'bayesmem[kernels]'"
    return None


def unsupported(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, a: Assumptions, chunk: int | None
) -> str | None:
    """Why the kernels cannot do this, in words that end a sentence, or ``None``."""
    noise = a.process_noise
    if q.dtype == torch.float64:
        return "its covariance is float32 and the inputs are float64"
    if a.write == "latent_input" and a.covariance != "none":
        return f"its latent-input write takes covariance='none' (got {a.covariance!r})"
    if a.dof is not None:
        return "it has no Student-t noise"
    if not isinstance(noise, PriorMixing | Additive):
        return f"it has no {type(noise).__name__} noise"
    if k.shape[-1] > MAX_KEY_DIM or v.shape[-1] > MAX_VALUE_DIM:
        return f"K is at most {MAX_KEY_DIM} and V {MAX_VALUE_DIM} (got {k.shape[-1]} and {v.shape[-1]})"
    if k.shape[-1] > SMALL_KEY_DIM and chunk_size(q) < CHUNKS[-1] and q.device.type == "cuda":
        return f"K above {SMALL_KEY_DIM} needs a GPU with {LARGE_SHARED // 1024} KiB of shared memory a block"
    if chunk is not None and chunk not in CHUNKS:
        return f"its chunks have {', '.join(map(str, CHUNKS))} tokens (got {chunk})"
    if a.covariance == "steady_state" and a.steady_var is None:
        return "its steady state needs a given steady_var"
    if a.covariance != "full":
        return None
    per_channel = isinstance(a.prior_var, Tensor) and a.prior_var.ndim == 2
    given = noise.log_retention if isinstance(noise, PriorMixing) else noise.variance
    tied = given is None or isinstance(noise, Additive)  # what the covariance retains is the decay
    kept = log_decay if tied else None
    if per_channel or any(isinstance(x, Tensor) and x.ndim == 4 for x in (given, kept)):
        return "retention, noise and prior of a full covariance are per head, not per channel"
    return None


def chunk_size(q: Tensor) -> int:
    """Tokens a chunk on this device."""
    if q.device.type != "cuda":
        return 16
    return 64 if limits(q.device).shared >= LARGE_SHARED else 32


def filter_fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    obs_noise: Tensor | None,
    a: Assumptions,
    belief: Belief | None,
    cu_seqlens: Tensor | None,
    outputs: tuple[str, ...],
    chunk: int | None = None,
) -> FilterOutput:
    """Filter with the kernels; arguments as of ``bayesian_filter``, checked, of a kind that ``unsupported`` passes.

    A latent-input write is a measurement through zero keys, which says nothing: values go in whole, along a gain that
    is the write key.
    """
    from bayesmem.ops import fused

    (batch, length, _, key_dim), (heads, value_dim) = q.shape, v.shape[2:]
    sequences = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    size = chunk or chunk_size(q)
    place = (cu_seqlens, batch, size)
    wide: dict[str, Any] = {"dtype": torch.float32, "device": q.device}

    def row(x: Tensor) -> Tensor:
        return x.reshape(batch * length, *x.shape[2:]).contiguous()

    def gate(x: Tensor) -> Tensor:
        return row(x.to(torch.float32))

    tensors = (q, k, v, obs_noise, log_decay, *_held(a), *(() if belief is None else (belief.mean, belief.cov)))
    learning = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    q, k, v = row(q), row(k), row(v)
    noise = torch.ones(batch * length, heads, **wide) if obs_noise is None else gate(obs_noise)
    decay = torch.zeros(batch * length, heads, **wide) if log_decay is None else gate(log_decay).clamp(min=LOG_ZERO)
    by_channel = decay.ndim == 3
    prior = a.prior_var.float() if isinstance(a.prior_var, Tensor) else torch.full((heads,), float(a.prior_var), **wide)
    start = None if belief is None else belief.mean.float().contiguous()
    given = None if belief is None or belief.cov is None else belief.cov.float().contiguous()
    want_var, want_evidence = "predictive_var" in outputs, not set(MEASURED).isdisjoint(outputs)
    var = final_cov = None
    stepwise = length == 1 and cu_seqlens is None and not learning and not by_channel
    if a.write == "latent_input":
        gain, innovation_var, k = k.repeat_interleave(heads // k.shape[1], 1), noise, torch.zeros_like(k)
    elif a.covariance == "full":
        retention, added = scalar_noise(a, decay, prior, gate)
        if given is None:
            given = torch.diag_embed(prior[:, None].expand(heads, key_dim)).expand(sequences, -1, -1, -1).contiguous()
        elif stepwise:
            given = given.clone()  # the step is in place, and a belief is the caller's
        gates = (retention, added, noise)
        floor = a.obs_noise_floor * prior
        if stepwise:
            mean = torch.zeros(batch, heads, key_dim, value_dim, **wide) if start is None else start.clone()
            o, var, innovation_var, energy = fused.decode_op(
                q, k, v, decay, *gates, floor, mean, given, None, "full", want_var, want_evidence
            )
            return _output(o, var, innovation_var, energy, Belief(mean, given), value_dim, (batch, 1, heads), outputs)
        if not by_channel:
            o, energy, final_mean, innovation_var, final_cov, var, *_ = fused.filter_op(
                q, k, v, decay, *gates, floor, start, given, *place, want_var, want_evidence, learning
            )
            last = Belief(final_mean, final_cov)
            return _output(o, var, innovation_var, energy, last, value_dim, (batch, length, heads), outputs)
        query = q if want_var else None
        gain, innovation_var, final_cov, var, _ = fused.covariance_op(k, query, *gates, floor, given, *place, learning)
    elif a.covariance == "reset" and prior.ndim == 1:
        gain, innovation_var = fused.constant_gain_op(k, noise, prior)
        if want_var:
            var = _reduced_var("reset", _wide(q, heads), _wide(k, heads), prior[:, None], noise, gain, innovation_var)
    else:
        keys = _wide(k, heads)
        if a.covariance != "reset":
            mean_prior = prior if prior.ndim == 1 else prior.mean(-1)
            noise = torch.maximum(noise, a.obs_noise_floor * mean_prior * keys.square().sum(-1))
        if a.covariance == "isotropic":
            if given is None:
                given = mean_prior[:, None].expand(sequences, heads, 1).contiguous()
            gates = (*channel_noise(a, decay, mean_prior, gate), noise)
            predicted, final_cov = _isotropic_variances(keys, *gates, given, place)
        elif a.covariance == "diagonal":
            retention, added = channel_noise(a, decay, prior, gate)
            if given is None:
                given = (prior if prior.ndim == 2 else prior[:, None]).expand(sequences, heads, key_dim).contiguous()
            predicted, final_cov = fused.diagonal_op(k, retention, added, noise, given, *place)
        else:
            constant = prior if a.covariance == "reset" else a.steady_var.float()  # type: ignore[union-attr]
            predicted = constant if constant.ndim == 2 else constant[:, None]
        cov_k = predicted * keys
        innovation_var = (keys * cov_k).sum(-1) + noise
        gain = cov_k / innovation_var[..., None]
        if want_var:
            var = _reduced_var(a.covariance, _wide(q, heads), keys, predicted, noise, gain, innovation_var)

    mean_op = fused.channel_mean_op if by_channel else fused.mean_op
    o, energy, final_mean, *_ = mean_op(q, k, v, gain, decay, start, *place, want_evidence)
    last = Belief(final_mean, final_cov)
    return _output(o, var, innovation_var, energy, last, value_dim, (batch, length, heads), outputs)


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


def _held(a: Assumptions) -> tuple[Tensor | None, ...]:
    """The tensors that assumptions carry."""
    noise = a.process_noise
    held = (noise.log_retention if isinstance(noise, PriorMixing) else getattr(noise, "variance", None), a.prior_var)
    return tuple(x if isinstance(x, Tensor) else None for x in (*held, a.steady_var))


def _output(
    o: Tensor,
    var: Tensor | None,
    innovation_var: Tensor,
    energy: Tensor,
    last: Belief,
    value_dim: int,
    gates: tuple[int, int, int],
    outputs: tuple[str, ...],
) -> FilterOutput:
    """What was asked for, back in ``[B, T, H]``."""
    evidence = None
    if "log_evidence" in outputs:
        spread = (2 * math.pi * innovation_var).log()
        evidence = (-0.5 * (value_dim * spread + energy / innovation_var)).view(gates)
    return FilterOutput(
        o.view(*gates, value_dim),
        var.view(gates) if "predictive_var" in outputs and var is not None else None,
        evidence,
        last if "final_belief" in outputs else None,
        innovation_var.view(gates) if "innovation_var" in outputs else None,
        (energy / innovation_var / value_dim).view(gates) if "innovation_energy" in outputs else None,
    )

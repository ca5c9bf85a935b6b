"""The kernel back end: the filter's arguments, as they come, through the fused passes. Float32 covariance, linear in T.

Nothing is transposed or copied: kernels read ``[B, T, H, D]`` as one row of tokens. What they do not know is refused
here by name (or, under ``backend="auto"``, left to the chunk form).
"""

import math
import os

import torch
from torch import Tensor

from bayesmem.ops.assumptions import Additive, Assumptions, PriorMixing
from bayesmem.ops.fused_gains import Evidence, dense_end, dense_gates, dense_start, gains_of
from bayesmem.ops.fused_noise import gates_of, row
from bayesmem.ops.triton.device import LARGE_SHARED, limits
from bayesmem.ops.validate import MEASURED
from bayesmem.types import Belief, FilterOutput

MAX_KEY_DIM, MAX_VALUE_DIM, SMALL_KEY_DIM = 256, 512, 128
NARROW_KEY_DIM, NARROW_VALUE_DIM = 32, 16
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
    if k.shape[-1] > SMALL_KEY_DIM and most_tokens(q.device) < CHUNKS[-1] and q.device.type == "cuda":
        return f"K above {SMALL_KEY_DIM} needs a GPU with {LARGE_SHARED // 1024} KiB of shared memory a block"
    if chunk is not None and chunk not in CHUNKS:
        return f"its chunks have {', '.join(map(str, CHUNKS))} tokens (got {chunk})"
    if chunk not in (None, CHUNKS[0]) and q.device.type == "cuda" and _narrow(k, v):
        few = f"K up to {NARROW_KEY_DIM} or V up to {NARROW_VALUE_DIM}"
        return f"its chunks have {CHUNKS[0]} tokens for {few} (got {chunk})"
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


def chunk_size(k: Tensor, v: Tensor) -> int:
    """Tokens a chunk of these keys and values on their device.

    Of few channels the fewest: gradients over chunks of 64 tokens of 16 or 32 key channels were wrong on an H200, or
    read outside of memory, with Triton 3.6 (docs/notes/003-kernels.md).
    """
    return CHUNKS[0] if _narrow(k, v) else most_tokens(k.device)


def _narrow(k: Tensor, v: Tensor) -> bool:
    return k.shape[-1] <= NARROW_KEY_DIM or v.shape[-1] <= NARROW_VALUE_DIM


def most_tokens(device: torch.device) -> int:
    """Tokens a chunk on this device, of keys and values of use."""
    if device.type != "cuda":
        return CHUNKS[0]
    return CHUNKS[2] if limits(device).shared >= LARGE_SHARED else CHUNKS[1]


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
    batch, length, heads, value_dim = v.shape
    cov = None if belief is None or belief.cov is None else belief.cov.float().contiguous()
    prior = a.prior_var.float() if isinstance(a.prior_var, Tensor) else a.prior_var
    gates = gates_of(log_decay, obs_noise, a, prior, v, 0 if cov is not None else k.shape[-1])
    dense = a.covariance == "full" and gates.decay.ndim == 2
    lay = torch.Tensor.contiguous if dense and length > 1 else row
    evidence = Evidence(
        q=lay(q),
        k=lay(k),
        v=lay(v),
        gates=gates,
        prior=prior,
        mean=None if belief is None else belief.mean.float().contiguous(),
        cov=cov,
        place=(cu_seqlens, batch, chunk or chunk_size(k, v)),
        sequences=batch if cu_seqlens is None else cu_seqlens.shape[0] - 1,
        want_var="predictive_var" in outputs,
        want_energy=not set(MEASURED).isdisjoint(outputs),
        want_belief="final_belief" in outputs,
        learning=_learning((q, k, v, log_decay, obs_noise), a, belief),
    )
    if not dense:
        found = _by_gains(evidence, a)
    elif length == 1 and cu_seqlens is None and not evidence.learning:
        found = _one_token(evidence, a)
    else:
        found = _dense(evidence, a)
    return _output(*found, value_dim, (batch, length, heads), outputs)


# o, predictive variance, innovation variance, squared innovations, last belief.
_Found = tuple[Tensor, Tensor | None, Tensor, Tensor | None, Belief]


def _dense(e: Evidence, a: Assumptions) -> _Found:
    from bayesmem.ops import fused

    gates, cov = dense_gates(e, a), dense_start(e)
    wanted = (e.want_var, e.want_energy, e.learning)
    o, energy, mean, innovation_var, cov, var, *_ = fused.filter_op(
        e.q, e.k, e.v, e.gates.decay, *gates, e.mean, cov, *e.place, *wanted
    )
    return o, var, innovation_var, energy, Belief(mean, dense_end(cov, e))


def _one_token(e: Evidence, a: Assumptions) -> _Found:
    """In place, on copies: a belief is the caller's."""
    from bayesmem.ops import fused

    size = (e.sequences, *e.v.shape[1:2], e.q.shape[-1], e.v.shape[-1])
    mean = e.gates.decay.new_zeros(size) if e.mean is None else e.mean.clone()
    cov = dense_start(e).contiguous() if e.cov is None else e.cov.clone()
    wanted = (None, "full", e.want_var, e.want_energy)
    o, var, innovation_var, energy = fused.decode_op(
        e.q, e.k, e.v, e.gates.decay, *dense_gates(e, a), mean, cov, *wanted
    )
    return o, var, innovation_var, energy, Belief(mean, cov)


def _by_gains(e: Evidence, a: Assumptions) -> _Found:
    """The mean under gains that are there before it."""
    from bayesmem.ops import fused

    gains = gains_of(e, a)
    k = torch.zeros_like(e.k) if a.write == "latent_input" else e.k
    mean_op = fused.channel_mean_op if e.gates.decay.ndim == 3 else fused.mean_op
    o, energy, mean, *_ = mean_op(e.q, k, e.v, gains.gain, e.gates.decay, e.mean, *e.place, e.want_energy)
    return o, gains.var, gains.innovation_var, energy, Belief(mean, gains.final_cov)


def _learning(given: tuple[Tensor | None, ...], a: Assumptions, belief: Belief | None) -> bool:
    """Whether a backward pass may follow, by these tensors and those that assumptions and belief hold."""
    if not torch.is_grad_enabled():
        return False
    noise = a.process_noise
    held = (noise.log_retention if isinstance(noise, PriorMixing) else getattr(noise, "variance", None), a.prior_var)
    start = () if belief is None else (belief.mean, belief.cov)
    return any(isinstance(x, Tensor) and x.requires_grad for x in (*given, *held, a.steady_var, *start))


def _output(
    o: Tensor,
    var: Tensor | None,
    innovation_var: Tensor,
    energy: Tensor | None,
    last: Belief,
    value_dim: int,
    gates: tuple[int, int, int],
    outputs: tuple[str, ...],
) -> FilterOutput:
    """What was asked for, back in ``[B, T, H]``."""
    evidence = share = None
    if energy is not None:
        if "log_evidence" in outputs:
            spread = (2 * math.pi * innovation_var).log()
            evidence = (-0.5 * (value_dim * spread + energy / innovation_var)).view(gates)
        if "innovation_energy" in outputs:
            share = (energy / innovation_var / value_dim).view(gates)
    return FilterOutput(
        o.view(*gates, value_dim),
        var.view(gates) if "predictive_var" in outputs and var is not None else None,
        evidence,
        last if "final_belief" in outputs else None,
        innovation_var.view(gates) if "innovation_var" in outputs else None,
        share,
    )

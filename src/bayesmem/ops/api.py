"""``bayesian_filter``: the one entry point. Checks once, normalises, picks a back end."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bayesmem.ops import validate as check
from bayesmem.ops.assumptions import Additive, Assumptions, Discount, PriorMixing
from bayesmem.ops.chunk import filter_chunk
from bayesmem.ops.fused_filter import available, filter_fused, unsupported
from bayesmem.ops.normalise import normalised, working_dtype
from bayesmem.ops.packing import solve_packed
from bayesmem.ops.problem import Problem, Solution
from bayesmem.ops.recurrent import filter_recurrent
from bayesmem.types import Belief, FilterOutput

BACKENDS = ("auto", "recurrent", "chunk", "triton")


@dataclass(frozen=True, slots=True)
class Backend:
    """A back end with its settings, where its name alone is not enough.

    Attributes:
        name: ``auto``, ``recurrent``, ``chunk`` or ``triton``.
        chunk_size: tokens a chunk of the chunk and triton back ends; it changes speed and memory only.
    """

    name: str = "auto"
    chunk_size: int | None = None


# Arguments are plain tensors here and not jaxtyping shapes: wrong shapes must reach our own checks.
def bayesian_filter(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    obs_noise: Tensor | None,
    assumptions: Assumptions | None = None,
    *,
    initial_belief: Belief | None = None,
    cu_seqlens: Tensor | None = None,
    outputs: Sequence[str] = (),
    backend: str | Backend = "auto",
    validate: bool | None = None,
) -> FilterOutput:
    """Filter evidence into a memory and read it out at every token, exactly.

    The memory ``S_t = A_t S_{t-1} + W_t`` is measured through its key, ``v_t = S_t^T k_t + e_t``. Layouts
    follow flash-linear-attention: ``[B, T, H, D]``, log-space decays, packed rows with B = 1.
    Equations: ``bayesmem.ops.step``; docs/math.md.

    Args:
        q: queries ``[B, T, G, K]``, unscaled.
        k: keys ``[B, T, G, K]``; unit norm is customary, not required.
        v: values ``[B, T, H, V]``, H a multiple of G (grouped value heads).
        log_decay: log of the mean's transition, at most 0 (``-inf`` is a hard reset), per head
            ``[B, T, H]`` or per channel ``[B, T, H, K]``; ``None`` is no decay.
        obs_noise: observation noise variance, positive, ``[B, T, H]``; ``None`` only under
            ``write="latent_input"``, which measures nothing.
        assumptions: process noise, covariance structure, prior; default ``Assumptions()``: the
            full covariance under prior mixing, retention equal to the decay.
        initial_belief: belief before the first token (one row a packed sequence); default: mean
            zero and the prior covariance. ``cov=None`` takes the prior's.
        cu_seqlens: ``[N + 1]`` offsets of N sequences packed in one row (B = 1). From a GPU they are read once for
            every tensor, and again when torch has changed it: make a new one rather than write through ``.data``.
        outputs: any of ``"predictive_var"``, ``"log_evidence"``, ``"innovation_var"``, ``"innovation_energy"``,
            ``"final_belief"``.
        backend: ``auto`` (the kernels on a GPU for what they know; else chunk; recurrent for one token or
            under ``dof``), ``recurrent``, ``chunk`` (PyTorch, but for log-linear mixing of 16-bit streams on a GPU,
            whose reads a kernel solves), ``triton``, or a ``Backend`` with settings.
        validate: whether to read the values for NaN and wrong signs; default: on a CPU only,
            since on a GPU it waits for the device.

    Returns:
        ``FilterOutput``; fields not asked for are ``None``. Differentiable in every tensor.

    Raises:
        ValueError: shapes, devices, dtypes, options or (where read) values that do not fit.
    """
    assumptions = assumptions or Assumptions()
    backend = Backend(backend) if isinstance(backend, str) else backend
    bounds = check_arguments(q, k, v, log_decay, obs_noise, assumptions, initial_belief, cu_seqlens, outputs, backend)
    check.check_numbers(assumptions, working_dtype(q))
    named = named_tensors(q, k, v, log_decay, obs_noise, assumptions, initial_belief)
    check.check_kinds(named, q)
    if validate is None:
        validate = q.device.type == "cpu" and not torch.compiler.is_compiling()
    if validate:
        check.check_values(named)
    with _no_autocast(q.device.type):
        if _takes_kernels(q, k, v, log_decay, assumptions, backend):
            rest = (initial_belief, cu_seqlens, tuple(outputs), backend.chunk_size)
            return filter_fused(q, k, v, log_decay, obs_noise, assumptions, *rest)
        problem = normalised(q, k, v, log_decay, obs_noise, assumptions, initial_belief, bounds)
        want_var = "predictive_var" in outputs
        want_evidence, want_belief = not {*check.MEASURED}.isdisjoint(outputs), "final_belief" in outputs

        def solve(p: Problem) -> Solution:
            stepwise = backend.name == "auto" and (p.q.shape[2] == 1 or p.dof is not None)
            if backend.name == "recurrent" or stepwise:
                solution = filter_recurrent(p)
            else:
                solution = filter_chunk(p, want_var, backend.chunk_size, want_evidence, want_belief)
            # What some rules give unasked is dropped, so that packed parts by either back end agree.
            if not want_var:
                solution = replace(solution, predictive_var=None)
            if not want_evidence:
                solution = replace(solution, innovation=None, innovation_var=None, log_evidence=None)
            if not want_belief:
                solution = replace(solution, final_belief=None)
            return solution

        solution = solve(problem) if bounds is None else solve_packed(problem, bounds, solve)
        return _output(solution, v.dtype, working_dtype(q), outputs)


def _no_autocast(device_type: str) -> AbstractContextManager[object]:
    """Entered anyway, torch's own costs the host as much as all the checks."""
    return torch.autocast(device_type, enabled=False) if torch.is_autocast_enabled(device_type) else nullcontext()


def _takes_kernels(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, assumptions: Assumptions, backend: Backend
) -> bool:
    """Whether the kernels do the work; asked for by name, they refuse what they cannot do."""
    if backend.name == "auto":
        if q.device.type == "cpu" or unsupported(q, k, v, log_decay, assumptions, backend.chunk_size):
            return False
        return available(q) is None
    if backend.name != "triton":
        return False
    reason = unsupported(q, k, v, log_decay, assumptions, backend.chunk_size) or available(q)
    if reason is not None:
        raise ValueError(f"backend='triton' cannot do this: {reason}. Use backend='auto' or 'chunk'.")
    return True


def check_arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    obs_noise: Tensor | None,
    assumptions: Assumptions,
    initial_belief: Belief | None,
    cu_seqlens: Tensor | None,
    outputs: Sequence[str],
    backend: Backend,
) -> list[int] | None:
    """Refuse shapes and options that do not fit; the offsets of packed sequences, if there are any."""
    sizes: dict[str, int] = {}
    check.one_of("backend", backend.name, BACKENDS)
    if backend.chunk_size is not None and (not isinstance(backend.chunk_size, int) or backend.chunk_size < 1):
        raise ValueError(f"chunk_size is {backend.chunk_size!r}; expected a whole number, at least 1.")
    if isinstance(outputs, str):
        raise ValueError(f"outputs is the string {outputs!r}; expected a sequence, such as ({outputs!r},).")
    for output in outputs:
        check.one_of("outputs", output, check.OUTPUTS)
    check.check_streams(q, k, v, sizes)
    if log_decay is not None:
        check.gate_shape("log_decay", log_decay, sizes)
    check.check_assumptions(assumptions, sizes, log_decay)
    if assumptions.dof is not None and backend.name == "chunk":
        raise ValueError(
            "backend='chunk' with dof: a Student-t gain waits for its innovation; use 'auto' or 'recurrent'."
        )
    if assumptions.covariance == "none" and "predictive_var" in outputs:
        raise ValueError("predictive_var with covariance='none': this memory carries a mean only; ask for no variance.")
    if assumptions.write == "latent_input":
        asked = [name for name in check.MEASURED if name in outputs]
        if obs_noise is not None or asked:
            what = ", ".join(asked) or "log_evidence"
            raise ValueError(f"write='latent_input' measures nothing: pass obs_noise=None and ask for no {what}.")
    elif obs_noise is None:
        raise ValueError("obs_noise is None; a measurement design needs its noise variance [B, T, H].")
    else:
        check.gate_shape("obs_noise", obs_noise, sizes, channels=False)
    bounds = None if cu_seqlens is None else check.check_bounds(cu_seqlens, sizes["B"], sizes["T"])
    if initial_belief is not None:
        rows = sizes["B"] if bounds is None else len(bounds) - 1
        check.check_belief(initial_belief, assumptions.covariance, rows, sizes)
    return bounds


def named_tensors(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    obs_noise: Tensor | None,
    assumptions: Assumptions,
    belief: Belief | None,
) -> list[tuple[str, Tensor, str]]:
    """Every tensor given, by name, with the sign that its values must have."""
    noise = assumptions.process_noise
    named = [
        ("q", q, "any"),
        ("k", k, "any"),
        ("v", v, "any"),
        ("log_decay", log_decay, "non-positive"),
        ("obs_noise", obs_noise, "positive"),
        ("log_retention", noise.log_retention if isinstance(noise, PriorMixing) else None, "non-positive"),
        ("log_discount", noise.log_discount if isinstance(noise, Discount) else None, "non-positive"),
        ("steady_var", assumptions.steady_var, "positive"),
        ("initial_belief.mean", belief.mean if belief else None, "any"),
        ("initial_belief.cov", belief.cov if belief else None, "any"),
        ("prior_var", assumptions.prior_var, "positive"),
        ("process noise variance", noise.variance if isinstance(noise, Additive) else None, "non-negative"),
    ]
    return [(name, x, sign) for name, x, sign in named if isinstance(x, Tensor)]


def _output(s: Solution, dtype: torch.dtype, working: torch.dtype, outputs: Sequence[str]) -> FilterOutput:
    o = s.o.transpose(1, 2).to(dtype)
    var = evidence = belief = spread = energy = None
    if "predictive_var" in outputs and s.predictive_var is not None:
        var = s.predictive_var.transpose(1, 2).to(working)
    if not {*check.MEASURED}.isdisjoint(outputs) and s.innovation is not None and s.innovation_var is not None:
        size, spread = s.innovation.shape[-1], s.innovation_var
        energy = s.innovation.square().mean(-1) / spread
        if "log_evidence" in outputs:
            evidence = (
                -0.5 * size * ((2 * math.pi * spread).log() + energy) if s.log_evidence is None else s.log_evidence
            )
            evidence = evidence.transpose(1, 2).to(working)
        spread = spread.transpose(1, 2).to(working) if "innovation_var" in outputs else None
        energy = energy.transpose(1, 2).to(working) if "innovation_energy" in outputs else None
    if "final_belief" in outputs:
        belief = s.final_belief  # in the dtype it was computed in, so that nothing is lost
    return FilterOutput(o, var, evidence, belief, spread, energy)

"""A design's assumptions, met with tensors: the one place where ``design`` and ``ops`` join."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from bayesmem import ops
from bayesmem.design import DesignModel, MixtureModel
from bayesmem.design import assumptions as a
from bayesmem.layers.mixture import mix
from bayesmem.ops.context_parallel import context_parallel_filter
from bayesmem.ops.validate import MEASURED, OUTPUTS, check_values, one_of, shape_of
from bayesmem.types import Belief, FilterOutput, MixtureBelief

Inputs = Mapping[str, Tensor | None]
LOG_NAMES = ("log_decay", "log_retention", "log_discount")


@dataclass(frozen=True, slots=True)
class FilterContext:
    """What a filter call needs besides the evidence.

    Attributes:
        initial_belief: belief before the first token.
        cu_seqlens: offsets of packed sequences, in tokens.
        attention_mask: ``[B, T]``, 0 where a token is padding, which then changes nothing.
        outputs: as of ``bayesian_filter``; a mixture, whose prediction is no Gaussian, has no
            ``"innovation_var"`` or ``"innovation_energy"``.
        backend: of ``bayesian_filter``.
        validate: whether the filter reads its values, as ``bayesian_filter`` has it.
        group: ranks that share every sequence, in rank order, where each holds a slice of its tokens; ``cu_seqlens``
            and beliefs are then those of the whole (``context_parallel_filter``).
    """

    initial_belief: Belief | MixtureBelief | None = None
    cu_seqlens: Tensor | None = None
    attention_mask: Tensor | None = None
    outputs: tuple[str, ...] = ()
    backend: str | ops.Backend = "auto"
    validate: bool | None = None
    group: dist.ProcessGroup | None = None


def filter_design(
    design: DesignModel | MixtureModel,
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    inputs: Inputs,
    context: FilterContext | None = None,
) -> FilterOutput:
    """Filter evidence under a design's assumptions.

    Args:
        design: from the zoo, or made by hand.
        q: queries ``[B, T, G, K]``.
        k: keys ``[B, N, G, K]``, N the measurements (T times ``per_token``); ``None`` where the decay gives them.
        v: values ``[B, N, H, V]``.
        inputs: the tensors that ``design.recurrence.inputs`` names, in those shapes.
        context: initial belief, packing, padding, outputs and back end.

    Returns:
        ``FilterOutput``; ``o`` is what the design's read-out gives.

    Raises:
        ValueError: inputs missing or unknown, shapes or values that do not fit, or outputs that the
            design does not have.
    """
    context = context or FilterContext()
    if isinstance(design, MixtureModel):
        return _filter_mixture(design, q, k, v, inputs, context)
    if isinstance(context.initial_belief, MixtureBelief):
        raise ValueError(f"initial_belief is a mixture's; {design.name} carries one belief.")
    sizes = _check(design, q, k, v, inputs, context)
    given = _per_token(design, inputs, q, sizes)
    k = -torch.expm1(given["log_decay"]).to(q.dtype) if k is None else k  # 1 - a, without losing digits near a = 1
    if context.attention_mask is not None:
        k, given = _silenced(k, given, context.attention_mask)
    count = design.write.per_token if isinstance(design.write, a.Measurement) else 1
    if count > 1:
        q, given = _spread(q, given, count)
    v, assumptions = _assumptions(design, v, given)
    measured = assumptions.write == "measurement"
    wanted = set(context.outputs)
    readout = design.readout
    if isinstance(readout, a.MeanAndVariance | a.PrecisionWeighted | a.Expected):
        wanted.add("predictive_var")
    bounds = context.cu_seqlens
    run = ops.bayesian_filter if context.group is None else partial(context_parallel_filter, group=context.group)
    out = run(
        q,
        k,
        v,
        given.get("log_decay"),
        given["obs_noise"] if measured else None,
        assumptions,
        initial_belief=context.initial_belief,
        cu_seqlens=None if bounds is None else bounds * count,
        outputs=sorted(wanted),
        backend=context.backend,
        validate=context.validate,
    )
    if count > 1:
        out = _gathered(out, count)
    noise = given["obs_noise"][:, count - 1 :: count] if measured else None
    out = replace(out, o=_read_out(readout, out, noise))
    if context.attention_mask is not None:  # padding surprises nobody
        out = replace(
            out,
            log_evidence=_unpadded(out.log_evidence, context.attention_mask),
            innovation_energy=_unpadded(out.innovation_energy, context.attention_mask),
        )
    keep = "predictive_var" in context.outputs or isinstance(readout, a.MeanAndVariance)
    return out if keep else replace(out, predictive_var=None)


def _unpadded(x: Tensor | None, mask: Tensor) -> Tensor | None:
    return None if x is None else x * mask[..., None].to(x.dtype)


def _check(
    design: DesignModel, q: Tensor, k: Tensor | None, v: Tensor, inputs: Inputs, context: FilterContext
) -> dict[str, int]:
    """Names and shapes of what came; the sizes of all axes."""
    needed = {x.name: x for x in design.recurrence.inputs}
    given = {name for name, x in inputs.items() if x is not None}
    if missing := [name for name in needed if name not in given]:
        what = ", ".join(f"{n} [{', '.join(needed[n].axes.split())}] ({needed[n].meaning})" for n in missing)
        raise ValueError(f"{design.name} needs {what}.")
    if unknown := sorted(given - set(needed)):
        raise ValueError(f"{design.name} has no use for {unknown}; it takes {sorted(needed) or 'no inputs'}.")
    count = design.write.per_token if isinstance(design.write, a.Measurement) else 1
    tied = isinstance(design.write, a.LatentInput) and design.write.key == "complement"
    if tied != (k is None):
        mend = "its keys are 1 - exp(log_decay): pass k=None" if tied else "pass k [B, T, G, K]"
        raise ValueError(f"k is {'given' if tied else 'None'} for {design.name}; {mend}.")
    sizes: dict[str, int] = {}
    shape_of("q", q, "B T H K" if tied else "B T G K", sizes)
    sizes["N"] = count * sizes["T"]
    if k is not None:
        shape_of("k", k, "B N G K", sizes)
    shape_of("v", v, "B N H V", sizes)
    for name, x in needed.items():
        shape_of(name, inputs[name], x.axes, sizes)  # type: ignore[arg-type]
    if context.attention_mask is not None:
        shape_of("attention_mask", context.attention_mask, "B T", sizes)
    if context.outputs and isinstance(context.outputs, tuple) and design.recurrence.gain_rule is None:
        for name in ("predictive_var", *MEASURED):
            if name in context.outputs:
                raise ValueError(f"{name} of {design.name}: this design computes a mean without a covariance.")
    return sizes


def _per_token(design: DesignModel, inputs: Inputs, q: Tensor, sizes: dict[str, int]) -> dict[str, Tensor]:
    """Every quantity of the design as one tensor over tokens, fixed numbers and those of a head too."""
    gates = torch.float32 if q.dtype in (torch.float16, torch.bfloat16) else q.dtype
    axes = (sizes["B"], sizes["T"], sizes["H"])
    found: dict[str, Tensor] = {}

    def add(name: str, value: object, per: str = "head", length: int = sizes["T"], log: bool = False) -> None:
        shape = (axes[0], length, axes[2], *([sizes["K"]] if per == "channel" else []))
        if isinstance(value, str):
            x = inputs[name]
            assert x is not None
            found[name] = x.expand(shape) if x.ndim < 3 else x
        else:
            number = torch.tensor(value, dtype=torch.float64)
            found[name] = torch.full(shape, (number.log() if log else number).item(), dtype=gates, device=q.device)

    noise, write = design.process_noise, design.write
    if isinstance(design.transition, a.Decay):
        add("log_decay", design.transition.factor, design.transition.per, log=True)
    if isinstance(noise, a.PriorMixing) and noise.retention != "decay":
        add("log_retention", noise.retention, noise.per, log=True)
    if isinstance(noise, a.Additive):
        add("process_noise", noise.variance, noise.per)
    if isinstance(noise, a.Discount | a.LogLinearMixing):
        add("log_discount", noise.factor, log=True)
    if isinstance(write, a.Measurement):
        add("obs_noise", write.obs_noise, length=sizes["N"])
    elif write.strength != 1:
        add("step", write.strength)
    prior = inputs.get("prior_var")
    if prior is not None:
        found["prior_var"] = prior
    return found


def _silenced(k: Tensor, given: dict[str, Tensor], mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Keys of padding are zero, and no time passes there."""

    def masked(x: Tensor) -> Tensor:
        return torch.where(
            real.view(*mask.shape, *[1] * (x.ndim - 2)), x, torch.zeros((), dtype=x.dtype, device=x.device)
        )

    real = mask.bool()
    count = k.shape[1] // mask.shape[1]
    k = masked(k.unflatten(1, (-1, count))).flatten(1, 2)
    passing = {name: masked(x) for name, x in given.items() if name in (*LOG_NAMES, "process_noise")}
    return k, given | passing


def _spread(q: Tensor, given: dict[str, Tensor], count: int) -> tuple[Tensor, dict[str, Tensor]]:
    """One token of several measurements as several tokens, of which time passes before the first only."""

    def first(x: Tensor) -> Tensor:
        rest = x.new_zeros(*x.shape[:2], count - 1, *x.shape[2:])
        return torch.cat([x[:, :, None], rest], 2).flatten(1, 2)

    timed = {name: first(x) for name, x in given.items() if name in (*LOG_NAMES, "process_noise")}
    return q.repeat_interleave(count, 1), given | timed


def _gathered(out: FilterOutput, count: int) -> FilterOutput:
    """Back to one output a token: read after its last measurement, evidence of all of them, their mean innovation."""
    var, evidence = out.predictive_var, out.log_evidence
    innovations = {name: getattr(out, name) for name in ("innovation_var", "innovation_energy")}
    return replace(
        out,
        o=out.o[:, count - 1 :: count],
        predictive_var=None if var is None else var[:, count - 1 :: count],
        log_evidence=None if evidence is None else evidence.unflatten(1, (-1, count)).sum(2),
        **{n: None if x is None else x.unflatten(1, (-1, count)).mean(2) for n, x in innovations.items()},
    )


def _assumptions(design: DesignModel, v: Tensor, given: dict[str, Tensor]) -> tuple[Tensor, ops.Assumptions]:
    """The design in the words of ``ops``; latent inputs and information vectors scale their values."""
    noise = design.process_noise
    if isinstance(noise, a.LogLinearMixing):  # its transition is the mixing itself
        given["log_decay"] = given["log_discount"]
    if design.covariance == "none":
        if v.device.type == "cpu" and not torch.compiler.is_compiling():  # the filter itself never sees these two
            check_values([(name, given[name], "positive") for name in ("step", "obs_noise") if name in given])
        strength = given.get("step")
        if isinstance(design.write, a.Measurement):
            strength = 1 / given["obs_noise"]
        v = v if strength is None else (v * strength[..., None]).to(v.dtype)
        return v, ops.Assumptions(covariance="none", write="latent_input")
    kinds: ops.ProcessNoise = ops.PriorMixing()
    if isinstance(noise, a.PriorMixing):
        kinds = ops.PriorMixing(given.get("log_retention"))
    elif isinstance(noise, a.Additive):
        kinds = ops.Additive(given["process_noise"])
    elif isinstance(noise, a.Discount):
        kinds = ops.Discount(given["log_discount"], noise.floor)
    elif isinstance(noise, a.LogLinearMixing):
        kinds = ops.LogLinearMixing()
    elif design.covariance != "reset":
        kinds = ops.Additive(0.0)
    assert isinstance(design.write, a.Measurement)
    return v, ops.Assumptions(
        covariance=design.covariance,
        process_noise=kinds,
        prior_var=given.get("prior_var", design.prior.var),  # type: ignore[arg-type]
        dof=design.write.dof,
    )


def _read_out(readout: a.Readout, out: FilterOutput, obs_noise: Tensor | None) -> Tensor:
    """What a query gets from the predictive mean and variance."""
    mean, var = out.o, out.predictive_var
    if isinstance(readout, a.PrecisionWeighted):
        assert var is not None and obs_noise is not None
        return (mean * (obs_noise / (obs_noise + var))[..., None]).to(mean.dtype)
    if not isinstance(readout, a.Expected):
        return mean
    assert var is not None
    wide, spread = mean.to(var.dtype), var[..., None]
    if readout.function == "probit":  # E[Phi(y)] = Phi(mean / sqrt(1 + var))
        return torch.special.ndtr(wide * torch.rsqrt(1 + spread)).to(mean.dtype)
    # E[relu(y)] = mean Phi(z) + sd phi(z), z = mean / sd
    sd = spread.clamp(min=torch.finfo(var.dtype).tiny).sqrt()
    z = wide / sd
    density = torch.exp(-0.5 * z**2) / (2 * torch.pi) ** 0.5
    return (wide * torch.special.ndtr(z) + sd * density).to(mean.dtype)


def precision_weight(design: DesignModel, inputs: Inputs, predictive_var: Tensor | None) -> Tensor:
    """``r / (r + q^T P q)``, what a precision-weighted read-out counts by, ``[B, T, H]``."""
    assert isinstance(design.write, a.Measurement) and predictive_var is not None
    given, count = inputs.get("obs_noise"), design.write.per_token
    if given is None:
        given = torch.as_tensor(design.write.obs_noise, dtype=predictive_var.dtype)
    obs_noise = given[:, count - 1 :: count] if given.ndim > 1 else given
    return obs_noise / (obs_noise + predictive_var)


def _filter_mixture(
    design: MixtureModel, q: Tensor, k: Tensor | None, v: Tensor, inputs: Inputs, context: FilterContext
) -> FilterOutput:
    """Every component filters the same evidence; their evidence weighs them."""
    for output in context.outputs:
        one_of("outputs", output, OUTPUTS)
        if output.startswith("innovation"):
            raise ValueError(f"{output} of {design.name}: a mixture predicts no Gaussian; ask a component for its own.")
    if context.group is not None:
        raise ValueError(f"{design.name} cannot be split across ranks: a mixture's weights are not exchanged.")
    start = context.initial_belief
    if isinstance(start, Belief) or (start is not None and len(start.parts) != len(design.components)):
        raise ValueError(
            f"initial_belief does not fit; {design.name} carries a MixtureBelief of {len(design.components)}."
        )
    known = {x.name for x in design.recurrence.inputs}
    if unknown := sorted(name for name, x in inputs.items() if x is not None and name not in known):
        raise ValueError(f"{design.name} has no use for {unknown}; it takes {sorted(known)}.")
    parts = []
    for index, component in enumerate(design.components):
        names = {x.name for x in component.recurrence.inputs}
        own = replace(
            context,
            initial_belief=None if start is None else start.parts[index],
            outputs=("predictive_var", "log_evidence", "final_belief"),
        )
        parts.append(filter_design(component, q, k, v, {n: x for n, x in inputs.items() if n in names}, own))
    weights = None if start is None else start.log_weights
    return mix(parts, weights, design.evidence_kept, context.cu_seqlens, context.attention_mask, context.outputs)

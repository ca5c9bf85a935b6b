"""What is timed: the project's own filter, its back ends and its decoding step; peers join from ``bench_peers``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayesmem.experiments.bench_inputs import Inputs
from bayesmem.ops import Assumptions, PriorMixing, bayesian_filter
from bayesmem.types import Belief

Call = Callable[[], tuple[Tensor, ...]]

FLOOR = 1e-4  # obs_noise_floor's default


@dataclass(frozen=True, slots=True)
class Op:
    """An op as it is called.

    Attributes:
        label: the function and the options that matter, for the record.
        needs: names of its inputs, all of which get a gradient in ``backward``.
        bind: takes the inputs and returns the call that is timed; its first output is o.
        reference: o of the same equations by the chunk back end, given float64 inputs; where there is one.
    """

    label: str
    needs: tuple[str, ...]
    bind: Callable[[Inputs], Call]
    reference: Callable[[Inputs], Tensor] | None = None


@dataclass(frozen=True, slots=True)
class Contender:
    """One row of the tables.

    Attributes:
        filter: the op over T tokens, timed forward and with backward; ``None`` where there is none.
        decode: the op over one token from a state.
    """

    filter: Op | None = None
    decode: Op | None = None

    def op(self, what: str) -> Op | None:
        """The op that a kind of measurement times."""
        return self.decode if what == "decode" else self.filter


def contenders(device: str) -> dict[str, Contender]:
    """All contenders of a kind of device, ours first.

    Args:
        device: ``cuda`` or ``cpu``.
    """
    from bayesmem.experiments import bench_peers

    return ours(device) | (bench_peers.cuda() if device == "cuda" else bench_peers.cpu())


def ours(device: str) -> dict[str, Contender]:
    """The Bayesian filter by structure and back end."""
    cuda = device == "cuda"
    fast = "triton" if cuda else "chunk"
    found = {
        "bayesian": Contender(_filter("full", fast), _decode("full")),
        "bayesian_var": Contender(_filter("full", fast, var=True), _decode("full", var=True)),
        "bayesian_reset": Contender(_filter("reset", fast), _decode("reset")),
        "bayesian_reset_channel": Contender(_filter("reset", fast, decays="channel_log_decay")),
        "bayesian_diagonal": Contender(_filter("diagonal", fast), _decode("diagonal")),
        "bayesian_additive": Contender(_filter("none", fast)),
        "bayesian_additive_channel": Contender(_filter("none", fast, decays="channel_log_decay")),
    }
    if not cuda:
        return found | {"bayesian_recurrent": Contender(_filter("full", "recurrent"))}
    in_place = {
        f"{name}_in_place": Contender(decode=_in_place(structure))
        for name, structure in (("bayesian", "full"), ("bayesian_reset", "reset"), ("bayesian_diagonal", "diagonal"))
    }
    return found | in_place | {"bayesian_chunk": Contender(_filter("full", "chunk"))}


GATES = ("log_decay", "log_retention", "obs_noise")


def _assumptions(structure: str, x: Inputs) -> Assumptions:
    if structure == "none":
        return Assumptions(write="latent_input", covariance="none")
    if structure == "reset":
        return Assumptions(covariance="reset")
    return Assumptions(covariance=structure, process_noise=PriorMixing(x["log_retention"]))  # type: ignore[arg-type]


def _streams(structure: str) -> tuple[str, ...]:
    gates = {"none": GATES[:1], "reset": (GATES[0], GATES[2])}
    return ("q", "k", "v", *gates.get(structure, GATES))


def filtered(structure: str, x: Inputs, backend: str = "chunk", **options: Any) -> Any:
    """``bayesian_filter`` of the inputs under prior mixing, a reset covariance, or (none) a latent-input write."""
    gates = x["log_decay"], x.get("obs_noise")
    return bayesian_filter(x["q"], x["k"], x["v"], *gates, _assumptions(structure, x), backend=backend, **options)


def _filter(structure: str, backend: str, var: bool = False, decays: str = "log_decay") -> Op:
    outputs = ("predictive_var",) if var else ()

    def decayed(x: Inputs) -> Inputs:
        return x | {"log_decay": x[decays]}

    def bind(x: Inputs) -> Call:
        given = decayed(x)

        def call() -> tuple[Tensor, ...]:
            out = filtered(structure, given, backend, outputs=outputs)
            return (out.o, out.predictive_var) if var else (out.o,)

        return call

    options = f"{', predictive_var' if var else ''}{', decays per channel' if decays != 'log_decay' else ''}"
    label = f"bayesian_filter(covariance={structure!r}, backend={backend!r}{options})"
    needs = tuple(decays if name == "log_decay" else name for name in _streams(structure))
    return Op(label, needs, bind, lambda x: filtered(structure, decayed(x)).o)


STATES = {"full": ("mean", "cov"), "diagonal": ("mean", "channel_cov"), "reset": ("mean",)}


def _decode(structure: str, var: bool = False) -> Op:
    """One token by the filter as a user calls it: a new belief comes back, the old one is kept."""
    outputs = ("predictive_var", "final_belief") if var else ("final_belief",)

    def bind(x: Inputs) -> Call:
        belief = Belief(*(x[name] for name in STATES[structure]))

        def call() -> tuple[Tensor, ...]:
            return (filtered(structure, x, "auto", initial_belief=belief, outputs=outputs).o,)

        return call

    label = f"bayesian_filter(covariance={structure!r}, one token, {', '.join(outputs)})"
    return Op(label, (*_streams(structure), *STATES[structure]), bind)


def _in_place(structure: str) -> Op:
    """One token by the fused step, which writes over the belief."""

    def bind(x: Inputs) -> Call:
        from bayesmem.ops.fused import decode_step

        # Contiguous beforehand, as a decoder holds them.
        now = {name: x[name][:, 0].contiguous() for name in ("q", "k", "v", *GATES) if name in x}
        q, k, v, log_decay, obs_noise = (now[name] for name in ("q", "k", "v", "log_decay", "obs_noise"))
        retention = process_noise = floor = cov = prior_var = None
        if structure == "reset":
            prior_var = log_decay.new_ones(log_decay.shape[-1])
        else:
            retention, cov = now["log_retention"], x[STATES[structure][1]]
            process_noise, floor = -torch.expm1(2 * retention), log_decay.new_full(log_decay.shape[-1:], FLOOR)
        gates_now = (log_decay, retention, process_noise, obs_noise, floor)

        def call() -> tuple[Tensor, ...]:
            return (decode_step(q, k, v, *gates_now, x["mean"], cov, prior_var, structure, False, False)[0],)

        return call

    return Op(f"ops.fused.decode_step(covariance={structure!r})", (*_streams(structure), *STATES[structure]), bind)

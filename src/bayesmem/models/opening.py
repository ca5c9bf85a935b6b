"""What a distillation starts from: a teacher's function, the same with its covariance opened, and the control's start.

Of a delta rule the control starts as the teacher itself, its covariance reset, and the student beside it. Of a
softmax model both start untrained in the layers that become memories, and differ in the covariance alone.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayesmem.design import Design, named
from bayesmem.layers import BayesianLayerConfig
from bayesmem.models import convert_fla
from bayesmem.models.causal_lm import BayesMemForCausalLM
from bayesmem.models.config import BayesMemConfig
from bayesmem.models.convert import KINDS
from bayesmem.models.plan import ConversionOptions, Move, Plan, on_meta, parameters_of
from bayesmem.models.source import Source

OPENED = {"gated_deltanet": "bayesian", "deltanet": "bayesian_prior_mixing"}
# rho^2 of a delta rule's student at first. At .9 training shut it again and the student was its control; at .99, and
# with gates that learn no faster than the rest, it stayed open and retrieved more (docs/notes/006-distillation.md).
RETENTION = 0.99
OF_CLASS = ("model_type", "architectures", "auto_map", "transformers_version", "dtype")


@dataclass(frozen=True, slots=True)
class Start:
    """Three models of one checkpoint.

    Attributes:
        source: the checkpoint.
        teacher: its own function.
        student: the covariance carried, most of the certainty kept from token to token.
        control: the same with the covariance reset at every token.
        kind: the checkpoint's ``model_type``.
    """

    source: Source
    teacher: Plan
    student: Plan
    control: Plan
    kind: str

    def build(self, name: str) -> BayesMemForCausalLM:
        """One of the three, in float32.

        Raises:
            ValueError: tensors that do not fit the config.
        """
        plan: Plan = getattr(self, name)
        return plan.build(self.source).float()


def start(path: Path | str, options: ConversionOptions | None = None) -> Start:
    """Plan the three models of a checkpoint.

    Args:
        path: its folder, of a kind that ``convert`` reads, or a delta rule of ours.
        options: ``retention`` (of a delta rule .99 unless given), ``attention_every`` and ``ignore``; both values of
            ``covariance`` are planned.

    Raises:
        ValueError: a checkpoint that cannot be converted, has no memory whose covariance could be opened, or whose
            beta exceeds 1.
    """
    options, source = options or ConversionOptions(), Source.open(path)
    kind = source.config.get("model_type")
    plan = _of_ours if kind == "bayesmem" else KINDS.get(str(kind))
    if plan is None:
        known = ", ".join(map(repr, (*KINDS, "bayesmem")))
        raise ValueError(f"{source.folder} is of model_type {kind!r}; a teacher is one of {known}.")
    if options.retention is None and kind in (*convert_fla.KINDS, "bayesmem"):
        options = replace(options, retention=RETENTION)
    student, control = (plan(source, replace(options, covariance=covariance)) for covariance in ("full", "reset"))
    if student.exact is None:
        raise ValueError(
            f"{source.folder}: every layer stays softmax attention, so that there is no memory to train; let some be "
            "converted by a larger --hybrid-every, or all by 0."
        )
    return Start(source, student.exact, student, control, str(kind))


def _of_ours(source: Source, how: ConversionOptions) -> Plan:
    """A checkpoint of ours as it is (``reset``), or its delta rules opened (``full``)."""
    if how.attention_every is not None:
        raise ValueError(f"attention_every is {how.attention_every}; this model is of ours already: leave it out.")
    given = {name: value for name, value in source.config.items() if name not in OF_CLASS}
    assert how.retention is not None  # of ``start``
    retention, config = how.retention, BayesMemConfig(**given)
    same = Plan(config, _all(config), ignored=_tie(config, source))
    delta = [x for x in config.mixer_configs() if isinstance(x, BayesianLayerConfig) and _opened(x.model)]
    if not delta:
        raise ValueError(
            f"{source.folder} has no covariance to open: expected layers of design {' or '.join(OPENED)}, and its "
            f"mixer is {config.mixer}."
        )
    if any(mixer.allow_neg_eigval for mixer in delta):
        raise ValueError(
            f"{source.folder} was trained with allow_neg_eigval: its beta goes up to 2, and above 1 no positive "
            "observation noise gives it, so that it has no covariance to open."
        )
    if how.covariance == "reset":
        return same
    opened = BayesMemConfig(**given | _mixers(config, retention))
    shapes = parameters_of(on_meta(opened))
    fresh = {name: _gate(name, shape, retention) for name, shape in shapes.items() if name not in same.moves}
    return Plan(opened, same.moves, fresh, same.ignored, exact=same)


def _all(config: BayesMemConfig) -> dict[str, Move]:
    return {name: Move(name) for name in parameters_of(on_meta(config))}


def _tie(config: BayesMemConfig, source: Source) -> Mapping[str, str]:
    tied = config.tie_word_embeddings and "lm_head.weight" in source.stored
    return {"lm_head.weight": "it is tied to the embeddings"} if tied else {}


def _opened(design: Design) -> str | None:
    """The design that is this one with its covariance carried; ``None`` where there is none to open."""
    return next((full for reset, full in OPENED.items() if named(reset) == design), None)


def _mixers(config: BayesMemConfig, retention: float | int) -> dict[str, Any]:
    """The config's mixers with every delta rule opened."""
    layers: list[Any] = []
    for mixer, one in zip(config.mixer_configs(), config.layer_mixers or [{}] * config.num_hidden_layers, strict=True):
        full = _opened(mixer.model) if isinstance(mixer, BayesianLayerConfig) else None
        if full is not None:
            own = {} if isinstance(one, str) else one
            one = own | {"design": full, "retention_init": retention}
        layers.append(one)
    base = config.layer_config()
    full = _opened(base.model)
    mixer = config.mixer | ({"design": full, "retention_init": retention} if full is not None else {})
    return {"mixer": mixer} | ({"layer_mixers": layers} if config.layer_mixers is not None else {})


def _gate(name: str, shape: tuple[int, ...], retention: float | int) -> Tensor:
    """A retention gate that is the same for all tokens to begin with."""
    return torch.full(shape, math.log(retention / (1 - retention)) if name.endswith("bias") else 0.0)

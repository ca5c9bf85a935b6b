"""The models of the language study: the Bayesian one's shape, and how the others are widened to be its equals.

Matched by *state*, a model carries as many numbers a layer as the Bayesian Layer, whose covariance is counted: its
values (or its keys) are wider. Matched by *parameters*, its heads are those of the Bayesian Layer, and its state is
smaller where it has no covariance. In both, the MLP's width makes up for what the mixers differ by, so that all have
equally many parameters.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from bayesmem.design import ZOO
from bayesmem.layers import BayesianLayer, BayesianLayerConfig

BASE = "bayesian"  # what the others are matched to
MODELS = ("gated_deltanet", "mamba2", "kda", "kalman_diagonal", BASE)
MATCHED = ("state", "parameters")
WIDENED = {"values": 512, "keys": 256}  # what a larger state may go into, and the widest that there are kernels for
STATE_WITHIN, PARAMETERS_WITHIN = 0.02, 0.01
STEPS = (8, 4, 2, 1)  # widths are multiples of the first of these that comes close enough
MOST_MLP = 2**16


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of the Bayesian model, which the others share but where they have to differ.

    Attributes:
        hidden_size: model width D.
        num_layers: blocks.
        num_heads: heads a layer.
        head_dim: K = V of the Bayesian Layer.
        intermediate_size: inner width of its MLP; ``None``: 8/3 of the model's, in multiples of 256.
        tie: whether embedding and output share a matrix.
        widened: what a larger state goes into: ``"values"`` or ``"keys"``.
        mixer: options of ``BayesianLayerConfig`` that all mixers share, such as ``{"output_gate": "none"}``.

    Raises:
        ValueError: sizes below 1, a way to widen that there is not, or options of a mixer that do not fit.
    """

    hidden_size: int = 512
    num_layers: int = 8
    num_heads: int = 8
    head_dim: int = 64
    intermediate_size: int | None = None
    tie: bool = True
    widened: str = "values"
    mixer: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_layers", "num_heads", "head_dim", "mlp"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if self.widened not in WIDENED:
            raise ValueError(f"widened is {self.widened!r}; expected one of {', '.join(WIDENED)}.")
        if taken := sorted({"hidden_size", "num_heads", "head_dim", "value_dim", "design"} & set(self.mixer)):
            raise ValueError(f"mixer gives {', '.join(taken)}, which the study sets; leave it out.")
        try:
            self.layer(BASE, self.head_dim, self.head_dim)
        except TypeError as error:
            raise ValueError(f"mixer options {self.mixer}: {error}.") from error

    @property
    def mlp(self) -> int:
        """Inner width of the Bayesian model's MLP."""
        if self.intermediate_size is not None:
            return self.intermediate_size
        return 256 * -(-self.hidden_size * 8 // (3 * 256))

    def layer(self, model: str, head_dim: int, value_dim: int) -> BayesianLayerConfig:
        """A mixer of this shape."""
        sizes = {"num_heads": self.num_heads, "head_dim": head_dim, "value_dim": value_dim}
        return BayesianLayerConfig(hidden_size=self.hidden_size, design=model, **(sizes | self.mixer))


@dataclass(frozen=True, slots=True)
class Fitted:
    """A model's own sizes.

    Attributes:
        head_dim: K.
        value_dim: V.
        intermediate_size: inner width of the MLP.
        state: numbers a layer carries, the covariance counted.
        parameters: of a layer: mixer, MLP and norms.
    """

    head_dim: int
    value_dim: int
    intermediate_size: int
    state: int
    parameters: int


def fitted(model: str, shape: Shape, matched: str = MATCHED[0]) -> Fitted:
    """A model as the equal of the Bayesian one.

    Args:
        model: a design of the zoo.
        shape: of the Bayesian model.
        matched: of ``MATCHED``.

    Raises:
        ValueError: a design or a way to match that there is not, or one that comes within no 2% of the state or no 1%
            of the parameters.
    """
    if model not in ZOO:
        raise ValueError(f"model is {model!r}; expected a design of the zoo, such as {', '.join(MODELS)}.")
    if matched not in MATCHED:
        raise ValueError(f"matched is {matched!r}; expected one of {', '.join(MATCHED)}.")
    key_dim, value_dim = _heads(model, shape, matched)
    config = shape.layer(model, key_dim, value_dim)
    norms, wide = 2 * shape.hidden_size, 3 * shape.hidden_size
    target = _mixer_parameters(shape.layer(BASE, shape.head_dim, shape.head_dim)) + wide * shape.mlp
    mixer = _mixer_parameters(config)
    inner = _nearest(
        lambda width: mixer + wide * width,
        target,
        PARAMETERS_WITHIN,
        MOST_MLP,
        f"MLP that gives {model} the {target:,} parameters of a layer of {BASE} (its mixer has {mixer:,}); give a "
        "wider MLP",
    )
    return Fitted(key_dim, value_dim, inner, config.state_size, mixer + wide * inner + norms)


def model_options(model: str, shape: Shape, matched: str = MATCHED[0]) -> dict[str, Any]:
    """What ``BayesMemConfig`` takes of a model, but its vocabulary; as of ``fitted``."""
    sizes = fitted(model, shape, matched)
    mixer = {"design": model, "num_heads": shape.num_heads, "head_dim": sizes.head_dim, "value_dim": sizes.value_dim}
    return {
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "intermediate_size": sizes.intermediate_size,
        "tie_word_embeddings": shape.tie,
        "mixer": mixer | shape.mixer,
    }


def same_either_way(model: str, shape: Shape) -> bool:
    """Whether both ways to match make the same model, as they do of one that carries a full covariance."""
    return _heads(model, shape, MATCHED[0]) == _heads(model, shape, MATCHED[1])


def _heads(model: str, shape: Shape, matched: str) -> tuple[int, int]:
    """Key and value dim of every head."""
    size = shape.head_dim
    budget = shape.layer(BASE, size, size).state_size
    if matched == "parameters" or shape.layer(model, size, size).state_size == budget:
        return size, size

    def heads(wide: int) -> tuple[int, int]:
        return (size, wide) if shape.widened == "values" else (wide, size)

    wide = _nearest(
        lambda width: shape.layer(model, *heads(width)).state_size,
        budget,
        STATE_WITHIN,
        WIDENED[shape.widened],
        f"width of the {shape.widened} of {model} that gives its layer the {budget:,} numbers of {BASE}; give other "
        "heads, or widen the other way",
    )
    return heads(wide)


def _nearest(count: Callable[[int], int], target: int, within: float, most: int, what: str) -> int:
    """The width up to ``most`` whose count, which grows with it, is nearest to the target; as round as comes close."""
    for step in STEPS:
        widths = range(step, most + 1, step)
        above = bisect_left(widths, target, key=count)
        best = min(widths[max(above - 1, 0) : above + 1], key=lambda width: abs(count(width) - target))
        if abs(count(best) - target) <= within * target:
            return best
    raise ValueError(f"there is no {what}.")


def _mixer_parameters(config: BayesianLayerConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in BayesianLayer(config).parameters())

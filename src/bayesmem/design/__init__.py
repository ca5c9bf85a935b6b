"""What is assumed: designs, the recurrences that follow from them, and the zoo of named ones.

The words of ``bayesmem.ops`` for noises and writes are used here too; there they hold tensors, here
they say where the numbers come from.
"""

from typing import Any

from bayesmem.design.assumptions import (
    Additive,
    Decay,
    Discount,
    Expected,
    Identity,
    Information,
    LatentInput,
    LogLinearMixing,
    Mean,
    MeanAndVariance,
    Measurement,
    NoNoise,
    PrecisionWeighted,
    Prior,
    PriorMixing,
)
from bayesmem.design.derive import Input, Recurrence, StateSize, derive
from bayesmem.design.mixture import MixtureModel
from bayesmem.design.model import DesignModel
from bayesmem.design.zoo import ZOO

Design = DesignModel | MixtureModel


def named(name: str) -> Design:
    """The zoo's design of this name.

    Raises:
        ValueError: no such design; the message lists those there are.
    """
    if name not in ZOO:
        raise ValueError(f"design is {name!r}; expected a DesignModel or one of {', '.join(ZOO)}.")
    return ZOO[name]


def from_dict(data: dict[str, Any]) -> Design:
    """The design or mixture that ``to_dict`` wrote.

    Raises:
        ValueError: kinds or keys that no design has, or assumptions that contradict.
    """
    if "components" not in data:
        return DesignModel.from_dict(data)
    given = dict(data)
    components = tuple(DesignModel.from_dict(part) for part in given.pop("components"))
    try:
        return MixtureModel(components=components, **given)
    except TypeError as error:
        raise ValueError(f"mixture: {error}.") from error


__all__ = [
    "ZOO",
    "Additive",
    "Decay",
    "Design",
    "DesignModel",
    "Discount",
    "Expected",
    "Identity",
    "Information",
    "Input",
    "LatentInput",
    "LogLinearMixing",
    "Mean",
    "MeanAndVariance",
    "Measurement",
    "MixtureModel",
    "NoNoise",
    "PrecisionWeighted",
    "Prior",
    "PriorMixing",
    "Recurrence",
    "StateSize",
    "derive",
    "from_dict",
    "named",
]

"""bayesmem: efficient sequence layers that know what they know.

Designs (``DesignModel``, ``ZOO``), the filter beneath them (``bayesian_filter``) and a layer that
learns with either (``BayesianLayer``). The words of a design live in ``bayesmem.design``, the
tensors of the filter in ``bayesmem.ops``. The causal language model is in ``bayesmem.models`` and needs transformers.
"""

from bayesmem.design import (
    ZOO,
    Additive,
    Decay,
    DesignModel,
    Discount,
    LatentInput,
    LogLinearMixing,
    Measurement,
    MixtureModel,
    Prior,
    PriorMixing,
)
from bayesmem.layers import BayesianLayer, BayesianLayerConfig
from bayesmem.ops import Assumptions, Backend, bayesian_filter
from bayesmem.types import Belief, FilterOutput

__version__ = "0.1.0"

__all__ = [
    "ZOO",
    "Additive",
    "Assumptions",
    "Backend",
    "BayesianLayer",
    "BayesianLayerConfig",
    "Belief",
    "Decay",
    "DesignModel",
    "Discount",
    "FilterOutput",
    "LatentInput",
    "LogLinearMixing",
    "Measurement",
    "MixtureModel",
    "Prior",
    "PriorMixing",
    "bayesian_filter",
]

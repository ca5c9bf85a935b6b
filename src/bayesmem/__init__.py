"""bayesmem: efficient sequence layers that know what they know.

The filter (``bayesian_filter``), its assumptions, and a layer that learns with it
(``BayesianLayer``). The causal language model is in ``bayesmem.models`` and needs transformers.
"""

from bayesmem.layers import BayesianLayer, BayesianLayerConfig
from bayesmem.ops import (
    Additive,
    Assumptions,
    Backend,
    Discount,
    LogLinearMixing,
    PriorMixing,
    bayesian_filter,
)
from bayesmem.types import Belief, FilterOutput

__version__ = "0.1.0"

__all__ = [
    "Additive",
    "Assumptions",
    "Backend",
    "BayesianLayer",
    "BayesianLayerConfig",
    "Belief",
    "Discount",
    "FilterOutput",
    "LogLinearMixing",
    "PriorMixing",
    "bayesian_filter",
]

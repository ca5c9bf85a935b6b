"""What is computed: the exact filter, its back ends, and the equations they are held to."""

from bayesmem.ops.api import BACKENDS, Backend, bayesian_filter
from bayesmem.ops.assumptions import (
    COVARIANCES,
    Additive,
    Assumptions,
    Covariance,
    Discount,
    LogLinearMixing,
    PriorMixing,
    ProcessNoise,
)

__all__ = [
    "BACKENDS",
    "COVARIANCES",
    "Additive",
    "Assumptions",
    "Backend",
    "Covariance",
    "Discount",
    "LogLinearMixing",
    "PriorMixing",
    "ProcessNoise",
    "bayesian_filter",
]

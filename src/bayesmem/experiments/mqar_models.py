"""The models of the MQAR study as data: which design each is, and the head sizes that make them comparable.

Two layers, one head, a short convolution, no MLP, as Zoology compares. Matched by *state*, every model carries at
least as many numbers a layer as the Bayesian Layer with K = V = width, whose covariance is counted; matched by
*parameters*, its mixer has as nearly as possible as many parameters as that Bayesian Layer's.
"""

from bisect import bisect_left
from functools import cache
from typing import Any

import torch
from torch import nn

from bayesmem.design import DesignModel, named
from bayesmem.layers import BayesianLayer, BayesianLayerConfig
from bayesmem.models.attention import SoftmaxAttention, SoftmaxAttentionConfig

ATTENTION = "attention"
BASE = "bayesian"  # what the others are matched to
# In the order of the issue: those that the claim is about, then the others.
FIRST = (
    "deltanet",
    "gated_deltanet",
    "kalman_diagonal",
    "mesanet",
    "bayesian_static",
    "bayesian_forgetting",
    "bayesian_prior_mixing",
    "bayesian",
)
OTHERS = ("linear_attention", "gla", "mamba2", "kda", "kalman_isotropic", ATTENTION)
MODELS = FIRST + OTHERS
MATCHED = ("state", "parameters")
STEP = 8  # head sizes are multiples of it, where the state is matched
LARGEST_KEY = 256  # the kernels'; a larger state goes into wider values


def model_options(
    model: str, hidden_size: int, matched: str = "state", changes: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What ``BayesMemConfig`` takes besides sizes: the mixer of every layer.

    Args:
        model: of ``MODELS``.
        hidden_size: model width D.
        matched: ``"state"`` or ``"parameters"``.
        changes: options of ``BayesianLayerConfig`` in place of the model's own (an ablation's).

    Raises:
        ValueError: a model or a way to match that there is not, or changes to softmax attention.
    """
    if model not in MODELS:
        raise ValueError(f"model is {model!r}; expected one of {', '.join(MODELS)}.")
    if matched not in MATCHED:
        raise ValueError(f"matched is {matched!r}; expected one of {', '.join(MATCHED)}.")
    key_dim, value_dim = head_sizes(model, hidden_size, matched)
    if model == ATTENTION:
        if changes:
            raise ValueError(f"changes {sorted(changes)} of softmax attention: they are options of a Bayesian Layer.")
        return {"attention": {"num_heads": 1, "head_dim": key_dim}, "attention_every": 1}
    mixer = {"num_heads": 1, "head_dim": key_dim, "value_dim": value_dim, "design": model}
    return {"mixer": mixer | (changes or {})}


@cache
def head_sizes(model: str, hidden_size: int, matched: str) -> tuple[int, int]:
    """Key and value dim of a model's one head.

    Args:
        model: of ``MODELS``.
        hidden_size: model width D.
        matched: ``"state"`` or ``"parameters"``.
    """
    if matched == "parameters":
        return _of_parameters(model, hidden_size)
    if model == ATTENTION:  # the ceiling: what it carries grows with the tokens
        return hidden_size, hidden_size
    design = named(model)
    assert isinstance(design, DesignModel)
    state = design.recurrence.state_size
    budget = named(BASE).recurrence.state_size(hidden_size, hidden_size).total
    if state(hidden_size, hidden_size).total == budget:
        return hidden_size, hidden_size
    size = STEP
    while state(size, size).total < budget:
        size += STEP
    if size <= LARGEST_KEY:
        return size, size
    wide = STEP
    while state(LARGEST_KEY, wide).total < budget:
        wide += STEP
    return LARGEST_KEY, wide


def _of_parameters(model: str, hidden_size: int) -> tuple[int, int]:
    target = mixer_parameters(BASE, hidden_size, hidden_size)
    sizes = range(2, 3 * hidden_size + 1, 2)
    above = bisect_left(sizes, target, key=lambda size: mixer_parameters(model, hidden_size, size))
    best = min(
        sizes[max(above - 1, 0) : above + 1], key=lambda n: abs(mixer_parameters(model, hidden_size, n) - target)
    )
    return best, best


def mixer_parameters(model: str, hidden_size: int, head_dim: int) -> int:
    """Parameters of one mixer with K = V = ``head_dim``."""
    with torch.device("meta"):
        mixer: nn.Module
        if model == ATTENTION:
            mixer = SoftmaxAttention(SoftmaxAttentionConfig(hidden_size=hidden_size, num_heads=1, head_dim=head_dim))
        else:
            config = BayesianLayerConfig(hidden_size=hidden_size, num_heads=1, head_dim=head_dim, design=model)
            mixer = BayesianLayer(config)
    return sum(parameter.numel() for parameter in mixer.parameters())

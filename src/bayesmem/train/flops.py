"""Floating-point operations of a training token, and what devices can do: for the utilisation that is logged."""

from typing import Any

import torch
from torch import nn

# Dense bf16 tensor-core peaks in FLOP/s, from the makers' data sheets, by what torch calls the device; the longest
# name that fits counts.
PEAKS = {
    "NVIDIA B200": 2250e12,
    "NVIDIA H200": 989e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA A100": 312e12,
    "NVIDIA A10": 125e12,
    "NVIDIA A10G": 70e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA GeForce RTX 3090": 71e12,
    "NVIDIA GeForce RTX 4090": 165e12,
    "NVIDIA GeForce RTX 5090": 209e12,
}


def peak_flops(device: torch.device, bf16: bool) -> float | None:
    """Peak of a device, ``None`` where it is not known: an unlisted one, or another precision than bf16."""
    if device.type != "cuda" or not bf16:
        return None
    name = torch.cuda.get_device_name(device)
    fitting = [known for known in PEAKS if name == known or name.startswith((f"{known} ", f"{known}-"))]
    return PEAKS[max(fitting, key=len)] if fitting else None


def training_flops(model: nn.Module, length: int) -> float:
    """Operations of one token of a row, forward and backward (twice the forward).

    ``6 N`` for the N parameters that multiply (all but the input embedding, a tied one once; ``4 N`` of frozen ones),
    and thrice the mixers' own: of a recurrence what its equations take token by token, not what a chunk form adds to
    go faster; of softmax attention what a causal row of ``length`` takes on average. Recomputation does not count.

    Args:
        model: a causal language model.
        length: tokens a row.
    """
    multiplied = _multiplied(model)
    products = sum((6.0 if p.requires_grad else 4.0) * p.numel() for p in multiplied)
    return products + 3.0 * sum(_forward(mixer, length) for mixer in _mixers(model))


def forward_flops(model: nn.Module, length: int) -> float:
    """Operations of one token without gradients, such as a teacher's; arguments as of ``training_flops``."""
    return 2.0 * sum(p.numel() for p in _multiplied(model)) + sum(_forward(mixer, length) for mixer in _mixers(model))


def _multiplied(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that multiply; a tied matrix stands among them once."""
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    tied = getattr(getattr(model, "config", None), "tie_word_embeddings", False)
    looked_up = None if embeddings is None or tied else embeddings.weight
    return [p for p in model.parameters() if p is not looked_up]


def _mixers(model: nn.Module) -> list[Any]:
    config = getattr(model, "config", None)
    return config.mixer_configs() if config is not None and hasattr(config, "mixer_configs") else []


def _forward(mixer: Any, length: int) -> float:
    """A mixer's own operations of a token: predicting and writing the mean, the covariance, and reading out."""
    if not hasattr(mixer, "model"):  # softmax attention: q k and its weights times v, half of the row on average
        seen = (length + 1) / 2 if mixer.window is None else min(mixer.window, (length + 1) / 2)
        return 4.0 * mixer.num_heads * mixer.head_dim * seen
    size = mixer.model.recurrence.state_size(mixer.head_dim, mixer.value_head_dim)
    measured = mixer.model.recurrence.gain_rule is not None
    # Mean: M^T k and g e^T (2 K V each) a measurement, or k v^T alone; M^T q. Covariance: P k, s g g^T, retention.
    written = (4.0 if measured else 2.0) * size.mean + (6.0 if measured else 0.0) * size.cov
    return mixer.value_heads * (mixer.measurements * written + 3.0 * size.mean)  # decay, and M^T q

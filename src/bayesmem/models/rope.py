"""Rotary positions of softmax attention, with the frequencies that transformers computes."""

import json
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

KINDS = ("default", "linear", "llama3", "yarn")  # those that do not change with the length of a text


def frequencies(head_dim: int, rope: dict[str, Any]) -> tuple[tuple[float, ...], float]:
    """Angular frequency of each pair of channels, and a factor on sine and cosine.

    Args:
        head_dim: K, even.
        rope: as a transformers config has ``rope_parameters``: ``rope_type``, ``rope_theta`` and what the type takes.

    Returns:
        ``K / 2`` float32 numbers in radians a token, and the factor (1 but for ``yarn``).

    Raises:
        ValueError: an odd width, a type that is not known here, or one whose parameters are missing.
    """
    kind = rope.get("rope_type", "default")
    if kind not in KINDS:
        raise ValueError(f"rope_type is {kind!r}; expected one of {', '.join(map(repr, KINDS))}.")
    if head_dim % 2:
        raise ValueError(f"head_dim is {head_dim}; rotary positions turn pairs of channels: expected an even number.")
    if not rope.get("rope_theta", 0) > 0:
        raise ValueError(f"rope is {rope}; expected a positive rope_theta, such as 10000.0.")
    if rope.get("partial_rotary_factor", 1) != 1:
        raise ValueError(f"rope is {rope}; partial_rotary_factor other than 1 is not implemented.")
    return _frequencies(head_dim, json.dumps(rope, sort_keys=True))


@lru_cache
def _frequencies(head_dim: int, text: str) -> tuple[tuple[float, ...], float]:
    from transformers.models.llama.modeling_llama import LlamaConfig, LlamaRotaryEmbedding

    rope = {"rope_type": "default"} | json.loads(text)
    try:
        config = LlamaConfig(hidden_size=head_dim, num_attention_heads=1, head_dim=head_dim, rope_parameters=rope)
        with torch.device("cpu"):  # a model may be under construction on the meta device
            found = LlamaRotaryEmbedding(config)
            return tuple(found.inv_freq.tolist()), float(found.attention_scaling)
    except KeyError as error:
        raise ValueError(f"rope is {rope}; {rope['rope_type']} needs {error}.") from error


def rotate(
    x: Float[Tensor, "B T H K"], position: Int[Tensor, "B T"], speeds: Float[Tensor, " F"], scale: float
) -> Float[Tensor, "B T H K"]:
    """Turn channel i with channel ``i + K/2`` by the token's position, as Llama does.

    Args:
        x: queries or keys.
        position: of each token in its own sequence.
        speeds: ``frequencies``, float32.
        scale: the factor on sine and cosine.
    """
    angle = (position[..., None].to(speeds.dtype) * speeds)[:, :, None]
    angle = torch.cat([angle, angle], -1)
    cos, sin = (angle.cos() * scale).to(x.dtype), (angle.sin() * scale).to(x.dtype)
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat([-high, low], -1) * sin

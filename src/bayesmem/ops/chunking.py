"""Carrying a state through a sequence chunk by chunk, for every pass alike."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

ChunkStep = Callable[..., tuple[Tensor, tuple[Tensor, ...]]]


def cut(x: Float[Tensor, "B H T D"], size: int) -> Float[Tensor, "B H N C D"]:
    """Whole chunks of ``size`` tokens, zeros at the end."""
    return pad(x, (0, 0, 0, -x.shape[2] % size)).unflatten(2, (-1, size))


def joined(x: Float[Tensor, "M C D"], like: Float[Tensor, "B H T D"]) -> Float[Tensor, "B H T D"]:
    """The inverse of ``cut``, chunks of all rows and heads along one axis: the tokens of ``like``."""
    return x.unflatten(0, (*like.shape[:2], -1)).flatten(2, 3)[:, :, : like.shape[2]]


def map_chunks(
    step: ChunkStep,
    state: Tensor,
    streams: Sequence[Float[Tensor, "B H T _"]],
    fill: Sequence[float | int],
    chunk_size: int,
    *,
    remat: bool,
) -> tuple[list[Tensor], Tensor]:
    """Run ``state, outputs = step(state, *chunks)`` over the chunks of ``streams``.

    Args:
        step: one chunk's work; its outputs are ``[B, H, C, _]``.
        state: what is carried into the first chunk.
        streams: inputs over time.
        fill: the value with which each stream is padded to whole chunks, such that a padded
            token changes neither the state nor any earlier output.
        chunk_size: C; a sequence shorter than C is one chunk of its own length.
        remat: keep only the state between chunks for the backward pass, and recompute the rest.

    Returns:
        The outputs joined over time, cut to T, and the last state.
    """
    length = streams[0].shape[2]
    size = min(chunk_size, length)
    extra = -length % size
    if extra:
        streams = [pad(x, (0, 0, 0, extra), value=value) for x, value in zip(streams, fill, strict=False)]
    chunks = zip(*(x.split(size, dim=2) for x in streams), strict=True)
    remat = remat and torch.is_grad_enabled()
    outputs = []
    for inputs in chunks:
        if remat:
            state, output = checkpoint(step, state, *inputs, use_reentrant=False)
        else:
            state, output = step(state, *inputs)
        outputs.append(output)
    whole = [torch.cat(parts, dim=2)[:, :, :length] for parts in zip(*outputs, strict=True)]
    return whole, state

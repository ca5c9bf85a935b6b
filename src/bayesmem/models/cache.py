"""The model's memory between calls: one belief and convolution tail a layer. It never grows.

Softmax attention layers, where a hybrid has some, keep all keys and values in theirs; those grow.
"""

from typing import Any

import torch
from torch import Tensor

from bayesmem.layers import LayerCache
from bayesmem.models.attention import AttentionCache


class BeliefCache:
    """Memories of all layers, in the place that transformers calls ``past_key_values``.

    Layer caches are immutable, so a ``copy`` costs nothing and can be continued on its own.

    Args:
        num_layers: blocks of the model.
    """

    is_compileable = False
    is_croppable = False  # a belief does not forget its last token: branch before it instead

    def __init__(self, num_layers: int):
        self.layers: list[LayerCache | AttentionCache | None] = [None] * num_layers
        self.seen_tokens = 0

    def copy(self) -> "BeliefCache":
        """A branch of this memory: both can go on without touching each other."""
        branch = BeliefCache(len(self.layers))
        branch.layers, branch.seen_tokens = list(self.layers), self.seen_tokens
        return branch

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens written so far, padding counted (transformers asks for it)."""
        return self.seen_tokens

    @property
    def batch_size(self) -> int | None:
        """Sequences remembered; ``None`` before the first token."""
        first = self.layers[0]
        return None if first is None else _tensors(first)[0].shape[0]

    def numel(self) -> int:
        """Numbers held by all layers."""
        return sum(x.numel() for layer in self.layers if layer is not None for x in _tensors(layer))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the given batch rows, in this order (beam search asks for it)."""
        self.layers = [
            None if layer is None else layer.rows(beam_idx.to(_tensors(layer)[0].device)) for layer in self.layers
        ]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the given batch rows, in this order; transformers' name for it."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence so many times, to go on from each in several ways."""
        if self.batch_size is not None:
            self.reorder_cache(torch.arange(self.batch_size).repeat_interleave(repeats))


def check_memory(memory: Any, num_layers: int, batch: int) -> BeliefCache | None:
    """A memory to go on from, or ``None`` where none was passed.

    Raises:
        ValueError: another library's cache, or one of another model or number of sequences.
    """
    if memory is None:
        return None
    if not isinstance(memory, BeliefCache):
        raise ValueError(
            f"past_key_values is a {type(memory).__name__}; expected the BeliefCache that this model returned."
        )
    if len(memory.layers) != num_layers:
        raise ValueError(f"past_key_values remembers {len(memory.layers)} layers; this model has {num_layers}.")
    if memory.batch_size not in (None, batch):
        raise ValueError(
            f"past_key_values remembers {memory.batch_size} sequences and {batch} came; go on with as many, or "
            "repeat each with past_key_values.batch_repeat_interleave(times)."
        )
    return memory


def _tensors(layer: LayerCache | AttentionCache) -> list[Tensor]:
    if isinstance(layer, AttentionCache):
        return [layer.keys, layer.values]
    return layer.tensors

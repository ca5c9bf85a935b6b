"""The model's memory between calls: one belief and convolution tail a layer. It never grows."""

from torch import Tensor

from bayesmem.layers import LayerCache


class BeliefCache:
    """Beliefs of all layers, in the place that transformers calls ``past_key_values``.

    Layer caches are immutable, so a ``copy`` costs nothing and can be continued on its own.

    Args:
        num_layers: blocks of the model.
    """

    is_compileable = False

    def __init__(self, num_layers: int):
        self.layers: list[LayerCache | None] = [None] * num_layers
        self.seen_tokens = 0

    def copy(self) -> "BeliefCache":
        """A branch of this memory: both can go on without touching each other."""
        branch = BeliefCache(len(self.layers))
        branch.layers, branch.seen_tokens = list(self.layers), self.seen_tokens
        return branch

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens written so far (transformers asks for it)."""
        return self.seen_tokens

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the given batch rows, in this order (beam search asks for it)."""
        self.layers = [None if layer is None else layer.rows(beam_idx) for layer in self.layers]

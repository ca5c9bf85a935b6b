"""What a layer remembers between calls: its belief and the convolution's last inputs."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from bayesmem.types import Belief, MixtureBelief


@dataclass(frozen=True, slots=True)
class LayerCache:
    """One layer's memory after some tokens. It does not grow with them.

    Immutable: a step returns a new cache, so an old one can be kept to branch from.

    Attributes:
        belief: mean and covariance, float32 at least.
        conv_tail: the last ``conv_size - 1`` inputs of the convolution over q, k and v.
    """

    belief: Belief | MixtureBelief
    conv_tail: Float[Tensor, "B S E"]

    def rows(self, index: Tensor) -> "LayerCache":
        """The cache of the given batch rows (for beams, or a batch made smaller)."""
        return LayerCache(self.belief.rows(index), self.conv_tail[index])

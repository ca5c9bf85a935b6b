"""What a layer remembers between calls: its belief and the convolution's last inputs."""

from collections.abc import Iterator
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

    @property
    def tensors(self) -> list[Tensor]:
        """All that it holds, in a fixed order."""
        belief = self.belief
        parts = belief.parts if isinstance(belief, MixtureBelief) else (belief,)
        held = [x for part in parts for x in (part.mean, part.cov) if x is not None]
        held += [belief.log_weights] if isinstance(belief, MixtureBelief) else []
        return [*held, self.conv_tail]

    def filled(self, tensors: Iterator[Tensor]) -> "LayerCache":
        """A cache of the same form with other tensors, as many as it has taken from ``tensors``."""
        belief = self.belief
        if isinstance(belief, MixtureBelief):
            parts = tuple(_filled(part, tensors) for part in belief.parts)
            return LayerCache(MixtureBelief(parts, next(tensors)), next(tensors))
        return LayerCache(_filled(belief, tensors), next(tensors))


def _filled(belief: Belief, tensors: Iterator[Tensor]) -> Belief:
    return Belief(next(tensors), None if belief.cov is None else next(tensors))

"""Random inputs and a measure of distance, for what is measured rather than held equal."""

import torch
from torch import Tensor

from peers.cases import unit


def off(a: Tensor, b: Tensor) -> float:
    """Root mean square of the difference, relative to b."""
    return ((a - b).square().mean() / b.square().mean()).sqrt().item()


class Draw:
    """Random inputs in float64 from one seed."""

    def __init__(self, seed: int = 0):
        self.rng = torch.Generator().manual_seed(seed)

    def normal(self, *size: int) -> Tensor:
        return torch.randn(size, generator=self.rng, dtype=torch.float64)

    def unit(self, *size: int) -> Tensor:
        return unit(self.normal(*size))

    def decay(self, low: float, *size: int) -> Tensor:
        """Uniform from ``low`` to 0."""
        return low * torch.rand(size, generator=self.rng, dtype=torch.float64)

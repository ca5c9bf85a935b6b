"""The same seeded inputs for every contender: each tensor from a generator of its own, whatever else is asked for."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bayesmem.experiments.bench_config import Shape
from bayesmem.experiments.measure import seed_of

Inputs = dict[str, Tensor]

# name: (axes, how it is drawn). t is one token in decoding, T the tokens that attention looks back on.
_DRAWN: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "q": ("B t H K", lambda uniform, normal: normalize(normal, dim=-1)),
    "k": ("B t H K", lambda uniform, normal: normalize(normal, dim=-1)),
    "v": ("B t H V", lambda uniform, normal: normal),
    "log_decay": ("B t H", lambda uniform, normal: -0.1 * uniform),
    "channel_log_decay": ("B t H K", lambda uniform, normal: -0.1 * uniform),
    "log_retention": ("B t H", lambda uniform, normal: -0.01 * uniform),
    "obs_noise": ("B t H", lambda uniform, normal: 0.1 + uniform),
    "prior_precision": ("H K", lambda uniform, normal: torch.ones_like(uniform)),
    "mean": ("B H K V", lambda uniform, normal: normal),
    "past_keys": ("B H T K", lambda uniform, normal: normalize(normal, dim=-1)),
    "past_values": ("B H T V", lambda uniform, normal: normal),
}
STREAMS = ("q", "k", "v", "past_keys", "past_values")


def make(names: Sequence[str], shape: Shape, tokens: int, dtype: torch.dtype, device: str, seed: int) -> Inputs:
    """Draw the named tensors.

    Args:
        names: of the tensors; ``beta`` is the delta rules' ``1 / (1 + obs_noise)``, ``cov`` (full) and
            ``channel_cov`` (diagonal) half the prior's.
        shape: sizes.
        tokens: of the streams and gates: T, or 1 in decoding.
        dtype: of the streams; gates and states are float32.
        device: where they lie.
        seed: with a tensor's name, that of its generator.
    """
    sizes = {"B": shape.B, "T": shape.T, "t": tokens, "H": shape.H, "K": shape.K, "V": shape.V}
    return {name: _tensor(name, sizes, device, seed).to(dtype if name in STREAMS else torch.float32) for name in names}


def _tensor(name: str, sizes: dict[str, int], device: str, seed: int) -> Tensor:
    if name == "beta":
        return 1 / (1 + _tensor("obs_noise", sizes, device, seed))
    if name in ("cov", "channel_cov"):
        half = torch.full((sizes["B"], sizes["H"], sizes["K"]), 0.5, device=device)
        return half if name == "channel_cov" else torch.diag_embed(half)
    axes, draw = _DRAWN[name]
    size = [sizes[axis] for axis in axes.split()]
    generator = torch.Generator(device).manual_seed(seed_of(str(seed), name))
    uniform = torch.rand(size, generator=generator, device=device)
    return draw(uniform, torch.randn(size, generator=generator, device=device))

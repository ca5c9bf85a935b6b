"""From hidden states to queries, keys and values: projections, a short convolution, unit norms."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from bayesmem.layers.config import BayesianLayerConfig


class ShortConvolution(nn.Module):
    """A causal depthwise convolution over a few tokens, then SiLU.

    Args:
        channels: E.
        size: taps; the last one weighs the current token.
    """

    def __init__(self, channels: int, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start uniform within ``1 / sqrt(size)``, as torch's convolutions do."""
        bound = self.weight.shape[1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(
        self,
        x: Float[Tensor, "B T E"],
        tail: Float[Tensor, "B S E"],
        position: Int[Tensor, "T"] | None = None,
    ) -> Float[Tensor, "B T E"]:
        """Mix each token with those before it.

        Args:
            x: inputs.
            tail: the S = taps - 1 inputs before ``x``; zeros at the start.
            position: each token's position in its own packed sequence; no tap reaches past it.
        """
        taps, length = self.weight.shape[1], x.shape[1]
        history = torch.cat([tail.to(x.dtype), x], 1)
        mixed = torch.zeros_like(x)
        for back in range(taps):
            start = taps - 1 - back
            term = history[:, start : start + length] * self.weight[:, start].to(x.dtype)
            if position is not None:
                term = term * (position >= back)[:, None]
            mixed = mixed + term
        return F.silu(mixed)


class Projections(nn.Module):
    """q, k, v of a layer. Keys and queries have unit norm.

    Args:
        config: sizes.
    """

    def __init__(self, config: BayesianLayerConfig):
        super().__init__()
        self.config = config
        self.sizes = (
            config.num_heads * config.head_dim,
            config.num_heads * config.head_dim,
            config.value_heads * config.value_head_dim,
        )
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(config.hidden_size, size, bias=False) for size in self.sizes)
        if config.conv_size:
            self.q_conv1d, self.k_conv1d, self.v_conv1d = (ShortConvolution(s, config.conv_size) for s in self.sizes)

    def new_tail(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B S E"]:
        """The convolution's inputs before the first token: zeros."""
        return x.new_zeros(x.shape[0], max(self.config.conv_size - 1, 0), sum(self.sizes))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        tail: Float[Tensor, "B S E"],
        position: Int[Tensor, "T"] | None = None,
    ) -> tuple[Float[Tensor, "B T G K"], Float[Tensor, "B T G K"], Float[Tensor, "B T H V"], Float[Tensor, "B S E"]]:
        """Project, convolve and normalise.

        Returns:
            q, k, v, and the convolution's tail after these tokens.
        """
        streams = [self.q_proj(x), self.k_proj(x), self.v_proj(x)]
        if self.config.conv_size:
            raw = torch.cat([tail.to(streams[0].dtype), torch.cat(streams, -1)], 1)
            convolutions = (self.q_conv1d, self.k_conv1d, self.v_conv1d)
            tails = tail.split(self.sizes, -1)
            streams = [c(s, t, position) for c, s, t in zip(convolutions, streams, tails, strict=True)]
            tail = raw[:, raw.shape[1] - (self.config.conv_size - 1) :]
        else:
            streams = [F.silu(s) for s in streams]
        q, k, v = (s.unflatten(-1, (heads, -1)) for s, heads in zip(streams, self._heads(), strict=True))
        return unit_norm(q), unit_norm(k), v, tail

    def _heads(self) -> tuple[int, int, int]:
        return self.config.num_heads, self.config.num_heads, self.config.value_heads


def unit_norm(x: Float[Tensor, "*axes K"], eps: float = 1e-6) -> Float[Tensor, "*axes K"]:
    """``x / sqrt(|x|^2 + eps)``, as the released delta-rule models have it (0 stays 0)."""
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + eps)

"""From hidden states to queries, keys and values: projections, a short convolution, unit norms."""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from bayesmem.layers.config import BayesianLayerConfig
from bayesmem.ops.pointwise import has_kernels, unit_norm


class ShortConvolution(nn.Module):
    """A causal depthwise convolution over a few tokens, then SiLU; on a GPU one kernel each way.

    Args:
        channels: E.
        size: taps; the last one weighs the current token.
        bias: whether to add one.
    """

    def __init__(self, channels: int, size: int, bias: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, size))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start uniform within ``1 / sqrt(size)``, as torch's convolutions do; the bias at 0."""
        bound = self.weight.shape[1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

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
        if has_kernels(x, self.weight, self.bias):
            from bayesmem.ops.fused.short_convolution import MAX_TAPS, short_convolution

            if taps <= MAX_TAPS:
                return short_convolution(x, self.weight, self.bias, tail, position)
        history = torch.cat([tail.to(x.dtype), x], 1)
        mixed = torch.zeros_like(x)
        for back in range(taps):
            start = taps - 1 - back
            term = history[:, start : start + length] * self.weight[:, start].to(x.dtype)
            if position is not None:
                term = term * (position >= back)[:, None]
            mixed = mixed + term
        if self.bias is not None:
            mixed = mixed + self.bias.to(x.dtype)
        return F.silu(mixed)


class Projections(nn.Module):
    """q, k, v of a layer; unit norm for keys and queries where the design wants it.

    A design of several measurements a token has as many keys and values a token; one whose decay
    gives the keys has none of its own.

    Args:
        config: sizes and design.
    """

    def __init__(self, config: BayesianLayerConfig):
        super().__init__()
        self.config = config
        heads = config.value_heads if config.tied_keys else config.num_heads
        self.sizes = {"q": heads * config.head_dim, "k": config.measurements * config.num_heads * config.head_dim}
        self.sizes["v"] = config.measurements * config.value_heads * config.value_head_dim
        if config.tied_keys:
            del self.sizes["k"]
        for name, size in self.sizes.items():
            setattr(self, f"{name}_proj", nn.Linear(config.hidden_size, size, bias=False))
        if config.conv_size:
            for name, size in self.sizes.items():
                setattr(self, f"{name}_conv1d", ShortConvolution(size, config.conv_size, config.conv_bias))

    def new_tail(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B S E"]:
        """The convolution's inputs before the first token: zeros."""
        return x.new_zeros(x.shape[0], max(self.config.conv_size - 1, 0), sum(self.sizes.values()))

    def tail_of(self, x: Float[Tensor, "B S D"]) -> Float[Tensor, "B S E"]:
        """The convolution's inputs before a segment, from the hidden states before it; zeros give zeros."""
        return torch.cat([getattr(self, f"{name}_proj")(x) for name in self.sizes], -1)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        tail: Float[Tensor, "B S E"],
        position: Int[Tensor, "T"] | None = None,
        attention_mask: Shaped[Tensor, "B T"] | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor | None]:
        """Project, convolve and normalise.

        Args:
            x: hidden states.
            tail: the convolution's inputs before them.
            position: each token's position in its own packed sequence.
            attention_mask: 0 or False where a token is padding, which the convolution passes over.

        Returns:
            q ``[B, T, G, K]``, k ``[B, N, G, K]`` (``None`` where tied), v ``[B, N, H, V]``, N the measurements,
            the convolution's tail after these tokens, and what the square of a unit key lacks to 1 ``[B, N, G]``
            (``None`` where keys have no unit norm).
        """
        streams = {name: getattr(self, f"{name}_proj")(x) for name in self.sizes}
        if self.config.conv_size:
            tail = tail.to(streams["q"].dtype)
            if attention_mask is not None and position is None:
                streams, tail = self._convolved_past_padding(streams, tail, attention_mask)
            else:
                streams, tail = self._convolved(streams, tail, position)
        else:
            streams = {name: F.silu(s) for name, s in streams.items()}
        q = streams["q"].unflatten(-1, (-1, self.config.head_dim))
        v = self._measured(streams["v"], self.config.value_head_dim)
        k = self._measured(streams["k"], self.config.head_dim) if "k" in streams else None
        missing = None
        if self.config.unit_keys:
            q, _ = unit_norm(q)
            k, missing = (None, None) if k is None else unit_norm(k)
        return q, k, v, tail, missing

    def _convolved(
        self, streams: dict[str, Tensor], tail: Float[Tensor, "B S E"], position: Int[Tensor, "T"] | None
    ) -> tuple[dict[str, Tensor], Float[Tensor, "B S E"]]:
        """Every stream convolved where it lies, and the tail after it: the last inputs alone are joined."""
        parts = zip(streams.items(), tail.split([s.shape[-1] for s in streams.values()], -1), strict=True)
        mixed = {name: getattr(self, f"{name}_conv1d")(s, before, position) for (name, s), before in parts}
        first = max(streams["q"].shape[1] - tail.shape[1], 0)
        last = torch.cat([s[:, first:] for s in streams.values()], -1)
        return mixed, torch.cat([tail, last], 1)[:, last.shape[1] :] if last.shape[1] < tail.shape[1] else last

    def _convolved_past_padding(
        self, streams: dict[str, Tensor], tail: Float[Tensor, "B S E"], attention_mask: Shaped[Tensor, "B T"]
    ) -> tuple[dict[str, Tensor], Float[Tensor, "B S E"]]:
        """The same with the padding sorted to the front, and the results back in their places."""
        order, size = _padding_first(attention_mask, tail.shape[1]), tail.shape[1]
        joined = torch.cat([tail, torch.cat(list(streams.values()), -1)], 1)
        tail, joined = _reordered(joined, order).split([size, joined.shape[1] - size], 1)
        parts = joined.split([s.shape[-1] for s in streams.values()], -1)
        mixed, tail = self._convolved(dict(zip(streams, parts, strict=True)), tail, None)
        back = order.argsort(1)[:, size:]
        return {name: _reordered(F.pad(s, (0, 0, size, 0)), back) for name, s in mixed.items()}, tail

    def _measured(self, x: Float[Tensor, "B T E"], width: int) -> Float[Tensor, "B N H F"]:
        return x.unflatten(-1, (self.config.measurements, -1, width)).flatten(1, 2)


def _padding_first(attention_mask: Tensor, before: int) -> Int[Tensor, "B S"]:
    """Order of ``before`` earlier inputs and these tokens with the padding in front, so that it parts no two."""
    return F.pad(attention_mask.bool(), (before, 0), value=True).int().sort(dim=1, stable=True).indices


def _reordered(x: Float[Tensor, "B S E"], order: Int[Tensor, "B T"]) -> Float[Tensor, "B T E"]:
    return x.gather(1, order[..., None].expand(-1, -1, x.shape[-1]))

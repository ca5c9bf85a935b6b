"""Softmax attention as a mixer, for hybrids: rotary positions, grouped heads, a cache that grows."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from bayesmem.models.norm import RMSNorm
from bayesmem.models.rope import frequencies, rotate
from bayesmem.ops.validate import check_bounds


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftmaxAttentionConfig:
    """Size and form of a softmax attention layer, in the words of Llama's kin.

    Attributes:
        hidden_size: model width D.
        num_heads: query heads H.
        num_kv_heads: key and value heads G, of which H is a multiple; default H.
        head_dim: width K of a head, even.
        rope: rotary positions, as a transformers config has ``rope_parameters``; of the types
            ``default``, ``linear``, ``llama3`` and ``yarn``.
        window: how many tokens a token sees, itself counted; default all before it.
        qkv_bias: whether the projections to q, k, v add a bias.
        o_bias: whether the output projection does.
        qk_norm: whether queries and keys are normalised, head by head.
        norm_eps: epsilon of those norms.
    """

    hidden_size: int
    num_heads: int = 4
    num_kv_heads: int | None = None
    head_dim: int = 64
    rope: dict[str, Any] = field(default_factory=lambda: {"rope_type": "default", "rope_theta": 10000.0})
    window: int | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: bool = False
    norm_eps: float | int = 1e-5

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1.")
        for name in ("num_kv_heads", "window"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1, or None for the default.")
        if self.num_heads % self.kv_heads:
            raise ValueError(f"num_heads is {self.num_heads}; expected a multiple of num_kv_heads {self.kv_heads}.")
        frequencies(self.head_dim, self.rope)

    @property
    def kv_heads(self) -> int:
        """Key and value heads G."""
        return self.num_kv_heads or self.num_heads


@dataclass(frozen=True, slots=True)
class AttentionCache:
    """Keys and values of all tokens so far. Immutable: a step returns a new, longer one.

    Attributes:
        keys: rotated.
        values: as projected.
        positions: of each token in its sequence; -1 where it is padding.
        padded: whether any is.
    """

    keys: Float[Tensor, "B G S K"]
    values: Float[Tensor, "B G S K"]
    positions: Int[Tensor, "B S"]
    padded: bool = False

    def rows(self, index: Tensor) -> "AttentionCache":
        """The cache of the given batch rows (for beams, or a batch made smaller)."""
        return AttentionCache(self.keys[index], self.values[index], self.positions[index], self.padded)


class SoftmaxAttention(nn.Module):
    """Causal softmax attention. Of Llama's weights it computes Llama's function.

    Args:
        config: size and form.
    """

    def __init__(self, config: SoftmaxAttentionConfig):
        super().__init__()
        self.config = config
        width, kv_width = config.num_heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=config.o_bias)
        self.speeds, self.scale = frequencies(config.head_dim, config.rope)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, eps=config.norm_eps)
            self.k_norm = RMSNorm(config.head_dim, eps=config.norm_eps)

    def forward(
        self,
        hidden_states: Float[Tensor, "B T D"],
        attention_mask: Shaped[Tensor, "B T"] | None = None,
        cache: AttentionCache | None = None,
        cu_seqlens: Int[Tensor, "_"] | None = None,
        position_ids: Int[Tensor, "_ T"] | None = None,
        *,
        use_cache: bool = False,
    ) -> tuple[Float[Tensor, "B T D"], AttentionCache | None]:
        """Look back from every token.

        Args:
            hidden_states: inputs.
            attention_mask: 0 or False where a token is padding, which nobody looks at.
            cache: what came before.
            cu_seqlens: offsets of sequences packed in one row (B = 1); not with a cache.
            position_ids: positions for the rotation; default: counted, padding left out.
            use_cache: whether to return the cache after the last token.

        Returns:
            Hidden states and the cache, where asked for.

        Raises:
            ValueError: ``cu_seqlens`` that does not cover the tokens.
        """
        batch, length = hidden_states.shape[:2]
        real = None if attention_mask is None else attention_mask.bool()
        bounds = None if cu_seqlens is None else check_bounds(cu_seqlens, batch, length)
        position = self._positions(hidden_states, real, cache, bounds, position_ids)
        q, k, v = (
            getattr(self, f"{name}_proj")(hidden_states).unflatten(-1, (-1, self.config.head_dim)) for name in "qkv"
        )
        if self.config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        speeds = torch.tensor(self.speeds, dtype=torch.float32, device=q.device)
        q, k = (rotate(x, position, speeds, self.scale).transpose(1, 2) for x in (q, k))
        v = v.transpose(1, 2)
        after = AttentionCache(k, v, position if real is None else position.where(real, -1), real is not None)
        if cache is not None:
            after = _joined(cache, after)
        if bounds is None:
            o = self._attend(q, after, position)
        else:
            spans = [slice(*pair) for pair in pairwise(bounds)]
            parts = [AttentionCache(k[:, :, s], v[:, :, s], position[:, s]) for s in spans]
            o = torch.cat([self._attend(q[:, :, s], p, p.positions) for s, p in zip(spans, parts, strict=True)], 2)
        return self.o_proj(o.transpose(1, 2).flatten(-2)), after if use_cache else None

    def _positions(
        self,
        x: Tensor,
        real: Tensor | None,
        cache: AttentionCache | None,
        bounds: list[int] | None,
        given: Tensor | None,
    ) -> Int[Tensor, "B T"]:
        batch, length = x.shape[:2]
        if given is not None:
            return given.expand(batch, length)
        if bounds is not None:
            spans = [torch.arange(stop - start, device=x.device) for start, stop in pairwise(bounds)]
            return torch.cat(spans)[None]
        steps = torch.ones(batch, length, dtype=torch.long, device=x.device) if real is None else real.long()
        seen = 0 if cache is None else cache.positions.amax(1, keepdim=True) + 1
        return steps.cumsum(1) - 1 + seen

    def _attend(
        self, q: Float[Tensor, "B H T K"], keys: AttentionCache, position: Int[Tensor, "B T"]
    ) -> Float[Tensor, "B H T K"]:
        """The queries are the last T of the keys' S tokens."""
        length, span = q.shape[2], keys.keys.shape[2]
        windowed = self.config.window is not None and span > self.config.window
        if not (keys.padded or windowed) and length in (1, span):
            return F.scaled_dot_product_attention(
                q, keys.keys, keys.values, is_causal=length > 1, enable_gqa=self.config.kv_heads < self.config.num_heads
            )
        seen = _visible(keys, position, self.config.window if windowed else None)
        groups = (
            self.config.num_heads // self.config.kv_heads
        )  # repeated: fused kernels take a mask or groups, not both
        k, v = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (keys.keys, keys.values))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None])


def _joined(before: AttentionCache, new: AttentionCache) -> AttentionCache:
    return AttentionCache(
        torch.cat([before.keys.to(new.keys.dtype), new.keys], 2),
        torch.cat([before.values.to(new.values.dtype), new.values], 2),
        torch.cat([before.positions, new.positions], 1),
        before.padded or new.padded,
    )


def _visible(keys: AttentionCache, position: Int[Tensor, "B T"], window: int | None) -> Bool[Tensor, "_ T S"]:
    """Which keys each query sees: real ones before it, within the window, and itself in any case."""
    length, span = position.shape[1], keys.positions.shape[1]
    key = torch.arange(span, device=position.device)
    query = key[span - length :, None]
    seen = (key <= query)[None]
    if keys.padded:
        seen = seen & (keys.positions >= 0)[:, None]
    if window is not None:
        seen = seen & (position[:, :, None] - keys.positions[:, None] < window)
    return seen | (key == query)  # padding sees itself: a softmax over nothing is NaN

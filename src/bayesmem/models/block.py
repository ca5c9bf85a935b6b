"""One block: norm, mixer, norm, gated MLP, each added to the stream."""

import torch.distributed as dist
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from bayesmem.layers import BayesianLayer, BayesianLayerConfig, LayerCache
from bayesmem.models.attention import AttentionCache, SoftmaxAttention, SoftmaxAttentionConfig
from bayesmem.models.config import BayesMemConfig
from bayesmem.models.norm import RMSNorm
from bayesmem.ops.pointwise import gated_product

KNOWN = ("predictive_var", "log_evidence", "innovation_var", "innovation_energy")  # what a layer can tell of its errors


class GatedMLP(nn.Module):
    """SwiGLU: ``down(silu(gate(x)) * up(x))``.

    Args:
        hidden_size: D.
        intermediate_size: inner width.
    """

    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Each token by itself."""
        return self.down_proj(gated_product(self.gate_proj(x), self.up_proj(x)))


class Block(GradientCheckpointingLayer):
    """A mixer and, where the config has one, an MLP.

    Args:
        config: of the model.
        mixer: of this layer.
    """

    def __init__(self, config: BayesMemConfig, mixer: BayesianLayerConfig | SoftmaxAttentionConfig):
        super().__init__()
        self.mixer_norm = RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.mixer: SoftmaxAttention | BayesianLayer
        if isinstance(mixer, SoftmaxAttentionConfig):
            self.mixer, self.knows = SoftmaxAttention(mixer), False
        else:
            self.mixer = BayesianLayer(mixer)
            self.knows = mixer.model.recurrence.gain_rule is not None and not mixer.allow_neg_eigval
        if config.intermediate_size:
            self.mlp_norm = RMSNorm(config.hidden_size, eps=config.norm_eps)
            self.mlp = GatedMLP(config.hidden_size, config.intermediate_size)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        attention_mask: Shaped[Tensor, "B T"] | None = None,
        cache: LayerCache | AttentionCache | None = None,
        cu_seqlens: Int[Tensor, "_"] | None = None,
        position_ids: Int[Tensor, "_ T"] | None = None,
        use_cache: bool = False,
        output_uncertainty: bool = False,
        context_group: dist.ProcessGroup | None = None,
    ) -> tuple[Tensor | LayerCache | AttentionCache | None, ...]:
        """Run the block.

        Args:
            x: the stream.
            attention_mask: 0 or False where a token is padding.
            cache: the mixer's memory to go on from.
            cu_seqlens: offsets of sequences packed in one row.
            position_ids: positions, for a mixer that has a use for them.
            use_cache: whether to return the memory.
            output_uncertainty: whether to return what the mixer knows of its errors.
            context_group: ranks that share every sequence, each holding a slice of it.

        Returns:
            A plain tuple, which gradient checkpointing of either kind can see into: the stream, the memory,
            and of ``KNOWN`` each ``[B, T, H]``, or ``None`` for what was not asked for or the mixer does not have.
        """
        normed = self.mixer_norm(x)
        known: list[Tensor | None] = [None] * len(KNOWN)
        if isinstance(self.mixer, SoftmaxAttention):
            mixed, after = self.mixer(normed, attention_mask, cache, cu_seqlens, position_ids, use_cache=use_cache)
        else:
            out = self.mixer(
                normed,
                attention_mask,
                cache,
                cu_seqlens,
                use_cache=use_cache,
                output_uncertainty=output_uncertainty and self.knows,
                context_group=context_group,
            )
            mixed, after, known = out.hidden_states, out.cache, [getattr(out, name) for name in KNOWN]
        x = x + mixed
        if hasattr(self, "mlp"):
            x = x + self.mlp(self.mlp_norm(x))
        return x, after, *known

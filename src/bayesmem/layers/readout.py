"""From the filter's outputs back to hidden states: gated RMS norm and the output projection."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesmem.design import MeanAndVariance
from bayesmem.layers.config import BayesianLayerConfig
from bayesmem.ops.pointwise import rms_norm


class GatedRMSNorm(nn.Module):
    """``RMSNorm(o) * weight * silu(gate)``, computed in float32.

    Args:
        size: V, the axis that is normalised.
        eps: added to the mean square.
        activation: ``silu`` or ``sigmoid`` of the gate.
    """

    def __init__(self, size: int, eps: float, activation: str = "silu"):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps
        self.activation = activation

    def forward(
        self, o: Float[Tensor, "*axes V"], gate: Float[Tensor, "*axes V"] | None = None
    ) -> Float[Tensor, "*axes V"]:
        """Normalise, and gate where a gate is given."""
        return rms_norm(o, self.weight, self.eps, gate, self.activation)


class Readout(nn.Module):
    """Gate, norm and project what was read from the memory.

    Where the design reads out the variance too, each head's standard deviation joins its channels
    on the way to the output projection; the norm would otherwise hide it.

    Args:
        config: sizes and design.
    """

    def __init__(self, config: BayesianLayerConfig):
        super().__init__()
        width = config.value_heads * config.value_head_dim
        gated = config.output_gate != "none"
        self.g_proj = nn.Linear(config.hidden_size, width, bias=False) if gated else None
        self.o_norm = GatedRMSNorm(config.value_head_dim, config.norm_eps, config.output_gate if gated else "silu")
        self.with_variance = isinstance(config.evidence.readout, MeanAndVariance)
        self.o_proj = nn.Linear(width + config.value_heads * self.with_variance, config.hidden_size, bias=False)

    def forward(
        self,
        o: Float[Tensor, "B T H V"],
        x: Float[Tensor, "B T D"],
        predictive_var: Float[Tensor, "B T H"] | None = None,
        weight: Float[Tensor, "B T H"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Hidden states from outputs ``o``, gated by the layer's input ``x``.

        Args:
            o: the filter's outputs.
            x: the layer's input.
            predictive_var: of the outputs; needed where the design reads it out.
            weight: how much each head counts, applied after the norm (which does not see scale).
        """
        gate = None if self.g_proj is None else self.g_proj(x).unflatten(-1, o.shape[-2:])
        normed = self.o_norm(o, gate)
        if weight is not None:
            normed = (normed * weight[..., None]).to(normed.dtype)
        if self.with_variance:
            assert predictive_var is not None
            spread = (predictive_var + 1e-12).sqrt()[..., None].to(normed.dtype)
            normed = torch.cat([normed, spread], -1)
        return self.o_proj(normed.flatten(-2))

"""One block: norm, mixer, norm, gated MLP, each added to the stream."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bayesmem.layers import BayesianLayer, LayerOutput
from bayesmem.models.config import BayesMemConfig


class RMSNorm(nn.RMSNorm):
    """Root mean square norm, computed in float32 at least."""

    def forward(self, x: Float[Tensor, "*axes D"]) -> Float[Tensor, "*axes D"]:
        """``x / rms(x) * weight``."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        weight = self.weight.to(wide.dtype)
        return F.rms_norm(wide, (x.shape[-1],), weight, self.eps).to(x.dtype)


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
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """A mixer and, where the config has one, an MLP.

    Args:
        config: of the model.
    """

    def __init__(self, config: BayesMemConfig):
        super().__init__()
        self.mixer_norm = RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.mixer = BayesianLayer(config.layer_config())
        if config.intermediate_size:
            self.mlp_norm = RMSNorm(config.hidden_size, eps=config.norm_eps)
            self.mlp = GatedMLP(config.hidden_size, config.intermediate_size)

    def forward(self, x: Float[Tensor, "B T D"], **options: object) -> LayerOutput:
        """Run the block; ``options`` are the mixer's.

        Returns:
            The mixer's output, its hidden states replaced by the block's.
        """
        mixed = self.mixer(self.mixer_norm(x), **options)
        x = x + mixed.hidden_states
        if hasattr(self, "mlp"):
            x = x + self.mlp(self.mlp_norm(x))
        return LayerOutput(x, mixed.cache, mixed.predictive_var, mixed.log_evidence)

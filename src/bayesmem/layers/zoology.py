"""The layer as a sequence mixer of Zoology (github.com/HazyResearch/zoology); docs/zoology.md has a config to paste."""

from dataclasses import fields
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from bayesmem.layers.config import BayesianLayerConfig
from bayesmem.layers.mixer import BayesianLayer


class ZoologyMixer(nn.Module):
    """A ``BayesianLayer`` with the interface that Zoology expects of a sequence mixer.

    Zoology starts every ``nn.Linear`` anew after it has built a model: weights normal of spread 0.02, biases 0. The
    layer keeps what its gates start from (decays, retention, noise) in parameters of their own and has no biases in
    its linear maps, so nothing that it starts from is lost but the weights' spread.

    Args:
        d_model: model width D.
        layer_idx: which layer it is; taken because Zoology gives it, and not used.
        options: of ``BayesianLayerConfig``, such as ``design``; one head with K = V = ``d_model`` unless they say
            otherwise.

    Raises:
        ValueError: options that a layer does not have, or that it refuses.
    """

    def __init__(self, d_model: int, layer_idx: int | None = None, **options: Any):
        super().__init__()
        known = [field.name for field in fields(BayesianLayerConfig) if field.name != "hidden_size"]
        if unknown := sorted(set(options) - set(known)):
            raise ValueError(f"unknown options {unknown} of a Bayesian Layer; expected some of {', '.join(known)}.")
        given = {"num_heads": 1, "head_dim": d_model} | options
        self.layer = BayesianLayer(BayesianLayerConfig(hidden_size=d_model, **given))

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Write every token into the memory and read it out."""
        mixed: Tensor = self.layer(x).hidden_states
        return mixed

    def state_size(self, sequence_length: int = 2048) -> int:
        """Numbers that a sequence's memory takes, its covariance counted; the same however long the sequence is."""
        return self.layer.config.state_size

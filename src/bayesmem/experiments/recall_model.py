"""The one causal language model on continuous tokens: a linear map in, the same blocks, a linear map out."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesmem.models import BayesMemConfig, BayesMemForCausalLM, BayesMemOutput


class ContinuousRecall(BayesMemForCausalLM):
    """Predicts the value that the last tokens of a row ask for.

    Args:
        config: of the model; its vocabulary is the value's channels.
        features: channels of a token.
    """

    main_input_name = "features"

    def __init__(self, config: BayesMemConfig, features: int):
        super().__init__(config)
        self.embed_tokens = nn.Linear(features, config.hidden_size, bias=False)  # type: ignore[assignment]
        self._init_weights(self.embed_tokens)

    def forward(  # type: ignore[override]
        self,
        features: Float[Tensor, "B T F"],
        targets: Float[Tensor, "B Q V"] | None = None,
        output_uncertainty: bool = False,
        **kwargs: Any,
    ) -> BayesMemOutput:
        """Read the tokens.

        Args:
            features: the tokens.
            targets: what the last Q of them ask for; gives the loss, half the squared error of a channel.
            output_uncertainty: whether to return what the layers know of their errors.
            kwargs: as of the language model.

        Returns:
            Its output; ``logits`` are the predicted values at every token, ``[B, T, V]``.
        """
        out = super().forward(
            inputs_embeds=self.embed_tokens(features), output_uncertainty=output_uncertainty, use_cache=False, **kwargs
        )
        assert isinstance(out, BayesMemOutput) and out.logits is not None
        if targets is not None:
            asked = out.logits[:, -targets.shape[1] :]
            out.loss = 0.5 * (asked - targets.to(asked.dtype)).square().mean()
        return out


def build(seed: int, features: int, **config: Any) -> ContinuousRecall:
    """A freshly initialised model; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ContinuousRecall(BayesMemConfig(**config), features)

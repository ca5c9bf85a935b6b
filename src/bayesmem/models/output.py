"""What the language model returns."""

from dataclasses import dataclass

from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast

from bayesmem.models.cache import BeliefCache


@dataclass
class BayesMemOutput(CausalLMOutputWithPast):
    """A causal LM output with what the memories know.

    Attributes:
        loss: mean cross-entropy of the targets in nats, float32.
        logits: ``[B, T, N]``; ``None`` where training computed the loss without them.
        past_key_values: the memory after these tokens.
        hidden_states: the stream before every block and after the last norm, where asked for.
        predictive_var: per layer ``[B, T, H]``, variance of each head's read-out; ``None`` for a layer that
            carries no covariance, such as softmax attention.
        log_evidence: per layer ``[B, T, H]``, log density of each token's values, in nats; likewise.
        innovation_var: per layer ``[B, T, H]``, variance with which each value channel was predicted; ``None`` for
            a mixture too.
        innovation_energy: per layer ``[B, T, H]``, mean over the channels of the squared innovation over that
            variance: 1 on average where the memory knows its errors, more where it is too sure; likewise.
    """

    # transformers says torch.FloatTensor, which a tensor of 16 bits or on a GPU is not.
    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    past_key_values: BeliefCache | None = None
    predictive_var: tuple[Tensor | None, ...] | None = None
    log_evidence: tuple[Tensor | None, ...] | None = None
    innovation_var: tuple[Tensor | None, ...] | None = None
    innovation_energy: tuple[Tensor | None, ...] | None = None

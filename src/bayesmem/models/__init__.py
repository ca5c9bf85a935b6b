"""What is trained: the one causal language model, for Hugging Face transformers.

Importing this registers ``BayesMemConfig`` and ``BayesMemForCausalLM`` with the Auto classes.
"""

from transformers import AutoConfig, AutoModelForCausalLM

from bayesmem.models.attention import SoftmaxAttention, SoftmaxAttentionConfig
from bayesmem.models.cache import BeliefCache
from bayesmem.models.causal_lm import BayesMemForCausalLM
from bayesmem.models.config import BayesMemConfig
from bayesmem.models.output import BayesMemOutput

AutoConfig.register(BayesMemConfig.model_type, BayesMemConfig)
AutoModelForCausalLM.register(BayesMemConfig, BayesMemForCausalLM)

__all__ = [
    "BayesMemConfig",
    "BayesMemForCausalLM",
    "BayesMemOutput",
    "BeliefCache",
    "SoftmaxAttention",
    "SoftmaxAttentionConfig",
]

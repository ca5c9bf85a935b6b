"""``BayesMemForCausalLM``: embedding, blocks, norm, head. The project's one language model."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from bayesmem.layers.gates import Gates
from bayesmem.layers.projections import ShortConvolution
from bayesmem.models.block import Block, RMSNorm
from bayesmem.models.cache import BeliefCache
from bayesmem.models.config import BayesMemConfig


@dataclass
class BayesMemOutput(CausalLMOutputWithPast):
    """A causal LM output with what the memories know.

    Attributes:
        past_key_values: the memory after these tokens.
        predictive_var: per layer ``[B, T, H]``, variance of each head's read-out.
        log_evidence: per layer ``[B, T, H]``, log density of each token's values, in nats.
    """

    past_key_values: BeliefCache | None = None
    predictive_var: tuple[Tensor, ...] | None = None
    log_evidence: tuple[Tensor, ...] | None = None


class BayesMemForCausalLM(PreTrainedModel, GenerationMixin):
    """A causal language model on Bayesian (or delta-rule) memories.

    Args:
        config: sizes and the mixer's assumptions.
    """

    config_class = BayesMemConfig
    base_model_prefix = "model"
    _no_split_modules = ["Block"]  # noqa: RUF012
    _tied_weights_keys = {"lm_head.weight": "embed_tokens.weight"}  # noqa: RUF012
    _is_stateful = True
    accepts_loss_kwargs = False

    def __init__(self, config: BayesMemConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Shaped[Tensor, "B S"] | None = None,
        past_key_values: BeliefCache | None = None,
        inputs_embeds: Float[Tensor, "B T D"] | None = None,
        labels: Int[Tensor, "B T"] | None = None,
        shift_labels: Int[Tensor, "B T"] | None = None,
        cu_seqlens: Int[Tensor, "_"] | None = None,
        use_cache: bool | None = None,
        output_uncertainty: bool = False,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> BayesMemOutput:
        """Predict every next token.

        Args:
            input_ids: tokens.
            attention_mask: 0 where a token is padding; with a cache it may cover the past too.
            past_key_values: memory to go on from; it is updated in place.
            inputs_embeds: embeddings in place of ``input_ids``.
            labels: next-token targets, as transformers has them: shifted here; -100 is ignored.
            shift_labels: targets that stand at the position which predicts them.
            cu_seqlens: offsets of sequences packed in one row.
            use_cache: whether to return the memory; default: the config's, but not in training.
            output_uncertainty: whether to return each layer's predictive variance and evidence.
            logits_to_keep: compute the last so many logits only; 0 is all.
            kwargs: what transformers passes along and this model has no use for.

        Raises:
            ValueError: both or neither of ids and embeddings, or tokens beyond the vocabulary.
        """
        x = self._embed(input_ids, inputs_embeds)
        use_cache = (self.config.use_cache and not self.training) if use_cache is None else use_cache
        use_cache = use_cache and cu_seqlens is None
        cache = past_key_values
        if cache is None and use_cache:
            cache = BeliefCache(self.config.num_hidden_layers)
        if attention_mask is not None:
            attention_mask = attention_mask[:, -x.shape[1] :]
        variances, evidences = [], []
        for index, block in enumerate(self.layers):
            out = block(
                x,
                attention_mask=attention_mask,
                cache=None if cache is None else cache.layers[index],
                cu_seqlens=cu_seqlens,
                use_cache=use_cache,
                output_uncertainty=output_uncertainty,
            )
            x = out.hidden_states
            if cache is not None and use_cache:
                cache.layers[index] = out.cache
            variances.append(out.predictive_var)
            evidences.append(out.log_evidence)
        if cache is not None and use_cache:
            cache.seen_tokens += x.shape[1]
        logits = self.lm_head(self.norm(x[:, -logits_to_keep:] if logits_to_keep else x))
        return BayesMemOutput(
            loss=_loss(logits, labels, shift_labels),
            logits=logits,
            past_key_values=cache if use_cache else None,
            predictive_var=tuple(variances) if output_uncertainty else None,
            log_evidence=tuple(evidences) if output_uncertainty else None,
        )

    def _embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass either input_ids or inputs_embeds, and not both.")
        if inputs_embeds is not None:
            return inputs_embeds
        assert input_ids is not None
        if input_ids.device.type == "cpu" and input_ids.numel():
            low, high = input_ids.min().item(), input_ids.max().item()
            if low < 0 or high >= self.config.vocab_size:
                raise ValueError(
                    f"input_ids go from {low} to {high}; expected 0 to {self.config.vocab_size - 1}, the vocabulary."
                )
        return self.embed_tokens(input_ids)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: BeliefCache | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """What one step of ``generate`` feeds: the tokens that the memory has not seen."""
        seen = past_key_values.seen_tokens if past_key_values is not None else 0
        inputs: dict[str, Any] = {"input_ids": input_ids[:, seen:].contiguous()}
        if inputs_embeds is not None and seen == 0:
            inputs = {"inputs_embeds": inputs_embeds}
        return inputs | {
            "past_key_values": past_key_values,
            "attention_mask": attention_mask,
            "use_cache": kwargs.get("use_cache"),
            "logits_to_keep": 1,
        }

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the memory is a BeliefCache, which forward makes

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        own = list(module.parameters(recurse=False))
        if not own or any(getattr(p, "_is_hf_initialized", False) for p in own):
            return
        if isinstance(module, Gates | ShortConvolution):
            module.reset_parameters()
        elif isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        else:  # norms
            for parameter in own:
                nn.init.ones_(parameter)


def _loss(logits: Tensor, labels: Tensor | None, shift_labels: Tensor | None) -> Tensor | None:
    if shift_labels is None:
        if labels is None:
            return None
        shift_labels = F.pad(labels, (0, 1), value=-100)[:, 1:]
    return F.cross_entropy(logits.flatten(0, 1).float(), shift_labels.flatten(), ignore_index=-100)

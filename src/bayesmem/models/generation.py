"""What ``generate`` asks of a model whose cache is a belief."""

from typing import Any

from torch import Tensor

from bayesmem.models.cache import BeliefCache


class BeliefGeneration:
    """Feeds transformers' ``GenerationMixin``, before which it stands, the tokens that the memory has not seen."""

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: BeliefCache | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """What one step of ``generate`` feeds.

        Raises:
            ValueError: packed sequences, or ids that the memory has all seen.
        """
        if kwargs.get("cu_seqlens") is not None:
            raise ValueError("generate of packed sequences (cu_seqlens): pass them as rows, padded on the left.")
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        inputs: dict[str, Any]
        if inputs_embeds is None:
            fresh = input_ids.shape[1] - seen
        else:  # of the prompt, whose ids need not be there; after it come single tokens, always by a memory
            fresh = inputs_embeds.shape[1] if seen == 0 else min(1, input_ids.shape[1])
        if fresh < 1:
            raise ValueError(
                f"input_ids has {input_ids.shape[1]} tokens and past_key_values has seen {seen}; generate takes the "
                "ids of the whole sequence, what the memory has seen included."
            )
        if inputs_embeds is not None and seen == 0:
            inputs = {"inputs_embeds": inputs_embeds}
        else:
            inputs = {"input_ids": input_ids[:, -fresh:].contiguous()}
        return inputs | {
            "past_key_values": past_key_values,
            "attention_mask": attention_mask,
            "position_ids": None if position_ids is None else position_ids[:, -fresh:],
            "use_cache": kwargs.get("use_cache"),
            "logits_to_keep": 1,
        }

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the memory is a BeliefCache, which forward makes

"""``BayesMemForCausalLM``: embedding, blocks, norm, head. The project's one language model."""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel

from bayesmem.layers import LayerCache
from bayesmem.layers.gates import Gates
from bayesmem.layers.projections import ShortConvolution
from bayesmem.models.attention import SoftmaxAttention
from bayesmem.models.block import KNOWN, Block
from bayesmem.models.cache import BeliefCache, check_memory
from bayesmem.models.config import BayesMemConfig
from bayesmem.models.generation import BeliefGeneration
from bayesmem.models.loading import CheckedLoading
from bayesmem.models.loss import logits_loss, next_token_loss, shifted
from bayesmem.models.norm import RMSNorm
from bayesmem.models.output import BayesMemOutput
from bayesmem.models.packing import Packing
from bayesmem.models.step_graph import StepGraphs
from bayesmem.models.walk import Inputs, Walked, lay_out, walk

# What transformers' own callers and collators hand to every model.
PASSED_ALONG = frozenset(
    {"return_dict", "shift_labels", "output_attentions", "cache_position", "token_type_ids", "seq_idx"}
    | {f"{name}_{side}" for name in ("cu_seq_lens", "max_length") for side in "qk"}
)


class BayesMemForCausalLM(CheckedLoading, BeliefGeneration, PreTrainedModel, GenerationMixin):
    """A causal language model on Bayesian (or delta-rule) memories, and softmax attention where wanted.

    Args:
        config: sizes and the mixers' assumptions.

    Attributes:
        steps: on a GPU, recordings of one token through all blocks, which ``generate`` replays;
            ``steps.enabled = False`` runs every token as it is.
    """

    config_class = BayesMemConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True
    _no_split_modules = ["Block"]  # noqa: RUF012
    _tied_weights_keys = {"lm_head.weight": "embed_tokens.weight"}  # noqa: RUF012
    _is_stateful = True
    _supports_sdpa = True

    def __init__(self, config: BayesMemConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, mixer) for mixer in config.mixer_configs())
        self.norm = RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.steps = StepGraphs()
        self.post_init()

    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Shaped[Tensor, "B S"] | None = None,
        position_ids: Int[Tensor, "_ T"] | None = None,
        past_key_values: BeliefCache | None = None,
        inputs_embeds: Float[Tensor, "B T D"] | None = None,
        labels: Int[Tensor, "B T"] | None = None,
        cu_seqlens: Int[Tensor, "_"] | None = None,
        use_cache: bool | None = None,
        output_uncertainty: bool = False,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        context_group: dist.ProcessGroup | None = None,
        **kwargs: Any,
    ) -> BayesMemOutput | tuple[Any, ...]:
        """Predict every next token.

        Args:
            input_ids: tokens.
            attention_mask: 0 where a token is padding, on either side; it changes nothing for the others. With a
                cache it may cover the past too.
            position_ids: positions for softmax attention; default: counted, padding left out. Positions that start
                again at 0 within a row mark packed sequences, as ``cu_seqlens`` does.
            past_key_values: memory to go on from; it is updated in place.
            inputs_embeds: embeddings in place of ``input_ids``.
            labels: next-token targets, as transformers has them: shifted here; -100 is ignored, and so are
                padding and the first token of a packed sequence, which nothing before it predicts.
            cu_seqlens: offsets of sequences packed in one row.
            use_cache: whether to return the memory; default: the config's, but not in training or of packed rows.
            output_uncertainty: whether to return what each layer knows of its errors.
            output_hidden_states: whether to return the stream between blocks.
            logits_to_keep: compute the last so many logits only (0 is all), or those at these positions.
            num_items_in_batch: what the summed loss is divided by; default: the targets that count.
            context_group: ranks that share every sequence, each holding a slice of its tokens, in rank order
                (``bayesmem.ops.context_parallel``). Targets go in as ``shift_labels``, sliced likewise, and the loss
                is of this rank's; ``cu_seqlens`` is that of the whole row. Without a memory, in or out.
            kwargs: ``shift_labels``, targets that stand at the position which predicts them, taken as they are;
                ``return_dict``; and what transformers passes along and this model has no use for.

        Raises:
            ValueError: both or neither of ids and embeddings, tokens beyond the vocabulary, a mask, memory
                or packing that does not fit the tokens, or an argument that no model has.
        """
        if unknown := sorted(set(kwargs) - PASSED_ALONG):
            raise ValueError(f"forward was given {unknown}, which it does not have; is a name misspelt?")
        if context_group is not None:
            self._check_split(labels, position_ids, past_key_values, use_cache)
            use_cache = False
        x = self._embed(input_ids, inputs_embeds)
        memory = check_memory(past_key_values, len(self.layers), batch=x.shape[0])
        seen = 0 if memory is None else memory.seen_tokens
        inputs = lay_out(x, attention_mask, position_ids, cu_seqlens, seen, split=context_group is not None)
        use_cache = self._keeps_memory(use_cache, inputs.packing, memory)
        if memory is None and use_cache:
            memory = BeliefCache(len(self.layers))
        if output_uncertainty and not any(block.knows for block in self.layers):
            raise ValueError("output_uncertainty: no layer of this model carries a covariance; choose another design.")
        walked = self._through_blocks(
            inputs, memory, use_cache, output_uncertainty, bool(output_hidden_states), context_group
        )
        if memory is not None and use_cache:
            memory.seen_tokens += x.shape[1]
        # Not an argument by name: the Trainer would then wait for both kinds of labels before it evaluates.
        targets = kwargs.get("shift_labels")
        if targets is None and labels is not None:
            targets = shifted(labels, inputs.real, None if inputs.packing is None else inputs.packing.starts)
        loss, logits = self._predict(walked.x, targets, logits_to_keep, num_items_in_batch)
        out = BayesMemOutput(
            loss=loss,
            logits=logits,
            past_key_values=memory if use_cache else None,
            hidden_states=(*walked.streams, walked.x) if output_hidden_states else None,
            **(dict(zip(KNOWN, zip(*walked.known, strict=True), strict=True)) if output_uncertainty else {}),
        )
        return out if kwargs.get("return_dict") is not False else out.to_tuple()

    def _through_blocks(
        self,
        inputs: Inputs,
        memory: BeliefCache | None,
        use_cache: bool,
        output_uncertainty: bool,
        output_hidden_states: bool,
        context_group: dist.ProcessGroup | None,
    ) -> Walked:
        """All blocks and the last norm, by a recording where one serves; in the shape of the batch."""
        plain = use_cache and not (output_uncertainty or output_hidden_states)
        if plain and (replayed := self._replay(inputs, memory)) is not None:
            return Walked(replayed, [], [])
        x, streams, known = walk(
            self.layers,
            inputs,
            None if memory is None else memory.layers,
            use_cache=use_cache,
            output_uncertainty=output_uncertainty,
            output_hidden_states=output_hidden_states,
            context_group=context_group,
        )
        x = self.norm(x)
        if (packing := inputs.packing) is not None:
            x, streams = packing.batch(x), [packing.batch(stream) for stream in streams]
            known = [[None if one is None else packing.batch(one) for one in layer] for layer in known]
        return Walked(x, streams, known)

    def _replay(self, inputs: Inputs, memory: BeliefCache | None) -> Tensor | None:
        """One token more of every row by a recording, which updates the memory; ``None`` where none serves."""
        if self.training or memory is None or not memory.seen_tokens:
            return None
        if inputs.x.shape[1] != 1 or inputs.mask is not None or inputs.packing is not None:
            return None
        stepped = self.steps.run(self._step, (self.layers, self.norm), inputs.x, memory.layers)
        if stepped is None:
            return None
        x, memory.layers[:] = stepped
        return x

    def _step(self, x: Tensor, layers: list[LayerCache]) -> tuple[Tensor, list[LayerCache]]:
        """One token of every row, without padding: the stream after the last norm, and what is remembered."""
        afters = list(layers)  # a recording reads the given ones again
        x = walk(self.layers, Inputs(x), afters, use_cache=True).x
        return self.norm(x), afters

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

    def _check_split(
        self, labels: Tensor | None, position_ids: Tensor | None, memory: Any, use_cache: bool | None
    ) -> None:
        """Refuse what does not go with a context group."""
        if labels is not None:
            raise ValueError(
                "labels with context_group: the last target of a slice is on the next rank. Shift them before slicing "
                "and pass shift_labels."
            )
        if position_ids is not None or memory is not None or use_cache:
            raise ValueError(
                "context_group with position_ids or a memory: tell packed sequences by cu_seqlens of the whole row, "
                "and generate on one device."
            )
        if any(isinstance(block.mixer, SoftmaxAttention) for block in self.layers):
            raise ValueError("context_group with softmax attention: only the memories can be split across ranks.")

    def _keeps_memory(self, asked: bool | None, packing: Packing | None, memory: BeliefCache | None) -> bool:
        if packing is not None and (asked or memory is not None):
            raise ValueError("packed sequences with a cache: they end at different places; pass them unpacked.")
        if asked and self.training and any(block.gradient_checkpointing for block in self.layers):
            raise ValueError("use_cache with gradient checkpointing in training: leave one of them out.")
        if asked is None:
            return bool(self.config.use_cache) and not self.training and packing is None
        return asked

    def _predict(
        self, hidden: Tensor, targets: Tensor | None, keep: int | Tensor, num_items: Tensor | int | None
    ) -> tuple[Tensor | None, Tensor | None]:
        if targets is not None and targets.shape != hidden.shape[:2]:
            raise ValueError(
                f"labels have shape {tuple(targets.shape)}; expected {tuple(hidden.shape[:2])}, the tokens'."
            )
        if targets is not None and self.training and self.config.fuse_loss:
            return next_token_loss(hidden, self.lm_head, targets, self.config.vocab_size, num_items), None
        if isinstance(keep, Tensor):
            hidden = hidden[:, keep]
            targets = None if targets is None else targets[:, keep]
        elif keep:
            hidden = hidden[:, -keep:]
            targets = None if targets is None else targets[:, -keep:]
        logits = self.lm_head(hidden)
        return None if targets is None else logits_loss(logits, targets, num_items), logits

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        own = list(module.parameters(recurse=False))
        if not own or any(getattr(p, "_is_hf_initialized", False) for p in own):
            return
        if isinstance(module, Gates | ShortConvolution):
            module.reset_parameters()
        elif isinstance(module, nn.Linear | nn.Embedding):
            spread = self.config.initializer_range
            if isinstance(module, nn.Embedding) and self.config.embedding_range is not None:
                spread = self.config.embedding_range
            if spread is None:
                bound = module.weight.shape[1] ** -0.5
                nn.init.uniform_(module.weight, -bound, bound)
            else:
                nn.init.normal_(module.weight, std=spread)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        else:  # norms
            for parameter in own:
                nn.init.ones_(parameter)

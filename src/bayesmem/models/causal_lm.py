"""``BayesMemForCausalLM``: embedding, blocks, norm, head. The project's one language model."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from bayesmem.layers import LayerCache
from bayesmem.layers.gates import Gates
from bayesmem.layers.projections import ShortConvolution
from bayesmem.models.attention import SoftmaxAttention
from bayesmem.models.block import KNOWN, Block
from bayesmem.models.cache import BeliefCache
from bayesmem.models.config import BayesMemConfig
from bayesmem.models.generation import BeliefGeneration
from bayesmem.models.loading import CheckedLoading
from bayesmem.models.loss import logits_loss, next_token_loss, shifted
from bayesmem.models.norm import RMSNorm
from bayesmem.models.packing import Packing, find_packing
from bayesmem.models.step_graph import StepGraphs

# What transformers' own callers and collators hand to every model.
PASSED_ALONG = frozenset(
    {"return_dict", "shift_labels", "output_attentions", "cache_position", "token_type_ids", "seq_idx"}
    | {f"{name}_{side}" for name in ("cu_seq_lens", "max_length") for side in "qk"}
)


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

    past_key_values: BeliefCache | None = None
    predictive_var: tuple[Tensor | None, ...] | None = None
    log_evidence: tuple[Tensor | None, ...] | None = None
    innovation_var: tuple[Tensor | None, ...] | None = None
    innovation_energy: tuple[Tensor | None, ...] | None = None


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
        batch, length = x.shape[:2]
        memory = self._memory(past_key_values, batch)
        mask = _current(attention_mask, batch, length, 0 if memory is None else memory.seen_tokens)
        positions = None if memory is not None and memory.seen_tokens else position_ids
        packing = None if context_group is not None else find_packing(batch, length, cu_seqlens, positions, mask)
        use_cache = self._keeps_memory(use_cache, packing, memory)
        if memory is None and use_cache:
            memory = BeliefCache(len(self.layers))
        if output_uncertainty and not any(block.knows for block in self.layers):
            raise ValueError("output_uncertainty: no layer of this model carries a covariance; choose another design.")
        real = mask
        if packing is not None:
            x, mask, cu_seqlens = packing.row(x), None, packing.cu_seqlens
            position_ids = None if position_ids is None else packing.row(position_ids.expand(batch, length))
        streams: list[Tensor] = []
        known: list[list[Any]] = []
        plain = length == 1 and mask is None and packing is None and not (output_uncertainty or output_hidden_states)
        replayed = None
        if memory is not None and memory.seen_tokens and use_cache and plain and not self.training:
            replayed = self.steps.run(self._step, (self.layers, self.norm), x, memory.layers)
        if memory is not None and replayed is not None:
            x, memory.layers[:] = replayed
        for index, block in enumerate(() if replayed is not None else self.layers):
            streams.append(x)
            x, after, *knows = block(
                x,
                mask,
                None if memory is None else memory.layers[index],
                cu_seqlens,
                position_ids,
                use_cache=use_cache,
                output_uncertainty=output_uncertainty,
                context_group=context_group,
            )
            known.append(knows)
            if memory is not None and use_cache:
                memory.layers[index] = after
        if memory is not None and use_cache:
            memory.seen_tokens += length
        streams.append(x if replayed is not None else self.norm(x))
        if packing is not None:
            streams = [packing.batch(stream) for stream in streams]
            known = [[None if one is None else packing.batch(one) for one in layer] for layer in known]
        # Not an argument by name: the Trainer would then wait for both kinds of labels before it evaluates.
        targets = kwargs.get("shift_labels")
        if targets is None and labels is not None:
            targets = shifted(labels, real, None if packing is None else packing.starts)
        loss, logits = self._predict(streams[-1], targets, logits_to_keep, num_items_in_batch)
        out = BayesMemOutput(
            loss=loss,
            logits=logits,
            past_key_values=memory if use_cache else None,
            hidden_states=tuple(streams) if output_hidden_states else None,
            **(dict(zip(KNOWN, zip(*known, strict=True), strict=True)) if output_uncertainty else {}),
        )
        return out if kwargs.get("return_dict") is not False else out.to_tuple()

    def _step(self, x: Tensor, layers: list[LayerCache]) -> tuple[Tensor, list[LayerCache]]:
        """One token of every row, without padding: the stream after the last norm, and what is remembered."""
        afters: list[LayerCache] = []
        for block, cache in zip(self.layers, layers, strict=True):
            x, after, *_ = block(x, None, cache, use_cache=True)
            afters.append(after)
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

    def _memory(self, memory: Any, batch: int) -> BeliefCache | None:
        if memory is None:
            return None
        if not isinstance(memory, BeliefCache):
            raise ValueError(
                f"past_key_values is a {type(memory).__name__}; expected the BeliefCache that this model returned."
            )
        if len(memory.layers) != len(self.layers):
            raise ValueError(
                f"past_key_values remembers {len(memory.layers)} layers; this model has {len(self.layers)}."
            )
        if memory.batch_size not in (None, batch):
            raise ValueError(
                f"past_key_values remembers {memory.batch_size} sequences and {batch} came; go on with as many, or "
                "repeat each with past_key_values.batch_repeat_interleave(times)."
            )
        return memory

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


def _current(mask: Tensor | None, batch: int, length: int, seen: int) -> Tensor | None:
    """The mask of these tokens; ``None`` where it hides none of them."""
    if mask is None:
        return None
    if mask.shape not in ((batch, length), (batch, seen + length)):
        covers = f"[{batch}, {length}]" + (f" or, the past included, [{batch}, {seen + length}]" if seen else "")
        raise ValueError(f"attention_mask has shape {tuple(mask.shape)}; expected {covers}.")
    mask = mask[:, -length:]
    return mask if torch.compiler.is_compiling() or not bool(mask.all()) else None

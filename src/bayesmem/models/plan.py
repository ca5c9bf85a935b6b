"""What a conversion will do, before it does it: a config, and where every parameter comes from."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from bayesmem.models.causal_lm import BayesMemForCausalLM
from bayesmem.models.config import BayesMemConfig
from bayesmem.models.source import Source

# Config keys that say how a model is run, trained or stored, not what it computes.
# fmt: off
OF_NO_ACCOUNT = frozenset({
    "_model_name_or_path", "_name_or_path", "architectures", "attention_dropout", "attn_mode", "auto_map",
    "bos_token_id", "chunk_size_feed_forward", "dtype", "eos_token_id", "fuse_cross_entropy",
    "fuse_linear_cross_entropy", "fuse_norm", "fuse_swiglu", "hidden_ratio", "id2label", "initializer_range",
    "is_encoder_decoder",
    "is_llama_config", "label2id", "max_position_embeddings", "model_type", "output_attentions",
    "output_hidden_states", "pad_token_id", "pretraining_tp", "problem_type", "return_dict", "torch_dtype",
    "transformers.js_config", "transformers_version", "use_cache", "use_l2warp",
})
# fmt: on
MAY_BE_NONE = ("hidden_ratio", "num_key_value_heads", "sliding_window")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionOptions:
    """How to convert.

    Attributes:
        covariance: ``reset`` or ``full``. A delta rule's default is ``reset``, the same function; a softmax
            attention layer's is ``full``.
        retention: share of certainty ``rho^2`` that every token keeps at first, under ``full``. A delta rule's
            default is 0.05: fully shut the gate has no gradient, and a little open the function moves a
            little. A softmax attention layer's is 0.999.
        attention_every: of a softmax model, the last of every so many layers is kept as it is: 1 keeps all,
            0 none; default 4.
        ignore: keys of the source's config to leave unread.
        tokens: what the movement is measured on, ``[B, T]``, or how many random ones.
        seed: of random tokens, and of parameters that the source does not have.

    Raises:
        ValueError: an option out of its bounds.
    """

    covariance: str | None = None
    retention: float | int | None = None
    attention_every: int | None = None
    ignore: tuple[str, ...] = ()
    tokens: Int[Tensor, "B T"] | int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if self.covariance not in (None, "reset", "full"):
            raise ValueError(f"covariance is {self.covariance!r}; expected 'reset' or 'full'.")
        if self.retention is not None and not 0 < self.retention < 1:
            raise ValueError(f"retention is {self.retention}; expected a share within (0, 1), such as 0.05.")
        if self.attention_every is not None and self.attention_every < 0:
            raise ValueError(f"attention_every is {self.attention_every}; expected 0 (keep none) or more.")


@dataclass(frozen=True, slots=True)
class Move:
    """One parameter taken from the source.

    Attributes:
        source: the tensor's name there.
        change: how it is laid out anew; nothing is computed.
    """

    source: str
    change: Callable[[Tensor], Tensor] | None = None

    def of(self, source: Source) -> Tensor:
        """The parameter."""
        x = source.tensor(self.source)
        return (x if self.change is None else self.change(x)).contiguous()


@dataclass(frozen=True, slots=True)
class Plan:
    """A conversion.

    Attributes:
        config: of the model to be.
        moves: where its parameters come from, by name.
        fresh: parameters that the source does not have, and their start.
        ignored: tensors and config keys of the source that are left behind, and why.
        exact: the plan of a model with the source's own function, where this one's is another.
        notes: what else a user should know.
    """

    config: BayesMemConfig
    moves: Mapping[str, Move]
    fresh: Mapping[str, Tensor] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)
    exact: "Plan | None" = None
    notes: tuple[str, ...] = ()

    def build(self, source: Source) -> BayesMemForCausalLM:
        """The model, every parameter in the dtype that the source has it in.

        Raises:
            ValueError: a tensor is missing, left over, or of another shape than the config says.
        """
        model = on_meta(self.config)
        expected = parameters_of(model)
        self._check_names(source, expected)
        state: dict[str, Tensor] = {}
        for name, shape in expected.items():
            if name in self.fresh:
                state[name] = self.fresh[name]
                continue
            move = self.moves[name]
            state[name] = move.of(source)
            if (found := tuple(state[name].shape)) != shape:
                raise ValueError(
                    f"{move.source} has shape {source.stored[move.source].shape}, which gives {found} for {name}; the "
                    f"config says {shape}. Config and tensors are not of one checkpoint."
                )
        if self.config.tie_word_embeddings:
            self._check_tie(source)
            state["lm_head.weight"] = state["embed_tokens.weight"]
        model.load_state_dict(state, assign=True)
        model.tie_weights()
        return model.eval()

    def _check_tie(self, source: Source) -> None:
        head, embeddings = "lm_head.weight", self.moves["embed_tokens.weight"].source
        if head in source.stored and not torch.equal(source.tensor(head), source.tensor(embeddings)):
            raise ValueError(
                f"config.json ties the word embeddings, but {head} differs from {embeddings}; "
                "set tie_word_embeddings to false there, or take the tensor out."
            )

    def _check_names(self, source: Source, expected: Mapping[str, tuple[int, ...]]) -> None:
        unplanned = sorted(set(expected) - set(self.moves) - set(self.fresh))
        if unplanned:
            raise ValueError(f"no source is known for {unplanned[0]}; {self.config.mixer} cannot be converted to.")
        sources = {move.source for name, move in self.moves.items() if name in expected}
        if missing := sorted(sources - set(source.stored)):
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise ValueError(
                f"{source.folder} has no tensor {missing[0]}{more}, which its config asks for; "
                "the checkpoint is incomplete, or its config another's."
            )
        left_over = sorted(name for name in source.stored if name not in sources and name not in self.ignored)
        if left_over:
            more = f" (and {len(left_over) - 1} more)" if len(left_over) > 1 else ""
            raise ValueError(
                f"{source.folder} holds {left_over[0]}{more}, which nothing in such a model is known to read; "
                "converting without it would change what the model computes."
            )


def on_meta(config: BayesMemConfig) -> BayesMemForCausalLM:
    """A model without memory for its parameters: their names and shapes."""
    with torch.device("meta"):
        return BayesMemForCausalLM(config)


def parameters_of(model: BayesMemForCausalLM) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters, a tied one once."""
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    return {name: tuple(x.shape) for name, x in model.state_dict().items() if name not in tied}


def read_options(
    config: Mapping[str, Any],
    defaults: Mapping[str, Any],
    allowed: Mapping[str, tuple[Any, ...]],
    ignore: tuple[str, ...],
) -> tuple[dict[str, Any], dict[str, str]]:
    """The options of a source's config that say what it computes; all others must be known to be of no account.

    Args:
        config: the source's.
        defaults: options that are converted, and what they are where the config is silent.
        allowed: options that must have one of these values (the first is the default).
        ignore: keys that the user vouches for.

    Returns:
        The options, and the keys that were ignored, with the reason.

    Raises:
        ValueError: an option that cannot be converted, or a key that nobody knows.
    """
    ignored = {key: "you asked for it" for key in ignore if key in config}
    for key, values in allowed.items():
        value = config.get(key, values[0])
        if value not in values and key not in ignored:
            expected = " or ".join(repr(x) for x in values)
            raise ValueError(f"config.json: {key} is {value!r}, which cannot be converted; expected {expected}.")
    for key, value in config.items():
        if key in defaults or key in allowed or key in OF_NO_ACCOUNT or key in ignored:
            continue
        if value in (None, False):  # a switch that is off
            continue
        raise ValueError(
            f"config.json: {key} is {value!r}, an option that is not known here; if it does not change what the model "
            f"computes, say --ignore {key}."
        )
    options = {key: config.get(key, value) for key, value in defaults.items()}
    for key, value in options.items():
        if not _same_kind(key, value, defaults[key]):
            raise ValueError(f"config.json: {key} is {value!r}; expected something like {defaults[key]!r}.")
    return options, ignored


def whole(name: str, factor: float | int, size: int, heads: int) -> int:
    """``factor * size / heads``.

    Raises:
        ValueError: it is no whole number, or none above 0.
    """
    total = round(factor * size)
    if heads < 1 or not math.isclose(factor * size, total, rel_tol=1e-5) or total < 1 or total % heads:
        raise ValueError(
            f"config.json: {name} {factor} of {size} over {heads} heads is no whole number of channels; "
            "is the config that of these tensors?"
        )
    return total // heads


def _same_kind(key: str, value: object, like: object) -> bool:
    """Whether an option is of the kind that its default is; a default of ``None`` says nothing of it."""
    if like is None or (value is None and key in MAY_BE_NONE):
        return True
    if isinstance(like, float):
        return isinstance(value, float | int) and not isinstance(value, bool)
    return type(value) is type(like)

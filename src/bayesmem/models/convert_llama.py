"""Softmax models of Llama's kin: some layers kept as they are, the others a start for distillation.

Embeddings, norms and MLPs go over bit by bit, and so does the attention of the layers that are kept. A layer that
becomes a memory takes the projections to q, k, v and o (keys and values repeated where query heads share them), a
convolution that passes its input on, no output gate and no rotation; what is left between the two is for training.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bayesmem.layers import BayesianLayer, BayesianLayerConfig
from bayesmem.models.config import BayesMemConfig
from bayesmem.models.plan import ConversionOptions, Move, Plan, on_meta, parameters_of, read_options, whole
from bayesmem.models.source import Source

DEFAULTS: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "rms_norm_eps": 1e-6,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "rope_parameters": None,
    "sliding_window": None,
}
KINDS = {
    "llama": DEFAULTS,
    "mistral": DEFAULTS | {"intermediate_size": 14336, "num_key_value_heads": 8, "sliding_window": 4096},
}
ALLOWED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "rope_interleaved": (False,),
    "layer_types": (None,),
    "quantization_config": (None,),
}
DESIGNS = {"full": "bayesian", "reset": "gated_deltanet"}
RETENTION = 0.999
ATTENTION_EVERY = 4
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


def plan(source: Source, how: ConversionOptions) -> Plan:
    """How to convert a checkpoint.

    Args:
        source: of ``model_type`` ``llama`` or ``mistral``.
        how: which layers are kept, and the covariance of the others.

    Raises:
        ValueError: options that have no counterpart.
    """
    options, ignored = read_options(source.config, KINDS[source.config["model_type"]], ALLOWED, how.ignore)
    config = _config(options, how)
    layers = enumerate(config.mixer_configs())
    memories = {index: mixer for index, mixer in layers if isinstance(mixer, BayesianLayerConfig)}
    fresh: dict[str, Tensor] = {}
    for index, mixer in memories.items():
        fresh |= {f"layers.{index}.mixer.{name}": x for name, x in _start(mixer, how.seed + index).items()}
    groups = options["num_key_value_heads"] or options["num_attention_heads"]
    names = [name for name in parameters_of(on_meta(config)) if name not in fresh]
    moves = {name: _move(name, groups, options["num_attention_heads"]) for name in names}
    if config.tie_word_embeddings and "lm_head.weight" in source.stored:
        ignored["lm_head.weight"] = "it is tied to the embeddings"
    ignored |= {name: "a buffer" for name in source.stored if name.endswith("rotary_emb.inv_freq")}
    if not memories:
        return Plan(config, moves, fresh, ignored)
    note = f"layers {', '.join(map(str, memories))} are memories that were not trained yet: distil before use."
    return Plan(config, moves, fresh, ignored, plan(source, replace(how, attention_every=1)), (note,))


def _config(options: dict[str, Any], how: ConversionOptions) -> BayesMemConfig:
    heads = options["num_attention_heads"]
    key_dim = options["head_dim"] or whole("head_dim", 1, options["hidden_size"], heads)
    every = ATTENTION_EVERY if how.attention_every is None else how.attention_every
    covariance = how.covariance or "full"
    mixer = {"num_heads": heads, "head_dim": key_dim, "output_gate": "none", "design": DESIGNS[covariance]}
    if covariance == "full":
        mixer["retention_init"] = RETENTION if how.retention is None else how.retention
    attention = {
        "num_heads": heads,
        "num_kv_heads": options["num_key_value_heads"],
        "head_dim": key_dim,
        "rope": _rope(options),
        "window": options["sliding_window"],
    }
    return BayesMemConfig(
        vocab_size=options["vocab_size"],
        hidden_size=options["hidden_size"],
        num_hidden_layers=options["num_hidden_layers"],
        intermediate_size=options["intermediate_size"],
        norm_eps=options["rms_norm_eps"],
        initializer_range=options["initializer_range"],
        tie_word_embeddings=options["tie_word_embeddings"],
        mixer=mixer,
        attention=attention if every else None,
        attention_every=every,
    )


def _rope(options: dict[str, Any]) -> dict[str, Any]:
    """Rotary positions in transformers' present words; older configs keep them in two keys."""
    given = options["rope_parameters"] or {"rope_theta": options["rope_theta"]} | (options["rope_scaling"] or {})
    rope = {"rope_theta": options["rope_theta"]} | given
    rope["rope_type"] = rope.pop("type", None) or rope.get("rope_type", "default")
    if rope["rope_type"] in ("yarn", "llama3"):  # what its frequencies refer to
        rope.setdefault("original_max_position_embeddings", options["max_position_embeddings"])
    return rope


def _move(name: str, groups: int, heads: int) -> Move:
    """Where a parameter lies."""
    parts = name.split(".")
    if parts[0] == "lm_head":
        return Move(name)
    if "mixer" not in parts:
        renamed = {"mixer_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
        return Move(".".join(["model", *(renamed.get(part, part) for part in parts)]))
    theirs = f"model.layers.{parts[1]}.self_attn.{parts[-2]}.{parts[-1]}"
    if "projections" not in parts or parts[-2] == "q_proj" or groups == heads:
        return Move(theirs)
    return Move(theirs, lambda x: _for_each_query(x, groups, heads))


def _for_each_query(x: Tensor, groups: int, heads: int) -> Tensor:
    """Heads that several queries share, once for each of them."""
    if x.shape[0] % groups:
        return x  # its shape is refused, with its name
    return x.unflatten(0, (groups, -1)).repeat_interleave(heads // groups, 0).flatten(0, 1)


def _start(config: BayesianLayerConfig, seed: int) -> dict[str, Tensor]:
    """What a memory has and softmax attention has not: gates the same for all tokens, and a neutral convolution."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = BayesianLayer(config).state_dict()
    state = {name: x for name, x in state.items() if name.split(".")[-2] not in PROJECTIONS}
    for name, x in state.items():
        if name.startswith("gates.") and name.endswith("_proj.weight"):
            x.zero_()
        if name.endswith("conv1d.weight"):
            x.zero_()[:, -1] = 1
    return state

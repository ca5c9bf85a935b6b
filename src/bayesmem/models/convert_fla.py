"""Gated DeltaNet and DeltaNet of flash-linear-attention: their checkpoints as ours, and back.

The delta rule's ``beta`` is an observation noise, ``r = 1 / beta - |k|^2``, and its memory a covariance
put back to the prior at every token (docs/math.md section 1.2), so that nothing is computed anew: every
tensor goes over bit by bit. Their queries are scaled by ``K^-1/2`` and ours are not; the RMS norm behind the memory
takes the scale out again but for its epsilon, which is therefore ours times K.
"""

import math
from dataclasses import replace
from typing import Any

import torch

from bayesmem.models.config import BayesMemConfig
from bayesmem.models.plan import ConversionOptions, Move, Plan, on_meta, parameters_of, read_options, whole
from bayesmem.models.source import Source

# What decides the function, with the defaults of fla 0.6; all else of a config is of no account or refused.
SHARED: dict[str, Any] = {
    "hidden_size": 2048,
    "num_hidden_layers": 21,
    "intermediate_size": None,
    "hidden_ratio": 4,
    "norm_eps": 1e-6,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
    "use_short_conv": True,
    "conv_size": 4,
    "allow_neg_eigval": False,
    "attn": None,  # which layers are softmax attention, and of what form
    "norm_first": False,  # of old: the norms inside attn and mlp, the same function
}
GATED = SHARED | {
    "num_heads": 6,
    "num_v_heads": None,
    "head_dim": 256,
    "expand_v": 2.0,
    "use_gate": True,
    "output_gate_activation": "swish",
}
PLAIN = SHARED | {"num_hidden_layers": 24, "num_heads": 16, "expand_k": 1.0, "expand_v": 1.0, "use_gate": False}
KINDS = {"gated_deltanet": GATED, "delta_net": PLAIN}
# Options with one convertible value, the first being fla's default.
ALLOWED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("swish", "silu"),
    "attnres_block_size": (None,),
    "qk_norm": ("l2",),
    "qk_activation": ("silu",),
    "use_beta": (True,),
    "conv_bias": (False, True),  # as the tensors have it
    "use_output_norm": (True, False),  # read by no release: the output is normalised
    "use_elu": (False,),
    "share_conv_kernel": (False,),
    "use_mamba_gate": (True,),
    "use_residual": (False,),
    "quantization_config": (None,),
}
DESIGNS = {  # covariance -> model_type -> design
    "reset": {"gated_deltanet": "gated_deltanet", "delta_net": "deltanet"},
    "full": {"gated_deltanet": "bayesian", "delta_net": "bayesian_prior_mixing"},
}
RETENTION = 0.05  # rho^2 of an opened gate: at 0 its gradient would vanish (docs/math.md section 2.3)
NO_NOISE = (
    "beta goes up to 2 (allow_neg_eigval), which no observation noise gives: the mixers keep the covariance reset, "
    "and report neither variance nor evidence."
)
MIXER = ("gates", "projections", "readout")  # our submodules, which they do not have


def plan(source: Source, how: ConversionOptions) -> Plan:
    """How to convert a checkpoint.

    Args:
        source: of ``model_type`` ``gated_deltanet`` or ``delta_net``.
        how: ``covariance="reset"``, the same function, or ``full``, with a retention gate.

    Raises:
        ValueError: options that have no counterpart.
    """
    if how.attention_every is not None:
        raise ValueError(
            f"attention_every is {how.attention_every}; it says which layers of a softmax model are kept, and this "
            "model is a delta rule: leave it out."
        )
    kind = source.config["model_type"]
    covariance, retention = how.covariance or "reset", RETENTION if how.retention is None else how.retention
    options, ignored = read_options(source.config, KINDS[kind], ALLOWED, how.ignore)
    if options["allow_neg_eigval"] and covariance != "reset":
        raise ValueError(
            "allow_neg_eigval: this model's beta goes up to 2, and above 1 no positive observation noise gives it; "
            "it converts to covariance='reset' only, which keeps its function but knows no variance."
        )
    heads = options["num_heads"]
    if kind == "gated_deltanet":
        key_dim, value_heads = options["head_dim"], options["num_v_heads"] or heads
        value_dim = whole("expand_v", options["expand_v"], key_dim, 1)
    else:
        key_dim = whole("expand_k", options["expand_k"], options["hidden_size"], heads)
        value_dim, value_heads = whole("expand_v", options["expand_v"], options["hidden_size"], heads), heads
    conv_size = options["conv_size"] if options["use_short_conv"] else 0
    gate = options.get("output_gate_activation", "swish") if options["use_gate"] else "none"
    mixer = {
        "num_heads": heads,
        "head_dim": key_dim,
        "value_dim": value_dim,
        "num_value_heads": value_heads,
        "conv_size": conv_size,
        "conv_bias": bool(conv_size) and any(name.endswith("conv1d.bias") for name in source.stored),
        "output_gate": {"swish": "silu"}.get(gate, gate),
        "allow_neg_eigval": bool(options["allow_neg_eigval"]),
        "norm_eps": options["norm_eps"] * key_dim,
        "design": DESIGNS[covariance][kind],
    }
    if covariance == "full":
        mixer["retention_init"] = retention
    layer_mixers, attention = _attention(options)
    config = BayesMemConfig(
        vocab_size=options["vocab_size"],
        hidden_size=options["hidden_size"],
        num_hidden_layers=options["num_hidden_layers"],
        intermediate_size=options["intermediate_size"] or _mlp_width(options["hidden_size"], options["hidden_ratio"]),
        norm_eps=options["norm_eps"],
        initializer_range=options["initializer_range"],
        tie_word_embeddings=options["tie_word_embeddings"],
        mixer=mixer,
        layer_mixers=layer_mixers,
        attention=attention,
    )
    moves, fresh = {}, {}
    for name, shape in parameters_of(on_meta(config)).items():
        if ".gates.retention_" in name:  # one bias for all tokens to begin with
            value = math.log(retention / (1 - retention)) if name.endswith("bias") else 0.0
            fresh[name] = torch.full(shape, value)
        else:
            moves[name] = _move(name, source)
    ignored |= {n: "no release reads it" for n in source.stored if n.endswith(".attn.D")}
    if config.tie_word_embeddings and "lm_head.weight" in source.stored:
        ignored["lm_head.weight"] = "it is tied to the embeddings"
    exact = None if covariance == "reset" else plan(source, replace(how, covariance="reset"))
    return Plan(config, moves, fresh, ignored, exact, (NO_NOISE,) if options["allow_neg_eigval"] else ())


def _attention(options: dict[str, Any]) -> tuple[list[str | dict[str, Any]] | None, dict[str, Any] | None]:
    """Which layers are softmax attention, and its options."""
    given = options["attn"]
    if not given:
        return None, None
    specs = [dict(spec) for spec in ([given] if isinstance(given, dict) else given)]
    layers = sorted(index for spec in specs for index in spec.pop("layers", ()))
    count = options["num_hidden_layers"]
    if any(spec != specs[0] for spec in specs) or not set(layers) <= set(range(count)):
        raise ValueError(f"config.json: attn is {given}; expected one form of attention, in layers 0 to {count - 1}.")
    spec: dict[str, Any] = {
        "num_kv_heads": None,
        "qkv_bias": False,
        "window_size": None,
        "rope_theta": 10000.0,
    } | specs[0]
    if unknown := sorted(set(spec) - {"num_heads", "num_kv_heads", "qkv_bias", "window_size", "rope_theta"}):
        raise ValueError(f"config.json: attn has {unknown[0]!r}, an option of attention that is not known here.")
    if not isinstance(spec.get("num_heads"), int):
        raise ValueError(f"config.json: attn is {given}; expected its num_heads.")
    attention = {
        "num_heads": spec["num_heads"],
        "num_kv_heads": spec["num_kv_heads"],
        "head_dim": whole("attn.num_heads", 1, options["hidden_size"], spec["num_heads"]),
        "rope": {"rope_type": "default", "rope_theta": spec["rope_theta"]},
        "window": spec["window_size"],
        "qkv_bias": spec["qkv_bias"],
    }
    return ["attention" if index in layers else {} for index in range(count)], attention


def their_name(name: str) -> str:
    """Our parameter's name in flash-linear-attention's present layout."""
    if name == "embed_tokens.weight":
        return "model.embeddings.weight"
    if name == "lm_head.weight":
        return name
    parts = [part for part in name.split(".") if part not in MIXER]
    renamed = {"mixer": "attn", "mixer_norm": "attn_norm"}
    return ".".join(["model", *(renamed.get(part, part) for part in parts)])


def _move(name: str, source: Source) -> Move:
    """Where a parameter lies, in the present layout or an old one."""
    theirs = their_name(name)
    if theirs.endswith("conv1d.weight"):
        return Move(theirs, lambda x: x.squeeze(1))  # [C, 1, taps], as torch's convolutions have it
    for module in ("attn", "mlp"):
        inside = theirs.replace(f".{module}_norm.", f".{module}.norm.")
        if theirs not in source.stored and inside in source.stored:
            return Move(inside)
    gate = theirs.replace(".up_proj.", ".gate_proj.")
    joined = not any(stored.endswith("mlp.up_proj.weight") for stored in source.stored)
    if gate.endswith("mlp.gate_proj.weight") and joined:  # gate and up as one matrix, gate first
        half = int(theirs != gate)
        return Move(gate, lambda x: x.chunk(2)[half].clone())
    return Move(theirs)


def _mlp_width(hidden_size: int, ratio: int | None) -> int:
    """Two thirds of ``ratio * hidden_size``, rounded up to a multiple of 256."""
    return 256 * math.ceil(int(hidden_size * (ratio or 4) * 2 / 3) / 256)

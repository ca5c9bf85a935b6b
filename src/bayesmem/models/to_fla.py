"""A delta rule of ours as flash-linear-attention's Gated DeltaNet or DeltaNet: the way back of ``convert_fla``."""

import math
from typing import Any

from torch import Tensor

from bayesmem.design import ZOO
from bayesmem.layers import BayesianLayerConfig
from bayesmem.models.attention import SoftmaxAttentionConfig
from bayesmem.models.config import BayesMemConfig
from bayesmem.models.convert_fla import DESIGNS, SHARED, their_name
from bayesmem.models.plan import on_meta, parameters_of, whole
from bayesmem.models.source import Source


def back(source: Source) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """One of our checkpoints as flash-linear-attention's config and tensors, bit by bit.

    Args:
        source: of ``model_type`` ``bayesmem``, of a delta rule.

    Raises:
        ValueError: a design, or an option, that they have no counterpart for.
    """
    config = BayesMemConfig.from_dict(dict(source.config))
    layer = config.layer_config()
    kind = next((theirs for theirs, ours in DESIGNS["reset"].items() if ZOO[ours] == layer.model), None)
    if kind is None:
        raise ValueError(
            f"design {layer.model.name} has no counterpart in flash-linear-attention; only "
            f"{' and '.join(DESIGNS['reset'].values())} go back, since nothing else there is the same function."
        )
    if not math.isclose(layer.norm_eps, config.norm_eps * layer.head_dim):
        raise ValueError(
            f"the mixer's norm_eps is {layer.norm_eps} and the blocks' {config.norm_eps}; their models have one, "
            f"beneath queries scaled by K^-1/2: expected {config.norm_eps * layer.head_dim} (norm_eps times head_dim)."
        )
    theirs = _their_options(config, kind)
    model = on_meta(config)
    names = parameters_of(model)
    if missing := sorted(set(names) - set(source.stored)):
        raise ValueError(f"{source.folder} has no tensor {missing[0]}, which its config asks for.")
    if extra := sorted(set(source.stored) - set(model.state_dict())):
        raise ValueError(f"{source.folder} holds {extra[0]}, which its config has no place for.")
    state = {}
    for name, shape in names.items():
        if source.stored[name].shape != shape:
            raise ValueError(f"{name} has shape {source.stored[name].shape}; the config says {shape}.")
        x = source.tensor(name)
        state[their_name(name)] = (x.unsqueeze(1) if name.endswith("conv1d.weight") else x).contiguous()
    return theirs, state


def _their_options(config: BayesMemConfig, kind: str) -> dict[str, Any]:
    """The config that builds the same model there."""
    layer = config.layer_config()
    names = {"gated_deltanet": "GatedDeltaNetForCausalLM", "delta_net": "DeltaNetForCausalLM"}
    if not config.intermediate_size:
        raise ValueError("intermediate_size is 0: a model without MLPs has no counterpart in flash-linear-attention.")
    options: dict[str, Any] = {"model_type": kind, "architectures": [names[kind]], "attn_mode": "chunk"}
    options |= {name: getattr(config, name) for name in SHARED if hasattr(config, name)}
    options |= {
        "attn": _attention(config),
        "hidden_act": "swish",
        "num_heads": layer.num_heads,
        "use_gate": layer.output_gate != "none",
        "use_short_conv": layer.conv_size > 0,
        "conv_size": layer.conv_size or SHARED["conv_size"],
        "allow_neg_eigval": layer.allow_neg_eigval,
    }
    if layer.conv_bias:
        options["conv_bias"] = True
    key_dim, value_dim, heads = layer.head_dim, layer.value_head_dim, layer.num_heads
    if kind == "gated_deltanet":
        grouped = layer.value_heads if layer.value_heads != heads else None
        gate = {"silu": "swish", "none": "swish"}.get(layer.output_gate, layer.output_gate)
        options |= {"head_dim": key_dim, "num_v_heads": grouped, "expand_v": value_dim / key_dim}
        options["output_gate_activation"] = gate
        sizes: tuple[int, ...] = (options["head_dim"], whole("expand_v", options["expand_v"], key_dim, 1))
    else:
        if layer.value_heads != heads or layer.output_gate == "sigmoid":
            raise ValueError(
                "their DeltaNet knows no grouped value heads and no sigmoid gate; only Gated DeltaNet does."
            )
        width = config.hidden_size
        options |= {"expand_k": heads * key_dim / width, "expand_v": heads * value_dim / width, "use_beta": True}
        options |= {"qk_norm": "l2", "qk_activation": "silu"}
        sizes = tuple(whole(name, options[name], width, heads) for name in ("expand_k", "expand_v"))
    if sizes != (key_dim, value_dim):
        raise ValueError(f"head sizes {(key_dim, value_dim)} are no factors that flash-linear-attention rounds back.")
    return options


def _attention(config: BayesMemConfig) -> dict[str, Any] | None:
    """Their field ``attn``: where softmax attention stands, and its form."""
    mixers = config.mixer_configs()
    layers = [index for index, mixer in enumerate(mixers) if isinstance(mixer, SoftmaxAttentionConfig)]
    if other := [x for x in mixers if isinstance(x, BayesianLayerConfig) and x != config.layer_config()]:
        raise ValueError(
            f"layers differ ({other[0].model.name} beside {config.layer_config().model.name}); expected one."
        )
    if not layers:
        return None
    form = mixers[layers[0]]
    assert isinstance(form, SoftmaxAttentionConfig)
    rope, width = dict(form.rope), form.num_heads * form.head_dim
    if rope.pop("rope_type", "default") != "default" or set(rope) != {"rope_theta"} or form.o_bias or form.qk_norm:
        raise ValueError(
            f"attention {config.attention}: rope_type, o_bias or qk_norm that their attention does not have."
        )
    if width != config.hidden_size:
        raise ValueError(f"attention heads of {width} channels in all; theirs have hidden_size, {config.hidden_size}.")
    return {
        "layers": layers,
        "num_heads": form.num_heads,
        "num_kv_heads": form.kv_heads,
        "qkv_bias": form.qkv_bias,
        "window_size": form.window,
        "rope_theta": rope["rope_theta"],
    }

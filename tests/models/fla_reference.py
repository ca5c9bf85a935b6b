"""flash-linear-attention's two delta-rule models in plain PyTorch, from a checkpoint's config and tensors alone.

Written from fla 0.6's modelling code, its kernels replaced by its own naive references. Nothing of bayesmem is used.
"""

import json

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from peers.released import delta_rule_recurrence, naive_recurrent_gated_delta_rule

KINDS = {"gated_deltanet": ("GatedDeltaNetConfig", "GatedDeltaNetForCausalLM")}
KINDS["delta_net"] = ("DeltaNetConfig", "DeltaNetForCausalLM")
BASE = {
    "hidden_size": 24, "num_hidden_layers": 2, "intermediate_size": 40, "vocab_size": 50, "num_heads": 2,
    "norm_eps": 1e-6, "use_short_conv": True, "conv_size": 4, "allow_neg_eigval": False, "hidden_act": "swish",
    "tie_word_embeddings": False, "attn": None, "initializer_range": 0.02, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GATED = BASE | {
    "head_dim": 6,
    "num_v_heads": None,
    "expand_v": 1.0,
    "use_gate": True,
    "output_gate_activation": "swish",
}
PLAIN = BASE | {"expand_k": 0.5, "expand_v": 0.75, "use_gate": False, "qk_norm": "l2", "qk_activation": "silu"}


def configured(kind: str, **options) -> dict:
    """A config as fla's own class has it; where only fla-core is installed, as written here."""
    options = (GATED if kind == "gated_deltanet" else PLAIN) | options
    try:
        import fla.models
    except ImportError:
        return options | {"model_type": kind, "architectures": [KINDS[kind][1]]}
    made = getattr(fla.models, KINDS[kind][0])(**options).to_dict()
    return made | {"model_type": kind, "architectures": [KINDS[kind][1]]}


def sizes(config: dict) -> tuple[int, int, int, int]:
    """Heads, key dim, value heads, value dim."""
    heads = config["num_heads"]
    if config["model_type"] == "gated_deltanet":
        value_heads = config.get("num_v_heads") or heads
        return heads, config["head_dim"], value_heads, int(config["head_dim"] * config["expand_v"])
    width = config["hidden_size"]
    return heads, round(width * config["expand_k"]) // heads, heads, round(width * config["expand_v"]) // heads


def shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint in the present layout."""
    width, inner, (heads, k, value_heads, v) = config["hidden_size"], config["intermediate_size"], sizes(config)
    streams = {"q": heads * k, "k": heads * k, "v": value_heads * v}
    found = {"model.embeddings.weight": (config["vocab_size"], width), "model.norm.weight": (width,)}
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (config["vocab_size"], width)
    for index in range(config["num_hidden_layers"]):
        layer, attn = f"model.layers.{index}.", f"model.layers.{index}.attn."
        found |= {layer + "attn_norm.weight": (width,), layer + "mlp_norm.weight": (width,)}
        found |= {layer + f"mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
        found[layer + "mlp.down_proj.weight"] = (width, inner)
        if config["attn"] and index in config["attn"]["layers"]:
            kv = width // config["attn"]["num_heads"] * config["attn"]["num_kv_heads"]
            found |= {f"{attn}{n}_proj.weight": (kv if n in "kv" else width, width) for n in "qkvo"}
            if config["attn"]["qkv_bias"]:
                found |= {f"{attn}{n}_proj.bias": (kv if n in "kv" else width,) for n in "qkv"}
            continue
        found |= {f"{attn}{n}_proj.weight": (size, width) for n, size in streams.items()}
        if config["use_short_conv"]:
            found |= {f"{attn}{n}_conv1d.weight": (size, 1, config["conv_size"]) for n, size in streams.items()}
        if config["use_gate"]:
            found[attn + "g_proj.weight"] = (value_heads * v, width)
        found |= {attn + "b_proj.weight": (value_heads, width), attn + "o_norm.weight": (v,)}
        found[attn + "o_proj.weight"] = (width, value_heads * v)
        if config["model_type"] == "gated_deltanet":
            found |= {attn + "a_proj.weight": (value_heads, width)}
            found |= {attn + "A_log": (value_heads,), attn + "dt_bias": (value_heads,)}
    return found


def write(folder, kind: str = "gated_deltanet", dtype=torch.float32, **options) -> dict:
    """Write a checkpoint of random tensors, large enough that every part of the model matters."""
    config, generator = configured(kind, **options), torch.Generator().manual_seed(3)
    tensors = {}
    for name, shape in shapes(config).items():
        x = torch.randn(shape, generator=generator) * (0.3 if len(shape) > 1 else 0.5)
        tensors[name] = (1 + x if name.endswith("norm.weight") else x).to(dtype)
    store(folder, config | {"dtype": str(dtype).removeprefix("torch.")}, tensors)
    return config


def store(folder, config: dict, tensors: dict) -> None:
    """Write config and tensors as they are."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def read(folder) -> tuple[dict, dict]:
    """Config and tensors of a folder."""
    return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


def logits(folder, ids: torch.Tensor) -> torch.Tensor:
    """What fla's model computes, in float32."""
    config, tensors = read(folder)
    tensors = {name: x.float() for name, x in tensors.items()}
    x = tensors["model.embeddings.weight"][ids]
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}."
        own = {name.removeprefix(layer): w for name, w in tensors.items() if name.startswith(layer)}
        attn = {name.removeprefix("attn."): w for name, w in own.items() if name.startswith("attn.")}
        normed = rms_norm(x, own["attn_norm.weight"], config["norm_eps"])
        soft = config["attn"] and index in config["attn"]["layers"]
        x = x + (softmax_attention(normed, attn, config["attn"]) if soft else mix(normed, attn, config))
        normed = rms_norm(x, own["mlp_norm.weight"], config["norm_eps"])
        inner = F.silu(normed @ own["mlp.gate_proj.weight"].T) * (normed @ own["mlp.up_proj.weight"].T)
        x = x + inner @ own["mlp.down_proj.weight"].T
    x = rms_norm(x, tensors["model.norm.weight"], config["norm_eps"])
    return x @ tensors["model.embeddings.weight" if config["tie_word_embeddings"] else "lm_head.weight"].T


def rms_norm(x, weight, eps):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def mix(x, w, config):
    """``fla.layers.GatedDeltaNet`` and ``DeltaNet``."""
    heads, _, value_heads, _ = sizes(config)
    q, k, v = (stream(x, w, name) for name in "qkv")
    q, k = (y.unflatten(-1, (heads, -1)) for y in (q, k))
    q, k = (y * torch.rsqrt(y.square().sum(-1, keepdim=True) + 1e-6) for y in (q, k))
    q, k = (y.repeat_interleave(value_heads // heads, 2) for y in (q, k))
    v = v.unflatten(-1, (value_heads, -1))
    beta = torch.sigmoid(x @ w["b_proj.weight"].T) * (2 if config["allow_neg_eigval"] else 1)
    if config["model_type"] == "gated_deltanet":
        decay = -w["A_log"].exp() * F.softplus(x @ w["a_proj.weight"].T + w["dt_bias"])
        o, _ = naive_recurrent_gated_delta_rule(q, k, v, beta, decay)
    else:
        o, _ = delta_rule_recurrence(*(y.transpose(1, 2) for y in (q, k, v, beta)))
        o = o.transpose(1, 2)
    o = rms_norm(o, w["o_norm.weight"], config["norm_eps"])
    if config["use_gate"]:
        gate = (x @ w["g_proj.weight"].T).unflatten(-1, (value_heads, -1))
        o = o * (torch.sigmoid if config.get("output_gate_activation") == "sigmoid" else F.silu)(gate)
    return o.flatten(-2) @ w["o_proj.weight"].T


def stream(x, w, name):
    """Projection, short convolution if there is one, SiLU."""
    y = x @ w[f"{name}_proj.weight"].T
    if f"{name}_conv1d.weight" in w:
        kernel = w[f"{name}_conv1d.weight"]
        padded = F.pad(y.transpose(1, 2), (kernel.shape[-1] - 1, 0))
        y = F.conv1d(padded, kernel, w.get(f"{name}_conv1d.bias"), groups=kernel.shape[0]).transpose(1, 2)
    return F.silu(y)


def softmax_attention(x, w, spec):
    """``fla.layers.Attention``: rotary positions of channels i and i + K/2, a window of tokens, itself counted."""
    heads, groups = spec["num_heads"], spec["num_kv_heads"]
    q, k, v = (x @ w[f"{n}_proj.weight"].T + w.get(f"{n}_proj.bias", 0) for n in "qkv")
    q, k, v = q.unflatten(-1, (heads, -1)), k.unflatten(-1, (groups, -1)), v.unflatten(-1, (groups, -1))
    half, time = q.shape[-1] // 2, torch.arange(x.shape[1])
    angle = time[:, None] * spec["rope_theta"] ** (-torch.arange(half) / half)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]

    def rotated(y):
        a, b = y[..., :half], y[..., half:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    q, k, v = (y.repeat_interleave(heads // y.shape[2], 2).transpose(1, 2) for y in (rotated(q), rotated(k), v))
    apart = time[:, None] - time
    seen = (apart >= 0) & (apart < (spec["window_size"] or len(time)))
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(-2) @ w["o_proj.weight"].T

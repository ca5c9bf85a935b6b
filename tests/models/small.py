"""Small models that the tests of this folder share: pure ones and hybrids."""

import torch

from bayesmem.models import BayesMemConfig, BayesMemForCausalLM

VOCAB = 40
MIXER = {"num_heads": 2, "head_dim": 6, "num_value_heads": 4, "value_dim": 5}
ATTENTION = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 6}
PURE = {name: {"mixer": MIXER | {"design": name}} for name in ("bayesian", "gated_deltanet", "mixture")}
HYBRID = {
    "every_second": {"mixer": MIXER, "attention": ATTENTION, "attention_every": 2},
    "attention_first": {
        "mixer": MIXER,
        "attention": ATTENTION | {"window": 4, "qk_norm": True, "qkv_bias": True},
        "layer_mixers": ["attention", {"design": "kda", "conv_size": 0}],
    },
    "all_attention": {"mixer": MIXER, "attention": ATTENTION, "attention_every": 1},
}
ALL = PURE | HYBRID


def make(name: str, dtype: torch.dtype = torch.float64, **options) -> BayesMemForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "hidden_size": 24, "num_hidden_layers": 2, "intermediate_size": 32}
    config = BayesMemConfig(**sizes | {"initializer_range": 0.3} | ALL[name] | options)
    return BayesMemForCausalLM(config).to(dtype).eval()


def tokens(rows: int = 2, length: int = 13, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))

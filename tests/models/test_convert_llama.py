"""Softmax models of Llama's kin: layers that are kept compute what they did, the others are a start."""

import json

import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from bayesmem.models import BayesMemForCausalLM
from bayesmem.models.convert import convert
from bayesmem.models.plan import ConversionOptions

SIZES = {
    "hidden_size": 24, "num_hidden_layers": 4, "intermediate_size": 40, "num_attention_heads": 4, "vocab_size": 50,
    "num_key_value_heads": 2, "initializer_range": 0.3, "max_position_embeddings": 64,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3["original_max_position_embeddings"] = 16
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0}
CASES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "tied": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": True, "rms_norm_eps": 1e-3}),
    "llama3": (LlamaConfig, LlamaForCausalLM, {"rope_parameters": LLAMA3, "head_dim": 10}),
    "yarn": (LlamaConfig, LlamaForCausalLM, {"rope_parameters": YARN}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": 5}),
    "mistral-unwindowed": (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
}
each_case = pytest.mark.parametrize(("config", "model", "options"), CASES.values(), ids=CASES)


def tokens():
    return torch.randint(0, 50, (2, 21), generator=torch.Generator().manual_seed(1))


def written(folder, config=LlamaConfig, model=LlamaForCausalLM, **options):
    torch.manual_seed(0)
    made = model(config(**SIZES | options)).eval()
    made.save_pretrained(folder)
    return made


def loaded(folder):
    return BayesMemForCausalLM.from_pretrained(folder).eval()


@each_case
def test_all_layers_kept_is_the_same_function(config, model, options, tmp_path):
    source = written(tmp_path / "theirs", config, model, **options)
    done = convert(tmp_path / "theirs", tmp_path / "ours", ConversionOptions(attention_every=1))
    assert done.moved is None and not done.notes
    torch.testing.assert_close(loaded(tmp_path / "ours")(tokens()).logits, source(tokens()).logits)


def test_old_words_for_rotary_positions(tmp_path):
    """A config of transformers 4: ``rope_theta`` and ``rope_scaling`` with its ``type``."""
    source = written(tmp_path / "theirs", rope_parameters={"rope_type": "linear", "rope_theta": 300.0, "factor": 2.0})
    path = tmp_path / "theirs" / "config.json"
    config = json.loads(path.read_text())
    del config["rope_parameters"]
    path.write_text(json.dumps(config | {"rope_theta": 300.0, "rope_scaling": {"type": "linear", "factor": 2.0}}))
    convert(tmp_path / "theirs", tmp_path / "ours", ConversionOptions(attention_every=1))
    torch.testing.assert_close(loaded(tmp_path / "ours")(tokens()).logits, source(tokens()).logits)


def test_a_model_read_from_gguf(tmp_path):
    """Saved again as safetensors: its config holds the GGUF's own name, under a key of transformers' reader."""
    source = written(tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_model_name_or_path": "A 135M Name"}))
    convert(tmp_path / "theirs", tmp_path / "ours", ConversionOptions(attention_every=1))
    torch.testing.assert_close(loaded(tmp_path / "ours")(tokens()).logits, source(tokens()).logits)


def test_a_hybrid_start(tmp_path):
    source = written(tmp_path / "theirs")
    done = convert(tmp_path / "theirs", tmp_path / "ours", ConversionOptions(attention_every=2))
    assert done.design == "bayesian" and done.moved is not None and done.moved.kl > 0
    assert done.notes[0].startswith("layers 0, 2 are memories")
    model, theirs = loaded(tmp_path / "ours"), source.state_dict()
    assert model.config.attention_every == 2
    for name, parameter in model.state_dict().items():
        if ".mixer." not in name and "lm_head" not in name:
            renamed = name.replace("mixer_norm", "input_layernorm").replace("mlp_norm", "post_attention_layernorm")
            assert torch.equal(parameter, theirs[f"model.{renamed}"])
    memory, attention = model.layers[0].mixer, source.model.layers[0].self_attn
    x = torch.randn(1, 9, 24)
    q, k, v, *_ = memory.projections(x, memory.projections.new_tail(x))
    shared = F.silu(attention.v_proj(x)).unflatten(-1, (2, 6)).repeat_interleave(2, 2)
    torch.testing.assert_close(v, shared)  # the convolution passes on; heads of a group share a value
    torch.testing.assert_close(
        q, F.normalize(F.silu(attention.q_proj(x)).unflatten(-1, (4, 6)), dim=-1), atol=1e-4, rtol=0
    )
    assert torch.equal(k[:, :, 0], k[:, :, 1]) and not torch.equal(k[:, :, 1], k[:, :, 2])
    assert torch.equal(memory.readout.o_proj.weight, attention.o_proj.weight)
    loss = model(tokens(), labels=tokens()).loss
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_start_is_the_seeds(tmp_path):
    written(tmp_path / "theirs")
    options = [ConversionOptions(attention_every=0, covariance="reset", seed=seed) for seed in (1, 1, 2)]
    done = [convert(tmp_path / "theirs", tmp_path / str(i), one) for i, one in enumerate(options)]
    assert {one.design for one in done} == {"gated_deltanet"}
    a, b, c = (loaded(tmp_path / str(i)).state_dict() for i in range(3))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert {name.split(".")[-1] for name in a if not torch.equal(a[name], c[name])} == {"A_log", "dt_bias"}
    assert not torch.equal(a["layers.0.mixer.gates.A_log"], a["layers.1.mixer.gates.A_log"])

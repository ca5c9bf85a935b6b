"""Softmax attention among the mixers: it is Llama's, and what a config says of each layer is what is built."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen3Config, Qwen3ForCausalLM

from bayesmem.design import ZOO
from bayesmem.layers import BayesianLayer
from bayesmem.models import BayesMemConfig, BayesMemForCausalLM, SoftmaxAttention
from models.small import ATTENTION, HYBRID, MIXER, make, tokens

SIZES = {"vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 2, "intermediate_size": 32}
THEIRS = SIZES | {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8}
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 8}
NAMES = {"input_layernorm": "mixer_norm", "post_attention_layernorm": "mlp_norm", "self_attn": "mixer"}


def plain(theta: float, kind: str = "default", **more: float) -> dict:
    return {"rope_type": kind, "rope_theta": theta, **more}


PEERS = {
    "llama": (LlamaForCausalLM, LlamaConfig(**THEIRS, rope_parameters=plain(300.0)), {}),
    "llama3": (LlamaForCausalLM, LlamaConfig(**THEIRS, rope_parameters=LLAMA3), {}),
    "yarn": (LlamaForCausalLM, LlamaConfig(**THEIRS, rope_parameters=YARN), {}),
    "linear": (LlamaForCausalLM, LlamaConfig(**THEIRS, rope_parameters=plain(99.0, "linear", factor=3.0)), {}),
    "biased": (LlamaForCausalLM, LlamaConfig(**THEIRS, attention_bias=True), {"qkv_bias": True, "o_bias": True}),
    "mistral": (MistralForCausalLM, MistralConfig(**THEIRS, sliding_window=5), {"window": 5}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**THEIRS), {"qk_norm": True}),
}


@pytest.mark.parametrize("name", PEERS)
def test_it_computes_what_its_peers_do(name):
    """Of their weights, their logits: whole, padded on the left, and one by one."""
    kind, theirs, options = PEERS[name]
    torch.manual_seed(0)
    peer = kind(theirs).eval()
    rope = dict(theirs.rope_parameters)
    attention = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 6, "rope": rope} | options
    mine = BayesMemForCausalLM(BayesMemConfig(**SIZES, attention=attention, attention_every=1)).eval()
    weights = {}
    for key, value in peer.state_dict().items():
        parts = [NAMES.get(part, part) for part in key.removeprefix("model.").split(".")]
        weights[".".join(parts)] = value
    mine.load_state_dict(weights)
    ids = tokens()
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    kept = mask.bool()
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(mine(ids).logits, peer(ids).logits, **close)
    position = (mask.cumsum(1) - 1).clamp(min=0)
    theirs_padded = peer(ids, attention_mask=mask, position_ids=position).logits
    torch.testing.assert_close(mine(ids, attention_mask=mask).logits[kept], theirs_padded[kept], **close)
    memory, steps = None, []
    for piece in ids.split([7, 1, 4, 1], 1):
        out = mine(piece, past_key_values=memory, use_cache=True)
        memory = out.past_key_values
        steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, 1), peer(ids).logits, **close)


def test_every_layer_has_the_mixer_it_was_given():
    config = BayesMemConfig(num_hidden_layers=5, mixer=MIXER, attention=ATTENTION, attention_every=2)
    assert [type(b.mixer) for b in BayesMemForCausalLM(config).layers] == [
        BayesianLayer,
        SoftmaxAttention,
        BayesianLayer,
        SoftmaxAttention,
        BayesianLayer,
    ]
    wider = ZOO["kda"].but(name="mine")
    mixers = ["attention", "gated_deltanet", {"num_heads": 1}, {"design": wider, "head_dim": 8}]
    config = BayesMemConfig(num_hidden_layers=4, mixer=MIXER, attention=ATTENTION, layer_mixers=mixers)
    for found in (config, BayesMemConfig.from_dict(config.to_dict())):
        first, second, third, fourth = found.mixer_configs()
        assert (first.num_kv_heads, second.model.name, third.num_heads) == (2, "gated_deltanet", 1)
        assert (third.model.name, fourth.model, fourth.head_dim) == ("bayesian", wider, 8)


@pytest.mark.parametrize("name", sorted(HYBRID))
def test_generation_equals_uncached(name):
    model = make(name)
    ids = tokens()
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    made = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
    for row, start in ((0, 4), (1, 0)):
        alone = ids[row : row + 1, start:]
        for _ in range(6):
            alone = torch.cat([alone, model(alone, use_cache=False).logits[:, -1:].argmax(-1)], 1)
        assert torch.equal(made[row, start:], alone[0])


@pytest.mark.parametrize("name", sorted(HYBRID))
def test_beams_and_branches(name):
    model, ids = make(name), tokens(rows=1)
    out = model.generate(
        ids, max_new_tokens=5, num_beams=3, num_return_sequences=3, return_dict_in_generate=True, output_scores=True
    )
    log_p = model(out.sequences, use_cache=False).logits.log_softmax(-1)[:, 12:-1]
    totals = log_p.gather(-1, out.sequences[:, 13:, None])[..., 0].sum(-1)
    torch.testing.assert_close(out.sequences_scores * 5, totals.to(out.sequences_scores.dtype))
    memory = model(ids[:, :6], use_cache=True).past_key_values
    branch = memory.copy()
    model(ids[:, 6:].flip(1), past_key_values=branch, use_cache=True)
    resumed = model(ids[:, 6:], past_key_values=memory, use_cache=True).logits
    torch.testing.assert_close(resumed, model(ids).logits[:, 6:])


def test_only_layers_with_a_covariance_are_unsure():
    out = make("every_second")(tokens(), output_uncertainty=True)
    assert out.predictive_var[0].shape == (2, 13, 4) and out.predictive_var[1] is None
    with pytest.raises(ValueError, match="no layer of this model carries a covariance"):
        make("all_attention")(tokens(), output_uncertainty=True)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("name", ["bayesian", "every_second"])
def test_sampling_and_embeddings(name, use_cache):
    """The same draws with and without a cache, and from the prompt's embeddings."""
    model, ids = make(name), tokens()
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    given = {"attention_mask": mask, "do_sample": True, "max_new_tokens": 6, "num_return_sequences": 2}
    torch.manual_seed(3)
    expected = model.generate(ids, **given)[:, 13:]
    torch.manual_seed(3)
    assert torch.equal(model.generate(ids, use_cache=use_cache, **given)[:, 13:], expected)
    embeddings = model.get_input_embeddings()(ids)
    for prompt in ({}, {"input_ids": ids}):
        torch.manual_seed(3)
        made = model.generate(inputs_embeds=embeddings, **prompt, **given)
        assert torch.equal(made[:, 13 * len(prompt) :], expected)
    greedy = {"do_sample": False, "max_new_tokens": 4}
    assert torch.equal(model.generate(inputs_embeds=embeddings, **greedy), model.generate(ids, **greedy)[:, 13:])
    with pytest.raises(ValueError, match="ids of the whole sequence"):
        model.generate(inputs_embeds=embeddings, past_key_values=model(ids, use_cache=True).past_key_values, **greedy)


def test_generation_goes_on_from_a_memory():
    """A conversation: the memory of the first turn is handed to the second."""
    model, ids = make("every_second"), tokens(rows=1)
    first = model.generate(ids, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    asked = torch.cat([first.sequences, tokens(rows=1, length=3, seed=2)], 1)
    again = model.generate(asked, past_key_values=first.past_key_values, max_new_tokens=4, do_sample=False)
    assert torch.equal(again, model.generate(asked, max_new_tokens=4, do_sample=False))
    with pytest.raises(ValueError, match="whole sequence"):
        model.generate(ids[:, :2], past_key_values=first.past_key_values, max_new_tokens=1)
    with pytest.raises(ValueError, match="packed sequences"):
        model.generate(ids, cu_seqlens=torch.tensor([0, 13]), max_new_tokens=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"attention_every": 3}, "attention_every is 3; expected 0"),
        ({"attention_every": 1, "layer_mixers": ["attention"] * 2}, "both given"),
        ({"layer_mixers": ["attention"]}, "layer_mixers has 1 entries; expected 2"),
        ({"layer_mixers": ["bayesian", "x"]}, r"layer_mixers\[1\]: design is 'x'"),
        ({"layer_mixers": ["bayesian", {"heads": 2}]}, r"layer_mixers\[1\].*'heads'.*it knows"),
        ({"layer_mixers": ["bayesian", 3]}, r"layer_mixers\[1\] is 3; expected 'attention'"),
        ({"attention_every": 2, "attention": {"heads": 3}}, "attention .*'heads'.*it knows"),
        ({"attention_every": 2, "attention": {"num_heads": 4, "num_kv_heads": 3}}, "expected a multiple of num_kv_"),
        ({"attention_every": 2, "attention": {"head_dim": 7}}, "head_dim is 7.*even"),
        ({"attention_every": 2, "attention": {"window": 0}}, "window is 0"),
        ({"attention_every": 2, "attention": {"rope": plain(1.0, "dynamic")}}, "rope_type is 'dynamic'"),
        ({"attention_every": 2, "attention": {"rope": {"rope_type": "default"}}}, "positive rope_theta"),
        ({"attention_every": 2, "attention": {"rope": plain(1.0, "llama3")}}, "llama3 needs"),
        ({"attention_every": 2, "attention": {"rope": plain(1.0, partial_rotary_factor=0.5)}}, "partial_rotary"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_mixers_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        BayesMemConfig(num_hidden_layers=2, **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"labels": tokens()}, "pass shift_labels"),
        ({"use_cache": True}, "context_group with position_ids or a memory"),
        ({"position_ids": torch.arange(13)[None]}, "context_group with position_ids or a memory"),
        ({}, "context_group with softmax attention"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_a_slice_cannot_go_with_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        make("every_second")(tokens(), context_group=object(), **options)

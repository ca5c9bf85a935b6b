"""The causal language model: transformers' conventions, generation, its cache, saving."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bayesmem.design import MixtureModel
from bayesmem.models import BayesMemConfig, BayesMemForCausalLM, BeliefCache

MIXER = {"num_heads": 2, "head_dim": 6, "num_value_heads": 4, "value_dim": 5}


@pytest.fixture(params=["bayesian", "kalman_diagonal", "gated_deltanet", "mixture"])
def model(request):
    torch.manual_seed(0)
    config = BayesMemConfig(
        vocab_size=40, hidden_size=24, intermediate_size=32, mixer=MIXER | {"design": request.param}
    )
    return BayesMemForCausalLM(config).eval()


def tokens(rows=2, length=11):
    return torch.randint(0, 40, (rows, length), generator=torch.Generator().manual_seed(1))


def test_loss_is_the_shifted_cross_entropy(model):
    ids = tokens()
    out = model(ids, labels=ids)
    log_p = out.logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])
    torch.testing.assert_close(out.loss, -log_p.mean())
    shifted = torch.cat([ids[:, 1:], torch.full((2, 1), -100)], 1)
    torch.testing.assert_close(model(ids, shift_labels=shifted).loss, out.loss)


def test_bf16_weights_give_bf16_logits(model):
    ids = tokens()
    whole, out = model(ids).logits, model.bfloat16()(ids, labels=ids, output_hidden_states=True)
    assert out.logits.dtype == torch.bfloat16 and out.hidden_states[0].dtype == torch.bfloat16
    torch.testing.assert_close(out.logits.float(), whole, atol=0.05, rtol=0.05)


def test_greedy_generation_equals_uncached(model):
    ids = tokens()
    generated = model.generate(ids, max_new_tokens=8, do_sample=False)
    for _ in range(8):
        ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(generated, ids)


def test_left_padded_batches_generate_as_alone(model):
    ids = tokens()
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    generated = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
    alone = model.generate(ids[:1, 4:], max_new_tokens=6, do_sample=False)
    assert torch.equal(generated[0, 4:], alone[0])


def test_beams_reorder_the_beliefs(model):
    """Beam scores computed from the cache equal those of the whole sequences."""
    ids = tokens(rows=1)
    out = model.generate(
        ids, max_new_tokens=5, num_beams=3, num_return_sequences=3, return_dict_in_generate=True, output_scores=True
    )
    log_p = model(out.sequences, use_cache=False).logits.log_softmax(-1)[:, 10:-1]
    totals = log_p.gather(-1, out.sequences[:, 11:, None])[..., 0].sum(-1)
    torch.testing.assert_close(out.sequences_scores * 5, totals, rtol=1e-4, atol=1e-4)


def test_a_cache_branches(model):
    ids = tokens()
    cache = model(ids[:, :6], use_cache=True).past_key_values
    assert isinstance(cache, BeliefCache) and cache.get_seq_length() == 6
    branch = cache.copy()
    model(ids[:, 6:].flip(1), past_key_values=branch, use_cache=True)
    resumed = model(ids[:, 6:], past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(resumed, model(ids).logits[:, 6:], rtol=1e-4, atol=1e-5)


def test_packed_sequences_do_not_meet(model):
    ids = tokens(rows=1)
    packed = model(ids, cu_seqlens=torch.tensor([0, 4, 11])).logits
    torch.testing.assert_close(packed[:, 4:], model(ids[:, 4:]).logits, rtol=1e-4, atol=1e-5)


def test_save_and_load(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} >= {"config.json", "model.safetensors"}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert isinstance(loaded, BayesMemForCausalLM)
    assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)
    assert AutoConfig.from_pretrained(tmp_path).mixer == model.config.mixer


def test_tied_embeddings(tmp_path):
    config = BayesMemConfig(vocab_size=40, hidden_size=24, mixer=MIXER, tie_word_embeddings=True)
    model = BayesMemForCausalLM(config)
    assert model.lm_head.weight is model.embed_tokens.weight
    model.save_pretrained(tmp_path)
    loaded = BayesMemForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.embed_tokens.weight


def test_uncertainty_is_reported(model):
    out = model(tokens(), output_uncertainty=True)
    assert [v.shape for v in out.predictive_var] == [(2, 11, 4)] * 2
    assert all((v >= 0).all() and (v <= 1 + 1e-5).all() for v in out.predictive_var)
    assert [e.shape for e in out.log_evidence] == [(2, 11, 4)] * 2
    assert model(tokens()).predictive_var is None


def test_innovation_statistics_are_those_of_the_evidence(model):
    """``log p = -V/2 (log 2 pi s + e)``, s the innovation's variance, e its energy."""
    out = model(tokens(), output_uncertainty=True)
    for var, energy, evidence in zip(out.innovation_var, out.innovation_energy, out.log_evidence, strict=True):
        if isinstance(model.config.layer_config().model, MixtureModel):
            assert var is None and energy is None
            continue
        assert (var > 0).all() and (energy >= 0).all()
        torch.testing.assert_close(-0.5 * 5 * ((2 * torch.pi * var).log() + energy), evidence)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hiddensize": 3}, "unknown config keys .'hiddensize'"),
        ({"mixer": {"heads": 3}}, "'heads'.*it knows"),
        ({"mixer": {"design": "x"}}, "design is 'x'"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"intermediate_size": -1}, "intermediate_size is -1"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_configs_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        BayesMemConfig(**options)


def test_bad_inputs_are_refused(model):
    with pytest.raises(ValueError, match="from 0 to 40; expected 0 to 39"):
        model(torch.tensor([[0, 40]]))
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()

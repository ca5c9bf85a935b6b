"""How a fresh model starts, by the options of its config."""

import pytest
import torch

from bayesmem.models import BayesMemConfig, BayesMemForCausalLM


def fresh(**options):
    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "mixer": {"num_heads": 2, "head_dim": 32}}
    return BayesMemForCausalLM(BayesMemConfig(**sizes | options))


def matrices(model):
    return [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]


def test_default_is_normal_of_one_deviation():
    model = fresh()
    for weight in [model.embed_tokens.weight, *matrices(model)]:
        assert weight.std().item() == pytest.approx(0.02, rel=0.15)
        assert weight.abs().max() > 0.036  # a uniform law of this deviation ends at .035


def test_none_is_uniform_by_the_inputs():
    model = fresh(initializer_range=None, embedding_range=0.3)
    assert model.embed_tokens.weight.std().item() == pytest.approx(0.3, rel=0.05)
    for weight in matrices(model):
        bound = weight.shape[1] ** -0.5
        assert weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound * 3**-0.5, rel=0.15)


@pytest.mark.parametrize("initializer_range", [0.02, None])
def test_a_tied_head_starts_as_the_embedding(initializer_range):
    model = fresh(initializer_range=initializer_range, embedding_range=0.3, tie_word_embeddings=True)
    assert model.lm_head.weight is model.embed_tokens.weight
    assert model.lm_head.weight.std().item() == pytest.approx(0.3, rel=0.05)


def test_options_are_kept_with_the_model_and_old_configs_lack_them(tmp_path):
    model = fresh(initializer_range=None, embedding_range=0.3, tie_word_embeddings=True, mixer={"decay_init": 0.99})
    model.save_pretrained(tmp_path)
    again = BayesMemForCausalLM.from_pretrained(tmp_path)
    assert (again.config.initializer_range, again.config.embedding_range) == (None, 0.3)
    assert again.config.layer_config().decay_init == 0.99
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    old = {key: value for key, value in BayesMemConfig().to_dict().items() if key != "embedding_range"}
    assert BayesMemConfig.from_dict(old).to_dict() == BayesMemConfig().to_dict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"initializer_range": None}, "says nothing of embeddings"),
        ({"initializer_range": -0.1}, "initializer_range is -0.1"),
        ({"embedding_range": float("nan")}, "embedding_range is nan"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        BayesMemConfig(**options)

"""Delta rules of flash-linear-attention: the same function in, the same bits out."""

import json
import warnings
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file

from bayesmem.models import BayesMemForCausalLM
from bayesmem.models.convert import convert, convert_back
from bayesmem.models.plan import ConversionOptions
from models import fla_reference as reference

HYBRID = {"layers": [1], "num_heads": 4, "num_kv_heads": 2, "qkv_bias": True, "window_size": 5, "rope_theta": 500.0}
CASES = {
    "gated": ("gated_deltanet", {}),
    "gated-grouped": ("gated_deltanet", {"num_v_heads": 4, "expand_v": 1.5}),
    "gated-expand": ("gated_deltanet", {"head_dim": 5, "expand_v": 2.0, "conv_size": 3}),
    "gated-ungated": ("gated_deltanet", {"use_gate": False}),
    "gated-sigmoid": ("gated_deltanet", {"output_gate_activation": "sigmoid"}),
    "gated-flipping": ("gated_deltanet", {"allow_neg_eigval": True}),
    "gated-no-convolution": ("gated_deltanet", {"use_short_conv": False}),
    "gated-tied": ("gated_deltanet", {"tie_word_embeddings": True}),
    "gated-hybrid": ("gated_deltanet", {"attn": HYBRID}),
    "plain": ("delta_net", {}),
    "plain-gated": ("delta_net", {"use_gate": True, "expand_k": 1.0, "expand_v": 2.0}),
    "plain-flipping": ("delta_net", {"allow_neg_eigval": True}),
}
each_case = pytest.mark.parametrize(("kind", "options"), CASES.values(), ids=CASES)


def tokens(length=19):
    return torch.randint(0, 50, (2, length), generator=torch.Generator().manual_seed(1))


def loaded(folder, **options):
    return BayesMemForCausalLM.from_pretrained(folder, **options).eval()


@pytest.fixture
def theirs(tmp_path):
    reference.write(tmp_path / "theirs")
    return tmp_path / "theirs"


@each_case
def test_the_same_function_and_back_to_the_bit(kind, options, tmp_path):
    reference.write(tmp_path / "theirs", kind, **options)
    done = convert(tmp_path / "theirs", tmp_path / "ours")
    assert done.moved is None and bool(done.notes) == options.get("allow_neg_eigval", False)
    expected = reference.logits(tmp_path / "theirs", tokens())
    model = loaded(tmp_path / "ours")
    torch.testing.assert_close(model(tokens()).logits, expected, rtol=2e-5, atol=2e-5 * expected.abs().max().item())
    convert_back(tmp_path / "ours", tmp_path / "back")
    (config, before), (config_back, after) = map(reference.read, (tmp_path / "theirs", tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    told = {name: config_back[name] for name in config_back if name in config}
    assert told == {name: config[name] for name in told}
    assert torch.equal(reference.logits(tmp_path / "back", tokens()), expected)


def test_cached_generation_is_theirs(theirs, tmp_path):
    """Token by token from the cache, the choices are those of the whole sequence under fla's function."""
    convert(theirs, tmp_path / "ours")
    ids = tokens(7)[:1]
    generated = loaded(tmp_path / "ours").generate(ids, max_new_tokens=5, do_sample=False, eos_token_id=None)
    for _ in range(5):
        ids = torch.cat([ids, reference.logits(theirs, ids)[:, -1:].argmax(-1)], 1)
    assert torch.equal(generated, ids)


def test_keys_near_zero_and_betas_near_one(tmp_path):
    """Where ``|k|`` falls short of 1 by the norm's epsilon, and beta is 1 to rounding."""
    reference.write(tmp_path / "theirs")
    config, weights = reference.read(tmp_path / "theirs")
    for name, x in weights.items():
        if "k_conv1d" in name:
            x *= 1e-2
        if "b_proj" in name:
            x *= 50
    reference.store(tmp_path / "theirs", config, weights)
    convert(tmp_path / "theirs", tmp_path / "ours")
    expected = reference.logits(tmp_path / "theirs", tokens())
    torch.testing.assert_close(loaded(tmp_path / "ours")(tokens()).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", reference.KINDS)
def test_old_layouts(kind, tmp_path):
    """Norms inside attn and mlp, gate and up as one matrix, and a D that nobody reads."""
    config = reference.write(tmp_path / "theirs", kind)
    _, weights = reference.read(tmp_path / "theirs")
    old = {}
    for name, x in weights.items():
        if name.endswith("mlp.up_proj.weight"):
            continue
        if name.endswith("mlp.gate_proj.weight"):
            x = torch.cat([x, weights[name.replace("gate", "up")]])
        old[name.replace("attn_norm", "attn.norm").replace("mlp_norm", "mlp.norm")] = x
    old |= {f"model.layers.{index}.attn.D": torch.ones(2) for index in range(2)}
    reference.store(tmp_path / "old", config | {"norm_first": True}, old)
    expected = reference.logits(tmp_path / "theirs", tokens())
    done = convert(tmp_path / "old", tmp_path / "ours")
    assert set(done.ignored) == {"model.layers.0.attn.D", "model.layers.1.attn.D"}
    convert(tmp_path / "theirs", tmp_path / "same")
    a, b = load_file(tmp_path / "ours" / "model.safetensors"), load_file(tmp_path / "same" / "model.safetensors")
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    torch.testing.assert_close(loaded(tmp_path / "ours")(tokens()).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_convolution_with_bias(theirs, tmp_path):
    config, weights = reference.read(theirs)
    generator = torch.Generator().manual_seed(5)
    for name in [name for name in weights if name.endswith("conv1d.weight")]:
        weights[name.replace("weight", "bias")] = torch.randn(len(weights[name]), generator=generator)
    reference.store(theirs, config, weights)
    convert(theirs, tmp_path / "ours")
    expected = reference.logits(theirs, tokens())
    torch.testing.assert_close(loaded(tmp_path / "ours")(tokens()).logits, expected, rtol=1e-4, atol=1e-4)
    convert_back(tmp_path / "ours", tmp_path / "back")
    assert reference.read(tmp_path / "back")[1].keys() == weights.keys()


def test_sixteen_bit_weights_stay_what_they_are(tmp_path):
    reference.write(tmp_path / "theirs", dtype=torch.bfloat16)
    config, weights = reference.read(tmp_path / "theirs")
    weights = {name: x.float() if name.endswith("A_log") else x for name, x in weights.items()}
    reference.store(tmp_path / "theirs", config, weights)
    convert(tmp_path / "theirs", tmp_path / "ours")
    stored = load_file(tmp_path / "ours" / "model.safetensors")
    assert {x.dtype for name, x in stored.items() if not name.endswith("A_log")} == {torch.bfloat16}
    convert_back(tmp_path / "ours", tmp_path / "back")
    config_back, back = reference.read(tmp_path / "back")
    assert all(torch.equal(x, back[name]) and x.dtype == back[name].dtype for name, x in weights.items())
    assert config_back["dtype"] == "bfloat16"
    expected = reference.logits(tmp_path / "theirs", tokens())
    model = loaded(tmp_path / "ours", dtype=torch.float32)
    torch.testing.assert_close(model(tokens()).logits, expected, rtol=1e-4, atol=1e-4)


def test_parts_of_an_index(theirs, tmp_path):
    convert(theirs, tmp_path / "whole")
    from safetensors.torch import save_file

    _, weights = reference.read(theirs)
    (theirs / "model.safetensors").unlink()
    places = {name: f"model-{1 + index % 2}-of-2.safetensors" for index, name in enumerate(sorted(weights))}
    for place in set(places.values()):
        save_file({n: x for n, x in weights.items() if places[n] == place}, theirs / place)
    (theirs / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    convert(theirs, tmp_path / "ours")
    a, b = load_file(tmp_path / "ours" / "model.safetensors"), load_file(tmp_path / "whole" / "model.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in b)


@pytest.mark.parametrize(("kind", "design"), [("gated_deltanet", "bayesian"), ("delta_net", "bayesian_prior_mixing")])
def test_a_covariance_moves_the_function_a_little(kind, design, tmp_path):
    reference.write(tmp_path / "theirs", kind)
    wide, narrow = (
        convert(tmp_path / "theirs", tmp_path / f"ours{kept}", ConversionOptions(covariance="full", retention=kept))
        for kept in (0.05, 1e-6)
    )
    assert wide.design == design and wide.moved is not None and narrow.moved is not None
    assert wide.moved.tokens == 256 and 0 < narrow.moved.kl < 1e-3 * wide.moved.kl
    assert narrow.moved.max_logit < 0.05 * wide.moved.max_logit
    model = loaded(tmp_path / "ours0.05")
    rho2 = torch.exp(2 * model.layers[0].mixer.gates(torch.randn(1, 3, 24))["log_retention"])
    torch.testing.assert_close(rho2, torch.full_like(rho2, 0.05))
    model(tokens(), labels=tokens()).loss.backward()  # the gate is open far enough to learn
    assert model.layers[0].mixer.gates.retention_proj.weight.grad.abs().max() > 0
    assert all((var > 0).all() for var in model(tokens(), output_uncertainty=True).predictive_var)


def test_what_lies_beside_goes_along(theirs, tmp_path):
    (theirs / "tokenizer.json").write_text("{}")
    (theirs / "generation_config.json").write_text('{"eos_token_id": 7, "top_p": 0.5}')
    (theirs / "notes.txt").write_text("not ours to carry")
    convert(theirs, tmp_path / "ours")
    convert_back(tmp_path / "ours", tmp_path / "back")
    for folder in (tmp_path / "ours", tmp_path / "back"):
        assert (folder / "tokenizer.json").read_text() == "{}" and not (folder / "notes.txt").exists()
    assert loaded(tmp_path / "ours").generation_config.top_p == 0.5
    assert reference.read(tmp_path / "back")[0]["eos_token_id"] == 7


def test_special_tokens_without_a_generation_config(theirs, tmp_path):
    convert(theirs, tmp_path / "ours")
    assert loaded(tmp_path / "ours").generation_config.eos_token_id == 2


# Against flash-linear-attention's own classes -------------------------------------------------------


def their_model(config):
    models = pytest.importorskip("fla.models", reason="needs flash-linear-attention, not fla-core alone")
    options = {name: x for name, x in config.items() if name not in ("model_type", "architectures", "dtype")}
    kind, model = (getattr(models, name) for name in reference.KINDS[config["model_type"]])
    from fla.layers import attn

    with warnings.catch_warnings(), patch.object(attn, "flash_attn_func", object()):  # which is not run here
        warnings.simplefilter("ignore")  # that a short convolution should not be left out
        return model._from_config(kind(**options | {"fuse_norm": False, "fuse_swiglu": False})).eval()


@each_case
def test_the_checkpoints_here_are_theirs(kind, options, tmp_path):
    """Names and shapes that these tests write are those of fla's own model under the same config."""
    config = reference.write(tmp_path / "theirs", kind, **options)
    tied = {"lm_head.weight"} if config["tie_word_embeddings"] else set()
    found = {name: tuple(x.shape) for name, x in their_model(config).state_dict().items() if name not in tied}
    assert found == reference.shapes(config)


@pytest.mark.parametrize("name", ["gated-grouped", "gated-flipping", "plain"])
def test_their_own_model_run_by_the_interpreter(name, tmp_path, monkeypatch):
    """The logits of fla's model itself, its Triton kernels interpreted on the CPU."""
    autotuner = pytest.importorskip("triton.runtime.autotuner")
    monkeypatch.setattr(autotuner.Autotuner, "_bench", lambda *args, **options: [1.0, 1.0, 1.0])
    kind, options = CASES[name]
    sizes = {"expand_v": 1.0, "hidden_size": 32} | ({"head_dim": 16} if kind == "gated_deltanet" else {"expand_k": 1.0})
    config = reference.write(tmp_path / "theirs", kind, **options | sizes)
    model = their_model(config)
    model.load_state_dict(load_file(tmp_path / "theirs" / "model.safetensors"))
    convert(tmp_path / "theirs", tmp_path / "ours")
    with torch.no_grad():
        expected, found = model(tokens()[:1]).logits, loaded(tmp_path / "ours")(tokens()[:1]).logits
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5 * expected.abs().max().item())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", reference.KINDS)
def test_their_own_model_on_a_gpu(kind, tmp_path):
    """In bf16 we are as far from float32 as they are, and no further from them."""
    own = {"head_dim": 64, "expand_v": 1.0} if kind == "gated_deltanet" else {"expand_k": 1.0, "expand_v": 1.0}
    config = reference.write(tmp_path / "theirs", kind, **own, hidden_size=128, intermediate_size=256)
    convert(tmp_path / "theirs", tmp_path / "ours")
    ids = tokens(150).cuda()
    model = their_model(config)
    model.load_state_dict(load_file(tmp_path / "theirs" / "model.safetensors"))
    with torch.no_grad():
        exact = reference.logits(tmp_path / "theirs", ids.cpu()).cuda()
        theirs = model.to("cuda", torch.bfloat16)(ids).logits.float()
        ours = loaded(tmp_path / "ours", dtype=torch.bfloat16).cuda()(ids).logits.float()

    def apart(a, b):
        return ((a - b).square().mean() / exact.square().mean()).sqrt().item()

    assert apart(ours, exact) < 1.5 * apart(theirs, exact) + 1e-3
    assert apart(ours, theirs) < 2 * apart(theirs, exact) + 1e-3


@pytest.mark.slow
def test_the_public_shape(tmp_path):
    """358M parameters: hidden 1024, 21 layers, 4 heads of 256, expand_v 1, vocabulary 32000."""
    public = {"hidden_size": 1024, "num_hidden_layers": 21, "num_heads": 4, "head_dim": 256, "vocab_size": 32000}
    reference.write(tmp_path / "theirs", **public, intermediate_size=2816)
    done = convert(tmp_path / "theirs", tmp_path / "ours")
    assert 357e6 < done.parameters < 359e6
    expected = reference.logits(tmp_path / "theirs", tokens())
    found = loaded(tmp_path / "ours")(tokens()).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    convert_back(tmp_path / "ours", tmp_path / "back")
    (_, before), (_, after) = map(reference.read, (tmp_path / "theirs", tmp_path / "back"))
    assert all(torch.equal(before[name], after[name]) for name in before)

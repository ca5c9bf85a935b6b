"""What a conversion refuses, what it then says, and that nothing is written."""

import json

import pytest
import torch

from bayesmem.models import BayesMemConfig, BayesMemForCausalLM
from bayesmem.models.convert import convert, convert_back
from bayesmem.models.movement import compare
from bayesmem.models.plan import ConversionOptions
from models import fla_reference as reference

KEY, UP = "model.layers.1.attn.k_proj.weight", "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    reference.write(folder)
    return reference.read(folder)


@pytest.fixture
def source(tmp_path, written):
    """A folder, and the means to write it with changes."""

    def write(options=None, drop=(), **tensors):
        config, kept = written
        kept = {name: x for name, x in kept.items() if name not in drop} | tensors
        reference.store(tmp_path / "theirs", config | (options or {}), kept)
        return tmp_path / "theirs"

    write()
    return write


def refused(tmp_path, said, options=None, run=convert, path="theirs"):
    arguments = (options,) if options else ()
    with pytest.raises(ValueError, match=said):
        run(tmp_path / path, tmp_path / "ours", *arguments)
    assert not (tmp_path / "ours").exists() and not list(tmp_path.glob(".ours*"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "mamba2"}, "model_type 'mamba2'; expected one of 'gated_deltanet', 'delta_net', 'llama'"),
        ({"model_type": None}, "model_type None"),
        ({"model_type": "bayesmem"}, "ours already, and --to-fla"),
        ({"hidden_act": "powlu"}, "hidden_act is 'powlu'.*expected 'swish' or 'silu'"),
        ({"attnres_block_size": 4}, "attnres_block_size is 4"),
        ({"use_mamba_gate": False}, "use_mamba_gate is False"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is"),
        ({"sink": 3}, "sink is 3, an option that is not known here.*--ignore sink"),
        ({"output_gate_activation": "tanh"}, "output_gate is 'tanh'"),
        ({"head_dim": 8}, "attn.q_proj.weight has shape .12, 24.*config says .16, 24."),
        ({"expand_v": 0.7}, "expand_v 0.7 of 6 over 1 heads is no whole number"),
        ({"hidden_size": "24"}, "hidden_size is '24'; expected something like 2048"),
        ({"num_v_heads": 3}, "num_value_heads is 3; expected a multiple of num_heads 2"),
        ({"num_hidden_layers": 3}, "no tensor model.layers.2.attn.A_log .and 17 more."),
        ({"num_hidden_layers": 1}, "holds model.layers.1.attn.A_log .and 17 more., which nothing"),
        ({"use_gate": False}, "holds model.layers.0.attn.g_proj.weight"),
        ({"model_type": "delta_net", "qk_norm": "sum"}, "qk_norm is 'sum'"),
        ({"tie_word_embeddings": True}, "lm_head.weight differs from model.embeddings.weight"),
        ({"attn": {"layers": [2], "num_heads": 2}}, "expected one form of attention, in layers 0 to 1"),
        ({"attn": {"layers": [1], "num_heads": 2, "sinks": 1}}, "attn has 'sinks'"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_configs(tmp_path, source, changes, said):
    source(changes)
    refused(tmp_path, said)


def test_a_key_that_the_user_vouches_for(tmp_path, source):
    source({"sink": 3})
    done = convert(tmp_path / "theirs", tmp_path / "ours", ConversionOptions(ignore=("sink",)))
    assert done.ignored == {"sink": "you asked for it"}


def test_tensors(tmp_path, source, written):
    x = written[1][KEY]
    cases = [
        ({"drop": [KEY]}, f"no tensor {KEY}"),
        ({KEY: x[:5]}, f"{KEY} has shape .5, 24"),
        ({KEY: x * torch.nan}, f"{KEY} holds NaN or infinity"),
        ({KEY: x.to(torch.int8)}, f"{KEY} is I8; expected floating point"),
        ({"drop": [UP]}, f"no tensor {UP}"),
        ({"model.layers.1.attn.extra": x.clone()}, "holds model.layers.1.attn.extra, which nothing"),
    ]
    for changes, said in cases:
        source(**changes)
        refused(tmp_path, said)


def test_files(tmp_path, source):
    folder = source()
    weights, config = folder / "model.safetensors", folder / "config.json"
    whole, told = weights.read_bytes(), config.read_text()
    weights.write_bytes(whole[:-100])
    refused(tmp_path, r"ends \d+ bytes after the file does")
    weights.write_bytes(whole[:20])
    refused(tmp_path, "model.safetensors has 20 bytes")
    weights.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    refused(tmp_path, "pytorch_model.bin and no model.safetensors; only safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {KEY: "model-1.safetensors"}}))
    refused(tmp_path, f"{KEY} should be in .*model-1.safetensors, which is not there")
    config.write_text(told[:-5])
    refused(tmp_path, "config.json is not JSON")
    config.write_text("[]")
    refused(tmp_path, "config.json holds a list")
    config.unlink()
    refused(tmp_path, "has no config.json")
    refused(tmp_path, "nowhere is not a folder", path="nowhere")


def test_what_is_there_already_is_left_alone(tmp_path, source):
    source()
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "mine.txt").write_text("precious")
    for run in (convert, convert_back):
        with pytest.raises(ValueError, match="there already and not an empty folder"):
            run(tmp_path / "theirs", tmp_path / "ours")
    (tmp_path / "ours" / "mine.txt").unlink()
    convert(tmp_path / "theirs", tmp_path / "ours")  # an empty folder is taken
    assert (tmp_path / "ours" / "config.json").is_file()


def test_nothing_is_left_of_a_write_that_fails(tmp_path, source, monkeypatch):
    source()

    def full(*args, **options):
        raise OSError("No space left on device")

    monkeypatch.setattr(BayesMemForCausalLM, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        convert(tmp_path / "theirs", tmp_path / "deep" / "ours")
    assert not list((tmp_path / "deep").iterdir())


def test_options(tmp_path, source):
    source()
    refused(tmp_path, "attention_every is 2.*delta rule", ConversionOptions(attention_every=2))
    for options, said in (
        ({"covariance": "none"}, "covariance is 'none'"),
        ({"retention": 1.0}, "retention is 1.0; expected a share"),
        ({"attention_every": -1}, "attention_every is -1"),
    ):
        with pytest.raises(ValueError, match=said):
            ConversionOptions(**options)
    source({"allow_neg_eigval": True})
    refused(tmp_path, "beta goes up to 2.*covariance='reset' only", ConversionOptions(covariance="full"))


@pytest.mark.parametrize(
    ("changes", "mixer", "said"),
    [
        ({}, {"design": "bayesian"}, "design bayesian has no counterpart.*gated_deltanet and deltanet"),
        ({}, {"norm_eps": 1e-5}, "norm_eps is 1e-05 and the blocks' 1e-05.*expected 6"),
        ({"intermediate_size": 0}, {}, "a model without MLPs"),
        ({}, {"design": "deltanet", "num_value_heads": 4}, "no grouped value heads"),
        ({"layer_mixers": [{}, "kda"]}, {}, "layers differ .kda beside gated_deltanet"),
        ({"attention_every": 2, "attention": {"qk_norm": True}}, {}, "qk_norm that their attention does not have"),
    ],
)
def test_no_way_back(tmp_path, changes, mixer, said):
    mixer = {"num_heads": 2, "head_dim": 6, "norm_eps": 6e-5, "design": "gated_deltanet"} | mixer
    config = BayesMemConfig(vocab_size=50, hidden_size=24, norm_eps=1e-5, mixer=mixer, **changes)
    BayesMemForCausalLM(config).save_pretrained(tmp_path / "theirs")
    refused(tmp_path, said, run=convert_back)


def test_only_ours_goes_back(tmp_path, source):
    source()
    refused(tmp_path, "model_type 'gated_deltanet'; only a 'bayesmem' checkpoint", run=convert_back)


def test_movement():
    before = torch.tensor([[[0.0, 1.0], [2.0, 0.0]]])
    assert compare(before, before).kl == 0 and compare(before, before).same_choice == 1
    moved = compare(before, torch.tensor([[[0.0, 1.0], [2.0, 4.0]]]))
    p, q = torch.tensor([2.0, 0.0]).softmax(-1), torch.tensor([2.0, 4.0]).softmax(-1)
    assert moved.kl == pytest.approx(((p * (p / q).log()).sum() / 2).item(), rel=1e-6)
    assert (moved.tokens, moved.max_logit, moved.mean_logit, moved.same_choice) == (2, 4, 1, 0.5)

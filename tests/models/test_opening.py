"""What a distillation starts from: the teacher exactly, the control, and a student beside it."""

import pytest
import torch

from bayesmem.models import BayesMemConfig, BayesMemForCausalLM
from bayesmem.models.movement import compare
from bayesmem.models.opening import start
from bayesmem.models.plan import ConversionOptions
from models import fla_reference as reference
from models.small import MIXER, make, tokens
from models.test_convert_llama import written

NAMES = ("teacher", "student", "control")


def ours(folder, **options):
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 3, "intermediate_size": 32}
    config = BayesMemConfig(
        **sizes | {"initializer_range": 0.3, "mixer": MIXER | {"design": "gated_deltanet"}} | options
    )
    made = BayesMemForCausalLM(config).eval()
    made.save_pretrained(folder)
    return made


def logits(found):
    with torch.no_grad():
        return [found.build(name)(tokens()).logits for name in NAMES]


LAYERS = ["gated_deltanet", {"design": "kda"}, {"num_heads": 1, "num_value_heads": 2}]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tie_word_embeddings": True},
        {"layer_mixers": LAYERS},
        {"mixer": MIXER | {"design": "deltanet"}, "attention_every": 2, "attention": {"num_heads": 2, "head_dim": 4}},
    ],
    ids=("plain", "tied", "layers", "hybrid"),
)
def test_our_own_delta_rules_are_opened(tmp_path, options):
    made = ours(tmp_path, **options)
    wide = [getattr(mixer, "retention_init", None) for mixer in start(tmp_path).student.config.mixer_configs()]
    assert 0.99 in wide and set(wide) <= {0.99, 0.999, None}  # opened, not of a delta rule, softmax attention
    found = start(tmp_path, ConversionOptions(retention=0.05))
    teacher, student, control = logits(found)
    torch.testing.assert_close(teacher, made(tokens()).logits, rtol=0, atol=0)
    assert torch.equal(teacher, control) and not torch.equal(teacher, student)
    assert compare(teacher, student).kl < 0.1
    names = [getattr(mixer, "model", None) for mixer in found.student.config.mixer_configs()]
    designs = [None if one is None else one.name for one in names]
    if "layer_mixers" in options:
        assert designs == ["bayesian", "kda", "bayesian"]
    elif "attention_every" in options:
        assert designs == ["bayesian_prior_mixing", None, "bayesian_prior_mixing"]
    else:
        assert designs == ["bayesian"] * 3
    nearer = start(tmp_path, ConversionOptions(retention=1e-6)).build("student")(tokens()).logits
    torch.testing.assert_close(nearer, teacher, rtol=0, atol=1e-3)  # shut, it is the teacher


@pytest.mark.parametrize("kind", ["gated_deltanet", "delta_net"])
def test_a_checkpoint_of_fla(tmp_path, kind):
    reference.write(tmp_path / "theirs", kind)
    found = start(tmp_path / "theirs")
    assert {mixer.retention_init for mixer in found.student.config.mixer_configs()} == {0.99}
    teacher, student, control = logits(found)
    torch.testing.assert_close(teacher, reference.logits(tmp_path / "theirs", tokens()), rtol=1e-4, atol=1e-4)
    assert torch.equal(teacher, control) and compare(teacher, student).kl > 0


def test_softmax_attention_becomes_memories(tmp_path):
    made = written(tmp_path)
    teacher, student, control = logits(start(tmp_path, ConversionOptions(attention_every=0)))
    torch.testing.assert_close(teacher, made(tokens()).logits)
    assert compare(teacher, student).kl > 0.01 and not torch.equal(student, control)


def test_what_has_no_covariance_to_open_is_refused(tmp_path):
    make("bayesian", dtype=torch.float32).save_pretrained(tmp_path / "open")
    with pytest.raises(ValueError, match="has no covariance to open: expected layers of design gated_deltanet or"):
        start(tmp_path / "open")
    ours(tmp_path / "flips", mixer=MIXER | {"design": "gated_deltanet", "allow_neg_eigval": True})
    with pytest.raises(ValueError, match="its beta goes up to 2, and above 1 no positive observation noise"):
        start(tmp_path / "flips")
    reference.write(tmp_path / "theirs", allow_neg_eigval=True)
    with pytest.raises(ValueError, match="beta goes up to 2"):
        start(tmp_path / "theirs")
    written(tmp_path / "soft")
    with pytest.raises(ValueError, match="every layer stays softmax attention"):
        start(tmp_path / "soft", ConversionOptions(attention_every=1))
    config, kept = reference.read(tmp_path / "theirs")
    reference.store(tmp_path / "theirs", config | {"model_type": "mamba2"}, kept)
    with pytest.raises(ValueError, match=r"model_type 'mamba2'; a teacher is one of 'gated_deltanet'.*'bayesmem'"):
        start(tmp_path / "theirs")
    ours(tmp_path / "ours")
    with pytest.raises(ValueError, match="attention_every is 2; this model is of ours already"):
        start(tmp_path / "ours", ConversionOptions(attention_every=2))

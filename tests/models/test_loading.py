"""Saving and loading: by the Auto classes, by trust_remote_code, and what is refused, by the tensor's name."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from bayesmem.models import BayesMemForCausalLM
from bayesmem.models.checkpoint import read_checkpoint
from models.small import make, tokens

WEIGHTS = "model.safetensors"
TENSOR = "layers.0.mixer.projections.k_proj.weight"
FOREIGN = """
import sys
from transformers import AutoConfig, AutoModelForCausalLM
import torch
assert "bayesmem" not in sys.modules
path = sys.argv[1]
if sys.argv[2] == "config first":
    print(type(AutoConfig.from_pretrained(path, trust_remote_code=True)).__name__)
model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)
torch.save(model(torch.load(sys.argv[3])).logits, sys.argv[4])
model.save_pretrained(sys.argv[5])
"""


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "saved"
    make("every_second", torch.float32).save_pretrained(path)
    return path


def test_trust_remote_code_loads_it_where_nobody_imports_it(folder, tmp_path):
    """In a process of its own; what that one saves again is the same folder."""
    torch.save(tokens(), tmp_path / "ids")
    script = tmp_path / "foreign.py"
    script.write_text(FOREIGN)
    places = [str(tmp_path / name) for name in ("ids", "logits", "again")]
    environment = os.environ | {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run = [sys.executable, str(script), str(folder), "config first", *places]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["BayesMemConfig"]
    expected = make("every_second", torch.float32)(tokens()).logits
    torch.testing.assert_close(torch.load(tmp_path / "logits"), expected, rtol=1e-6, atol=1e-6)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "again").iterdir()
    }


@pytest.mark.parametrize("trusting", [None, False, True])
def test_the_package_is_used_where_it_is_imported(folder, trusting):
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trusting, dtype=torch.bfloat16)
    assert type(model) is BayesMemForCausalLM and model.dtype == torch.bfloat16


def test_parts_and_their_index_load_too(folder, tmp_path):
    model = make("every_second", torch.float32)
    model.save_pretrained(tmp_path / "parts", max_shard_size="10KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 2
    loaded = BayesMemForCausalLM.from_pretrained(tmp_path / "parts")
    assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)
    stored = read_checkpoint(tmp_path / "parts")
    assert {name: one.shape for name, one in stored.items()} == {
        name: one.shape for name, one in read_checkpoint(folder).items()
    }
    (lost,) = {one.file for name, one in stored.items() if name == TENSOR}
    lost.unlink()
    with pytest.raises(ValueError, match=rf"should be in .*{lost.name}, which is not there"):
        BayesMemForCausalLM.from_pretrained(tmp_path / "parts")


def changed(folder, change) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def cut(folder, share: float) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: int(len(whole) * share)])


def rewritten(folder, change) -> None:
    """The header changed, the values left."""
    whole = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])


def only_bin(folder) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


DAMAGE = {
    "missing": (lambda f: changed(f, lambda t: t.pop(TENSOR)), f"{TENSOR} is missing"),
    "unexpected": (lambda f: changed(f, lambda t: t.update(more=torch.ones(2))), "more is not of this model"),
    "shape": (
        lambda f: changed(f, lambda t: t.update({TENSOR: torch.ones(12, 23)})),
        rf"{TENSOR} has shape \(12, 23\), expected \(12, 24\)",
    ),
    "integers": (lambda f: changed(f, lambda t: t.update({TENSOR: t[TENSOR].long()})), f"{TENSOR} is I64"),
    "truncated": (lambda f: cut(f, 0.6), r"layers\.\d\..* ends \d+ bytes after the file"),
    "header cut": (lambda f: cut(f, 0.001), "less than its header"),
    "empty": (lambda f: (f / WEIGHTS).write_bytes(b""), "has 0 bytes"),
    "longer": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes() + b"12345"),
        "5 bytes after its last tensor",
    ),
    "no JSON": (lambda f: (f / WEIGHTS).write_bytes(b"\x02" + bytes(7) + b"{x" + bytes(9)), "not JSON"),
    "dtype": (lambda f: rewritten(f, lambda h: h[TENSOR].update(dtype="F3")), f"{TENSOR} has dtype 'F3'"),
    "size": (lambda f: rewritten(f, lambda h: h[TENSOR].update(shape=[12, 25])), f"{TENSOR} takes 1152 bytes"),
    "overlap": (
        lambda f: rewritten(f, lambda h: h[TENSOR].update(data_offsets=[0, 1152])),
        r"expected 1152|starts at byte 0",
    ),
    "other format": (only_bin, "pytorch_model.bin and no model.safetensors; only safetensors are read"),
    "nothing": (lambda f: (f / WEIGHTS).unlink(), "holds neither model.safetensors nor"),
    "bad index": (
        lambda f: ((f / WEIGHTS).unlink(), (f / f"{WEIGHTS}.index.json").write_text("[]")),
        "is no index of safetensors",
    ),
    "tied": (
        lambda f: (f / "config.json").write_text(
            (f / "config.json").read_text().replace('"tie_word_embeddings": false', '"tie_word_embeddings": true')
        ),
        "lm_head.weight is not of this model",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
@pytest.mark.parametrize("auto", [False, True])
def test_damage_is_refused_by_name(folder, what, auto):
    damage, said = DAMAGE[what]
    damage(folder)
    with pytest.raises(ValueError, match=said):
        (AutoModelForCausalLM if auto else BayesMemForCausalLM).from_pretrained(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_on_request(folder, value):
    changed(folder, lambda t: t[TENSOR].view(-1)[7:9].fill_(value))
    assert BayesMemForCausalLM.from_pretrained(folder) is not None
    with pytest.raises(ValueError, match=f"{TENSOR} holds 2 of 288 values"):
        AutoModelForCausalLM.from_pretrained(folder, check_finite_values=True)


def test_other_formats_are_refused_by_argument(folder):
    with pytest.raises(ValueError, match="only safetensors are read"):
        BayesMemForCausalLM.from_pretrained(folder, use_safetensors=False)


def test_transformers_own_ways_of_loading_stay(folder):
    model, info = BayesMemForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    config = model.config
    again = BayesMemForCausalLM.from_pretrained(folder, config=config, dtype="float64")
    assert again.dtype == torch.float64
    state = model.state_dict()
    assert BayesMemForCausalLM.from_pretrained(None, config=config, state_dict=state) is not None

"""The plug-in for Zoology: its interface, and what survives Zoology's way of starting weights."""

import re
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from bayesmem.design import ZOO
from bayesmem.layers.zoology import ZoologyMixer

PAGE = Path(__file__).parents[2] / "docs" / "zoology.md"


def start_as_zoology(module: nn.Module) -> None:
    """What Zoology does to every module of a model that it has built."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def test_it_is_the_layer():
    torch.manual_seed(0)
    mixer, x = ZoologyMixer(d_model=16, layer_idx=1, head_dim=8, design="bayesian_static"), torch.randn(2, 12, 16)
    y = mixer(x)
    assert y.shape == x.shape and torch.equal(y, mixer.layer(x).hidden_states)
    y.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mixer.parameters())


def test_its_state_counts_the_covariance_and_does_not_grow():
    assert ZoologyMixer(64).state_size(sequence_length=64) == ZoologyMixer(64).state_size(1024) == 8192
    assert ZoologyMixer(64, head_dim=96, design="deltanet").state_size() == 9216
    assert ZoologyMixer(64, num_heads=2, head_dim=32, value_dim=16).state_size() == 2 * 32 * (32 + 16)


@pytest.mark.parametrize("design", sorted(ZOO))
def test_nothing_that_gates_start_from_is_lost(design):
    mixer = ZoologyMixer(d_model=16, head_dim=8, design=design)
    linear = {f"{name}.weight" for name, m in mixer.named_modules() if isinstance(m, nn.Linear)}
    assert not any(m.bias is not None for m in mixer.modules() if isinstance(m, nn.Linear))
    before = {name: p.detach().clone() for name, p in mixer.named_parameters()}
    mixer.apply(start_as_zoology)
    changed = {name for name, p in mixer.named_parameters() if not torch.equal(p, before[name])}
    assert changed == linear
    assert not any("out_proj" in name or "fc2" in name for name in before)  # names that Zoology scales by depth


def test_options_are_strict():
    with pytest.raises(ValueError, match=r"unknown options \['l_max'\] .* num_heads, head_dim"):
        ZoologyMixer(16, l_max=64)
    with pytest.raises(ValueError, match="output_gate"):
        ZoologyMixer(16, output_gate="tanh")


def test_the_config_to_paste_names_what_there_is(monkeypatch):
    made = SimpleNamespace
    for name, classes in {
        "zoology": (), "zoology.data": (), "zoology.data.multiquery_ar": ("MQARConfig",),
        "zoology.config": ("DataConfig", "ModelConfig", "ModuleConfig", "TrainConfig"),
    }.items():  # fmt: skip
        module = ModuleType(name)
        for one in classes:
            setattr(module, one, made)
        monkeypatch.setitem(sys.modules, name, module)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    pasted: dict = {}
    exec(code, pasted)
    states = {}
    for config in pasted["configs"]:
        mixer = config.model.sequence_mixer
        path, name = mixer.name.rsplit(".", 1)
        layer = getattr(import_module(path), name)(d_model=config.model.d_model, layer_idx=0, **mixer.kwargs)
        states[config.model.name] = layer.state_size(sequence_length=1024)
    assert states == {"bayesian_static": 8192, "bayesian_forgetting": 8192, "gated_deltanet": 9216}
    assert len(pasted["configs"]) == 12
    rows = [(s.input_seq_len, s.num_kv_pairs, s.num_examples) for s in pasted["data"].train_configs]
    assert rows[0] == (64, 4, 100_000) and rows[-1] == (256, 64, 20_000)

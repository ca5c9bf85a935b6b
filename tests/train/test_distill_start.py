"""Memories in the place of softmax attention begin at its scale."""

import pytest
import torch

from bayesmem.models.opening import start
from bayesmem.models.plan import ConversionOptions
from bayesmem.train import distill
from bayesmem.train.distill_start import match_scale
from models.test_convert_llama import tokens, written
from train import small_distill


def sizes(model, layer, ids):
    """Root mean squares of what a layer's heads add to the stream, before they are summed over the heads."""
    mixer, caught = model.layers[layer].mixer, []
    o_proj = mixer.readout.o_proj if hasattr(mixer, "readout") else mixer.o_proj
    hook = o_proj.register_forward_pre_hook(lambda module, given: caught.append(given[0]))
    with torch.no_grad():
        model(ids, use_cache=False)
    hook.remove()
    return caught[0].unflatten(-1, (4, -1)).square().mean((0, 1, 3)).sqrt(), o_proj.weight.unflatten(1, (4, -1))


@pytest.mark.parametrize("name", ["student", "control"])
def test_every_head_has_the_attentions_size(name, tmp_path):
    written(tmp_path, initializer_range=0.05)  # attention adds little, a normalised memory much
    found = start(tmp_path, ConversionOptions(attention_every=2))
    student, teacher, before = found.build(name), found.build("teacher"), found.build(name)
    unscaled = distance(student, teacher)
    assert match_scale(student, teacher, tokens()) == 2
    for layer in (0, 2):
        (mine, new), (_, old) = sizes(student, layer, tokens()), sizes(before, layer, tokens())
        wanted, _ = sizes(teacher, layer, tokens())
        ratio = (new / old).mean((0, 2))
        torch.testing.assert_close(mine * ratio, wanted, rtol=1e-5, atol=0)
        torch.testing.assert_close(new, old * ratio[:, None])
    same = {key for key, x in student.state_dict().items() if torch.equal(x, before.state_dict()[key])}
    changed = {f"layers.{layer}.mixer.readout.o_proj.weight" for layer in (0, 2)}
    assert set(student.state_dict()) - same == changed
    assert distance(student, teacher) < unscaled
    assert not any(module._forward_pre_hooks for model in (student, teacher) for module in model.modules())


def distance(student, teacher):
    """Of the mixers' outputs, as the loss has it."""
    ids = tokens()
    inputs = {"input_ids": ids, "labels": ids, "shift_labels": ids}
    matching = distill.Matching(student, teacher, distill.DistillOptions(align="mixer"))
    with torch.no_grad():
        student(**matching.expecting(inputs, {"align": 1.0, "kl": 0.0, "ce": 0.0}))
    for model in (student, teacher):
        for module in model.modules():
            module._forward_hooks.clear()
    return matching.terms[0].item()


def test_a_delta_rules_memories_are_left_alone(tmp_path):
    found = start(small_distill.teacher(tmp_path), ConversionOptions())
    student, teacher, before = found.build("student"), found.build("teacher"), found.build("student")
    assert match_scale(student, teacher, tokens()) == 0
    for name, x in student.state_dict().items():
        torch.testing.assert_close(x, before.state_dict()[name], rtol=0, atol=0)

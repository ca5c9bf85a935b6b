"""Recorded steps of generation: the same tokens, caches and branches as steps that run as they are.

Without a GPU a recording is one that runs the work again and fills the same tensors, as a CUDA graph does.
"""

import copy

import pytest
import torch
from tests.models.small import make, tokens

from bayesmem.models.step_graph import PATIENCE, StepGraphs


def record_again(work):
    out = work()

    def replay():
        (x, layers), (fresh_x, fresh) = out, work()
        held = [x, *(t for layer in layers for t in layer.tensors)]
        for old, new in zip(held, [fresh_x, *(t for layer in fresh for t in layer.tensors)], strict=True):
            old.copy_(new)

    return replay, out


def on_cpu(model):
    model.steps = StepGraphs(record_again, ("cpu",))
    return model


@pytest.mark.parametrize("name", ["bayesian", "gated_deltanet", "mixture"])
def test_generation_is_the_same(name):
    ids = tokens(3, 7)
    plain = make(name).generate(ids, max_new_tokens=9, do_sample=False)
    model = on_cpu(make(name))
    assert torch.equal(model.generate(ids, max_new_tokens=9, do_sample=False), plain)
    assert model.steps.replayed == 8 - PATIENCE


def test_beams_and_other_batches_go_on():
    model, plain = on_cpu(make("bayesian")), make("bayesian")
    for rows in (3, 2, 3, 1, 2):
        ids = tokens(rows, 6, seed=rows)
        options = {"max_new_tokens": 7, "do_sample": False, "num_beams": 2}
        assert torch.equal(model.generate(ids, **options), plain.generate(ids, **options))
    assert model.steps.replayed > 10


@torch.no_grad()
def test_a_cache_stays_as_it_was_and_branches():
    model, plain = on_cpu(make("bayesian")), make("bayesian")
    ids = tokens(2, 12)
    memory = model(ids[:, :5]).past_key_values
    for t in range(5, 9):
        model(ids[:, t : t + 1], past_key_values=memory)
    branch = memory.copy()
    kept = [t.clone() for layer in memory.layers for t in layer.tensors]
    other = model((ids[:, 9:10] + 1) % 40, past_key_values=branch).logits
    for old, now in zip(kept, [t for layer in memory.layers for t in layer.tensors], strict=True):
        assert torch.equal(old, now)
    logits = model(ids[:, 9:10], past_key_values=memory).logits
    assert model.steps.replayed == 4
    torch.testing.assert_close(logits, plain(ids[:, :10]).logits[:, -1:], rtol=1e-9, atol=1e-9)
    assert not torch.equal(other, logits)


@torch.no_grad()
def test_weights_that_change_or_move_are_read_anew():
    model, plain = on_cpu(make("bayesian")), make("bayesian")
    ids = tokens(2, 14)
    model.generate(ids, max_new_tokens=6)
    for one in (model, plain):
        one.layers[0].mlp.down_proj.weight.mul_(1.5)  # in place, as an optimiser does
    assert torch.equal(model.generate(ids, max_new_tokens=6), plain.generate(ids, max_new_tokens=6))
    for one in (model, plain):
        one.layers[1].mlp.up_proj.weight = torch.nn.Parameter(one.layers[1].mlp.up_proj.weight * -2)
    assert torch.equal(model.generate(ids, max_new_tokens=6), plain.generate(ids, max_new_tokens=6))


@torch.no_grad()
def test_what_cannot_be_replayed_runs_as_it_is():
    ids = tokens(2, 9)
    model = on_cpu(make("bayesian"))
    heard = []
    handle = model.layers[0].mlp.register_forward_hook(lambda *_: heard.append(1))
    model.generate(ids, max_new_tokens=8, do_sample=False)
    assert len(heard) == 8 and model.steps.replayed == 0
    handle.remove()
    memory = model(ids).past_key_values
    for _ in range(4):
        out = model(ids[:, :1], past_key_values=memory, output_uncertainty=True)
    assert out.predictive_var is not None and model.steps.replayed == 0
    hybrid = on_cpu(make("every_second"))
    assert torch.equal(
        hybrid.generate(ids, max_new_tokens=8, do_sample=False),
        make("every_second").generate(ids, max_new_tokens=8, do_sample=False),
    )
    assert hybrid.steps.replayed == 0


@torch.no_grad()
def test_a_step_that_cannot_be_recorded_is_tried_once():
    tried = []

    def refuse(work):
        tried.append(1)
        raise RuntimeError("operation not permitted when stream is capturing")

    model = make("bayesian")
    model.steps = StepGraphs(refuse, ("cpu",))
    ids = tokens(2, 9)
    assert torch.equal(
        model.generate(ids, max_new_tokens=9, do_sample=False),
        make("bayesian").generate(ids, max_new_tokens=9, do_sample=False),
    )
    assert len(tried) == 1


def test_a_copied_model_has_recordings_of_its_own():
    model = on_cpu(make("bayesian"))
    model.generate(tokens(2, 5), max_new_tokens=6)
    other = copy.deepcopy(model)
    assert model.steps.replayed and not other.steps.replayed
    assert torch.equal(other.generate(tokens(2, 5), max_new_tokens=6), model.generate(tokens(2, 5), max_new_tokens=6))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("autocast", [False, True])
def test_on_a_gpu(autocast):
    kind = torch.float32 if autocast else torch.bfloat16
    model, plain = (make("bayesian", kind).cuda() for _ in range(2))
    plain.steps = StepGraphs(devices=())
    ids = tokens(3, 9).cuda()
    for _ in range(2):  # the second time under a new autocast: no copy of a weight may be left of the first
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast), torch.no_grad():
            options = {"max_new_tokens": 12, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
            one, two = model.generate(ids, **options), plain.generate(ids, **options)
        assert torch.equal(one.sequences, two.sequences)
        torch.testing.assert_close(torch.stack(one.logits), torch.stack(two.logits), rtol=2e-2, atol=2e-2)
    assert model.steps.replayed >= 12

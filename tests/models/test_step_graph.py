"""Recorded steps of generation: the same tokens, caches and branches as steps that run as they are.

Without a GPU a recording is one that runs the work again and fills the same tensors, as a CUDA graph does.
"""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tests.models.small import make, tokens

from bayesmem.models.step_graph import KEPT, PATIENCE, StepGraphs


def record_again(work, device):
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

    def refuse(work, device):
        tried.append(1)
        raise RuntimeError("operation not permitted when stream is capturing")

    model = make("bayesian")
    model.steps = StepGraphs(refuse, ("cpu",))
    ids = tokens(2, 9)
    with pytest.warns(UserWarning, match="without a CUDA graph.*operation not permitted"):
        generated = model.generate(ids, max_new_tokens=9, do_sample=False)
    assert torch.equal(generated, make("bayesian").generate(ids, max_new_tokens=9, do_sample=False))
    model.generate(ids[:1], max_new_tokens=9, do_sample=False)
    assert len(tried) == 1


class Scaled(torch.nn.Module):
    """As an adapter is: a switch of its own, in Python."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.on = inner, True

    def forward(self, x):
        return 3 * self.inner(x) if self.on else self.inner(x)


@torch.no_grad()
def test_modules_with_a_mind_of_their_own_are_not_recorded():
    ids = tokens(2, 9)
    model = on_cpu(make("bayesian"))
    plain = model.generate(ids, max_new_tokens=8, do_sample=False)
    model.layers[0].mlp = Scaled(model.layers[0].mlp)
    changed = model.generate(ids, max_new_tokens=8, do_sample=False)
    model.layers[0].mlp.on = False
    assert torch.equal(model.generate(ids, max_new_tokens=8, do_sample=False), plain)
    assert not torch.equal(changed, plain)
    model = on_cpu(make("bayesian"))
    inner = model.layers[0].mlp.forward
    model.layers[0].mlp.forward = lambda x: inner(x)  # as accelerate puts its hooks in between
    model.generate(ids, max_new_tokens=8, do_sample=False)
    assert model.steps.replayed == 0
    model = on_cpu(make("bayesian"))
    model.steps.enabled = False
    model.generate(ids, max_new_tokens=8, do_sample=False)
    assert model.steps.replayed == 0


def test_threads_do_not_share_what_is_replayed():
    model, plain = on_cpu(make("bayesian")), make("bayesian")
    every = [tokens(2, 7, seed=seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda ids: model.generate(ids, max_new_tokens=12, do_sample=False), every))
    for ids, found in zip(every, got, strict=True):
        assert torch.equal(found, plain.generate(ids, max_new_tokens=12, do_sample=False))


def test_few_recordings_are_kept():
    model = on_cpu(make("bayesian"))
    for rows in range(1, 8):
        model.generate(tokens(rows, 5), max_new_tokens=6, do_sample=False)
    assert len(model.steps._graphs) == KEPT


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_that_waits_for_the_gpu_leaves_sampling_as_it_was():
    model = make("bayesian", torch.float32).cuda()
    step = model._step
    model._step = lambda x, layers: _waiting(step(x, layers))
    with pytest.warns(UserWarning, match="without a CUDA graph"):
        model.generate(tokens(2, 9).cuda(), max_new_tokens=9, do_sample=False)
    torch.cuda.synchronize()
    model.generate(tokens(2, 9).cuda(), max_new_tokens=9, do_sample=True)


def _waiting(stepped):
    assert stepped[0].isfinite().all().item()
    return stepped

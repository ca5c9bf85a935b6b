"""An operator is the same called by itself and through the dispatcher, and tracers see it."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bayesmem.ops.fused.operator import Operator, operator


@operator("bayesmem_tests::scaled")
def scaled(x: torch.Tensor, weight: torch.Tensor | None, by: float) -> tuple[torch.Tensor, torch.Tensor]:
    """``by x w`` and its rows' sums."""
    y = x * by if weight is None else x * weight * by
    return y, y.sum(-1)


@scaled.register_fake
def _(x, weight, by):
    return torch.empty_like(x), x.new_empty(x.shape[:-1])


def _context(ctx, inputs, output):
    x, weight, ctx.by = inputs
    ctx.save_for_backward(x, weight)


def _gradient(ctx, dy, dsum):
    x, weight = ctx.saved_tensors
    d = (dy + dsum[..., None]) * ctx.by
    return (d, None, None) if weight is None else (d * weight, (d * x).sum(0), None)


scaled.register_autograd(_gradient, _context)


class Seen(TorchDispatchMode):
    """Notes the operators that go through the dispatcher."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def inputs():
    source = torch.Generator().manual_seed(0)
    return [torch.randn(*size, generator=source).requires_grad_() for size in ((3, 5), (5,))]


@pytest.mark.parametrize("with_weight", [True, False])
def test_by_itself_it_is_what_the_dispatcher_gives(with_weight):
    found = []
    for call in (scaled, scaled.dispatched):
        x, weight = inputs()
        y, total = call(x, weight if with_weight else None, 3.0)
        assert y.requires_grad and total.requires_grad
        (y.square().sum() + total.sum()).backward()
        found.append([y, total, x.grad] + ([weight.grad] if with_weight else []))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_eager_calls_do_not_pass_the_dispatcher_and_tracers_see_them():
    x, weight = inputs()
    with torch.no_grad():
        y, _ = scaled(x, weight, 2.0)
        assert not y.requires_grad
        with Seen() as seen:
            scaled(x, weight, 2.0)
    assert seen.names[0] == "bayesmem_tests.scaled.default"
    with torch.autograd.profiler.profile() as profile:
        scaled(*inputs(), 2.0)
    assert not any("scaled" in event.name and "bayesmem_tests" in event.name for event in profile.function_events)
    x, weight = inputs()
    graph = torch.export.export(Scaled(), (x.detach(), weight.detach())).graph
    assert any("bayesmem_tests.scaled" in str(node.target) for node in graph.nodes)


class Scaled(torch.nn.Module):
    def forward(self, x, weight):
        return scaled(x, weight, 2.0)


def test_compiled_it_is_one_graph_with_its_gradient():
    x, weight = inputs()
    y, total = torch.compile(lambda *given: scaled(*given, 2.0), fullgraph=True, backend="aot_eager")(x, weight)
    (y.sum() + total.sum()).backward()
    assert torch.allclose(x.grad, (4 * weight).expand_as(x))


@pytest.mark.parametrize("call", [scaled, scaled.dispatched], ids=["by itself", "dispatched"])
@pytest.mark.parametrize("power", [1, 2])
def test_second_derivatives_are_refused(call, power):
    """Also where what comes in depends on nothing: such a penalty would be dropped without a word."""
    x, weight = inputs()
    first = torch.autograd.grad(call(x, weight, 2.0)[0].pow(power).sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="the kernels of scaled have first derivatives only"):
        (x.sum() + first.square().sum()).backward()


class Wrapped(torch.Tensor):
    """A subclass, which has its own ways."""


def test_subclasses_meet_the_operator_wherever_they_stand(monkeypatch):
    x, weight = inputs()
    seen = []
    monkeypatch.setattr(scaled, "dispatched", lambda *args: seen.append(args))
    scaled(x, weight.detach().as_subclass(Wrapped), 2.0)
    scaled(torch.nn.Parameter(x.detach()), weight, 2.0)
    assert len(seen) == 1


def test_without_a_gradient_it_says_so():
    bare = Operator("bayesmem_tests::bare", _bare)
    assert bare(torch.ones(2)).tolist() == [2, 2]
    with pytest.raises(RuntimeError, match="_bare has no gradient of its own"):
        bare(torch.ones(2, requires_grad=True))


def _bare(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_transforms_of_torch_func_meet_the_operator():
    x, weight = (one.detach() for one in inputs())
    found = torch.func.vmap(lambda row: scaled(row, weight, 2.0)[0])(x)
    assert torch.equal(found, 2 * x * weight)

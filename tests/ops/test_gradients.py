"""Gradients in float64: of both back ends against finite differences, and of one against the other."""

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from bayesmem.ops import Backend
from ops.cases import Case, Design, assert_close, each_design, fields, label, make_case

FULL_COVARIANCE = [Design("full", noise) for noise in ("prior_mixing", "additive")]
BACKENDS = (Backend("recurrent"), Backend("chunk", 2))
TIGHT = {"atol": 1e-7, "rtol": 1e-6}


def outputs_of(case: Case, names: list[str], backend: Backend, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Every output as a function of the named tensors, over symmetric initial covariances."""
    given = dict(zip(names, tensors, strict=True))
    if "cov" in given and case.design.covariance == "full":
        given["cov"] = 0.5 * (given["cov"] + given["cov"].mT)
    return tuple(fields(case.with_(**given).run(backend)).values())


def tiny(design: Design, channels: bool) -> Case:
    return make_case(design, channels=channels, length=3, heads=1, key_dim=2, value_dim=1).leaves()


@pytest.mark.parametrize("backend", BACKENDS, ids=label)
@pytest.mark.parametrize(("design", "channels"), each_design(), ids=label)
def test_gradients_are_finite_differences(design: Design, channels: bool, backend: Backend):
    """Along random directions in all tensors at once: every gate, prior and initial belief."""
    case = tiny(design, channels)
    names = list(case.tensors)
    assert gradcheck(
        lambda *x: outputs_of(case, names, backend, *x), list(case.tensors.values()), fast_mode=True, **TIGHT
    )


@pytest.mark.parametrize("backend", BACKENDS, ids=label)
@pytest.mark.parametrize("channels", [False, True], ids=label)
@pytest.mark.parametrize("design", FULL_COVARIANCE, ids=label)
def test_every_entry_of_the_jacobian(design: Design, channels: bool, backend: Backend):
    case = tiny(design, channels)
    names = list(case.tensors)
    assert gradcheck(lambda *x: outputs_of(case, names, backend, *x), list(case.tensors.values()), **TIGHT)


def gradients(case: Case, backend: Backend) -> dict[str, Tensor]:
    """Of a random linear functional of all outputs, with respect to every tensor."""
    leaves = case.leaves()
    tensors = dict(leaves.tensors)
    rng = torch.Generator().manual_seed(1)
    outputs = outputs_of(leaves, list(tensors), backend, *tensors.values())
    loss = sum((x * torch.randn(x.shape, generator=rng, dtype=x.dtype)).sum() for x in outputs)
    # Some structures leave a gate unread; its gradient is zero.
    found = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(tensors, found, strict=True))


@pytest.mark.parametrize("size", [3, 16])
@pytest.mark.parametrize(("design", "channels"), each_design(), ids=label)
def test_gradients_of_chunk_are_those_of_the_token_loop(design: Design, channels: bool, size: int):
    case = make_case(design, channels=channels, length=11, groups=1, heads=2, value_dim=4)
    expected = gradients(case, Backend("recurrent"))
    for name, gradient in gradients(case, Backend("chunk", size)).items():
        assert_close(gradient, expected[name], 1e-9, name)


@pytest.mark.parametrize("backend", BACKENDS, ids=label)
@pytest.mark.parametrize(("design", "channels"), each_design(), ids=label)
def test_gradients_stay_finite_at_the_ends_of_the_gates(design: Design, channels: bool, backend: Backend):
    """No decay at all, a hard reset (log 0), repeated keys, a zero key and hardly any noise."""
    case = make_case(design, channels=channels, length=6)
    x = {name: tensor.clone() for name, tensor in case.tensors.items()}
    for name in {"log_decay", "log_retention", "log_discount"} & set(x):
        x[name][:, 1:3], x[name][:, 3] = 0.0, -torch.inf
    x["k"][:, 2], x["k"][:, 4] = x["k"][:, 1], 0.0
    if "obs_noise" in x:
        x["obs_noise"][:, 2] = 1e-12
    for name, gradient in gradients(case.with_(**x), backend).items():
        assert gradient.isfinite().all(), name

"""Reads through the precision by conjugate gradients, against a factorisation at every token."""

import pytest
import torch
from torch import Tensor

from bayesmem.ops import Backend, chunk, precision_solve
from bayesmem.ops.additive_write import additive_write
from bayesmem.ops.precision_pass import precision_pass
from bayesmem.ops.precision_solve import SOLVE_CHUNK, last_information, solve_precision
from ops.cases import STREAMS, Design, assert_close, assert_same, make_case

NAMES = ("q", "k", "log_discount", "floor", "obs_noise", "initial_precision")
LOG_LINEAR = Design("full", "log_linear")
WITHOUT_EVIDENCE = [(), ("predictive_var",), ("final_belief",), ("predictive_var", "final_belief")]


def make(length: int, *, key_dim: int = 6, discount: float = 0.9, least_noise: float = 0.01) -> list[Tensor]:
    """Arguments of ``solve_precision`` (by name in NAMES): half of the keys repeat, noises spread to 10."""
    rng = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    q, k = normal(2, 2, length, key_dim), normal(2, 2, length, key_dim)
    k[:, :, length // 2 :] = k[:, :, : length - length // 2] + 1e-3 * k[:, :, length // 2 :]
    log_discount = torch.rand(2, 2, length, 1, generator=rng, dtype=torch.float64) * 2 * torch.tensor(discount).log()
    noise = least_noise * (10 / least_noise) ** torch.rand(2, 2, length, generator=rng, dtype=torch.float64)
    root = normal(2, 2, key_dim, key_dim)
    start = root @ root.mT + 0.1 * torch.eye(key_dim, dtype=root.dtype)
    return [q, k, log_discount, normal(2, key_dim).exp(), noise, start]


def iterate_everywhere(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let CPUs iterate too; what is returned grows by one a call."""
    calls: list[int] = []

    def counted(*args: Tensor) -> Tensor:
        calls.append(args[0].shape[2])
        return solve_precision(*args)

    monkeypatch.setattr(chunk, "ITERATIVE_DEVICES", ("cpu", "cuda"))
    monkeypatch.setattr(chunk, "solve_precision", counted)
    return calls


def forbid_factorisation(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Tensor) -> None:
        raise AssertionError("fell back to the factorisation")

    monkeypatch.setattr(precision_solve, "precision_pass", refuse)


@pytest.mark.parametrize("discount", [0.5, 0.9, 1 - 1e-4])
@pytest.mark.parametrize("length", [1, SOLVE_CHUNK - 1, SOLVE_CHUNK, SOLVE_CHUNK + 1, 97])
def test_iteration_is_the_factorisation(length: int, discount: float, monkeypatch: pytest.MonkeyPatch):
    given = make(length, discount=discount)
    expected = precision_pass(*given)
    q, k, log_discount, floor, obs_noise, start = given
    v, info = q.flip(2), start[..., :2] @ q.new_ones(2, q.shape[-1])
    precision, last = last_information(k, v, log_discount, floor, obs_noise, start, info)
    assert_close(precision, expected.final_precision, 1e-10)
    assert_close(last, additive_write(q, k / obs_noise[..., None], v, log_discount, info)[1], 1e-10)
    forbid_factorisation(monkeypatch)
    assert_close(solve_precision(*given), expected.posterior_q, 1e-8)


def test_many_chunks_of_states(monkeypatch: pytest.MonkeyPatch):
    """More chunks than are summed at once, the last group not full."""
    given = make(9 * SOLVE_CHUNK + 5)
    expected = solve_precision(*given)
    monkeypatch.setattr(precision_solve, "STATE_CHUNK", 4)
    assert_close(solve_precision(*given), expected, 1e-8)


def test_wide_keys_and_small_noise(monkeypatch: pytest.MonkeyPatch):
    """1 / r over four decades at K = 64: far from what the diagonal would precondition."""
    given = make(200, key_dim=64, discount=0.99, least_noise=1e-3)
    expected = precision_pass(*given).posterior_q
    forbid_factorisation(monkeypatch)
    gap = (solve_precision(*given) - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert gap.max() < 1e-9


def test_hard_resets_and_silent_queries(monkeypatch: pytest.MonkeyPatch):
    given = make(40)
    given[2][:, :, [0, 7, 20]] = -60.0
    given[0][:, 0, 5:9] = 0.0
    expected = precision_pass(*given).posterior_q
    forbid_factorisation(monkeypatch)
    assert_close(solve_precision(*given), expected, 1e-8)


def gradients(function, given: list[Tensor], needed: tuple[str, ...] = NAMES) -> dict[str, Tensor]:
    leaves = {name: x.clone().requires_grad_(name in needed) for name, x in zip(NAMES, given, strict=True)}
    x = function(*leaves.values())
    weight = torch.linspace(-1, 2, x.numel(), dtype=x.dtype).reshape(x.shape)
    found = torch.autograd.grad((x * weight).sum(), [leaves[name] for name in needed])
    return {name: symmetric(x) if name == "initial_precision" else x for name, x in zip(needed, found, strict=True)}


def symmetric(x: Tensor) -> Tensor:
    """A Cholesky factor splits its gradient evenly over both halves of a matrix, a product need not."""
    return 0.5 * (x + x.mT)


@pytest.mark.parametrize("length", [SOLVE_CHUNK, 37])
def test_gradients_are_those_of_the_factorisation(length: int, monkeypatch: pytest.MonkeyPatch):
    given = make(length)
    expected = gradients(lambda *args: precision_pass(*args).posterior_q, given)
    forbid_factorisation(monkeypatch)
    found = gradients(solve_precision, given)
    for name in NAMES:
        assert_close(found[name], expected[name], 1e-7, name)


def test_gradcheck():
    given = [x[:1, :1] if x.ndim > 2 else x[:1] for x in make(SOLVE_CHUNK + 2, key_dim=2)]

    def solve(*args: Tensor) -> Tensor:
        return solve_precision(*args[:-1], symmetric(args[-1]))

    assert torch.autograd.gradcheck(solve, [x.requires_grad_() for x in given], fast_mode=True)


@pytest.mark.parametrize("needed", [("q",), ("floor",), ("k", "obs_noise")])
def test_only_the_gradients_asked_for(needed: tuple[str, ...]):
    given = make(20)
    every, some = gradients(solve_precision, given), gradients(solve_precision, given, needed)
    for name in needed:
        assert_close(some[name], every[name], 1e-12, name)


def test_what_does_not_converge_is_factorised(monkeypatch: pytest.MonkeyPatch):
    """Values to the last bit; gradients through the same solves."""
    given = make(40)
    expected = precision_pass(*given).posterior_q
    assert torch.equal(solve_precision(*given, 2), expected)
    assert not torch.equal(solve_precision(*given), expected)
    exact = gradients(lambda *args: precision_pass(*args).posterior_q, given)
    found = gradients(lambda *args: solve_precision(*args, 2), given)
    for name in NAMES:
        assert_close(found[name], exact[name], 1e-9, name)


def test_many_rows_are_solved_in_parts(monkeypatch: pytest.MonkeyPatch):
    given = make(40)
    whole = gradients(solve_precision, given)
    shapes: list[torch.Size] = []

    def seen(rhs: Tensor, *rest: Tensor) -> Tensor:
        shapes.append(rhs.shape)
        return precision_pass(rhs, *rest)

    monkeypatch.setattr(precision_solve, "MOST_NUMBERS", 40)
    parts = gradients(solve_precision, given)
    for name in NAMES:
        assert_close(parts[name], whole[name], 1e-9, name)
    monkeypatch.setattr(precision_solve, "precision_pass", seen)
    solve_precision(*given, 1)
    assert shapes == [(1, 1, 40, 6)] * 4


def test_second_derivatives_are_refused():
    q, *given = make(20)
    x = solve_precision(q.requires_grad_(), *given)
    with pytest.raises(ValueError, match="first derivatives only"):
        torch.autograd.grad(x.sum(), q, create_graph=True)


@pytest.mark.parametrize("outputs", WITHOUT_EVIDENCE)
@pytest.mark.parametrize("backend", ["chunk", "auto", Backend("chunk", 5)])
def test_filter_without_evidence(backend: str | Backend, outputs: tuple[str, ...], monkeypatch: pytest.MonkeyPatch):
    case = make_case(LOG_LINEAR, batch=2, length=37, groups=1, heads=2, key_dim=5, value_dim=3)
    expected = case.run("recurrent", outputs=outputs)
    calls = iterate_everywhere(monkeypatch)
    assert_same(case.run(backend, outputs=outputs), expected, 1e-7)
    assert calls == [37]


@pytest.mark.parametrize("output", ["log_evidence", "innovation_var", "innovation_energy"])
def test_evidence_factorises(output: str, monkeypatch: pytest.MonkeyPatch):
    case = make_case(LOG_LINEAR, length=20)
    before = case.run("chunk", outputs=(output,))
    calls = iterate_everywhere(monkeypatch)
    after = case.run("chunk", outputs=(output,))
    assert calls == []
    assert torch.equal(after.o, before.o) and torch.equal(getattr(after, output), getattr(before, output))


def test_a_cpu_factorises_and_so_does_a_discount_that_keeps_the_mean(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Tensor) -> None:
        raise AssertionError("iterated")

    monkeypatch.setattr(chunk, "solve_precision", refuse)
    make_case(LOG_LINEAR).run("chunk", outputs=())
    monkeypatch.setattr(chunk, "ITERATIVE_DEVICES", ("cpu",))
    make_case(Design("full", "discount")).run("chunk", outputs=())
    with pytest.raises(AssertionError, match="iterated"):
        make_case(LOG_LINEAR).run("chunk", outputs=())


def test_filter_gradients(monkeypatch: pytest.MonkeyPatch):
    case = make_case(LOG_LINEAR, batch=2, length=21)

    def through(backend: str) -> dict[str, Tensor]:
        leaves = case.leaves()
        out = leaves.run(backend, outputs=("predictive_var", "final_belief"))
        (out.o.square().sum() + out.predictive_var.sum() + out.final_belief.mean.sum()).backward()
        return {name: x.grad for name, x in leaves.tensors.items()}

    expected = through("recurrent")
    assert iterate_everywhere(monkeypatch) == []
    found = through("chunk")
    for name, x in expected.items():
        assert_close(*(symmetric(y) if name == "cov" else y for y in (found[name], x)), 1e-7, name)


@pytest.mark.parametrize("outputs", WITHOUT_EVIDENCE)
def test_packed_rows(outputs: tuple[str, ...], monkeypatch: pytest.MonkeyPatch):
    """Lengths of several sizes; the sequence of one token is stepped, whose innovation nobody asked for."""
    bounds = torch.tensor([0, 1, 24, 41, 60, 64])
    case = make_case(LOG_LINEAR, length=64, rows=5)
    expected = case.run("recurrent", outputs=outputs, cu_seqlens=bounds)
    calls = iterate_everywhere(monkeypatch)
    assert_same(case.run("auto", outputs=outputs, cu_seqlens=bounds), expected, 1e-7)
    assert sorted(calls) == [4, 23]


def test_without_gradients_and_under_autocast(monkeypatch: pytest.MonkeyPatch):
    """bfloat16 streams: as exact as the factorisation, in the forward and in the backward pass."""
    case = make_case(LOG_LINEAR, length=24)
    case = case.to(torch.float32)
    case = case.with_(**{name: case.tensors[name].bfloat16() for name in STREAMS})

    def run() -> tuple[Tensor, Tensor]:
        leaves = case.leaves()
        with torch.autocast("cpu", torch.bfloat16):
            out = leaves.run("chunk", outputs=("predictive_var",))
            out.predictive_var.sum().backward()
            with torch.no_grad():
                assert torch.equal(case.run("chunk", outputs=("predictive_var",)).predictive_var, out.predictive_var)
        return out.predictive_var.detach(), leaves.tensors["obs_noise"].grad

    expected = run()
    assert iterate_everywhere(monkeypatch) == []
    for found, exact in zip(run(), expected, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-7)

"""Conjugate gradients as a kernel against dense solves in float64, and the filter that takes it for 16-bit streams."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from bayesmem.ops import chunk, precision_kernel, precision_solve
from bayesmem.ops.fused import solve_chunks
from bayesmem.ops.precision_solve import solve_precision
from bayesmem.ops.triton.device import matmul_precision
from ops.cases import STREAMS, Case, Design, fields, make_case

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LOG_LINEAR = Design("full", "log_linear")
OUTPUTS = ("predictive_var", "final_belief")
OUTPUT, STREAM, GATE = 5e-3, 8e-3, 2e-2  # the table for 16 bits of test_fused.py
CHUNKS = 2


def chunks(size: int, key_dim: int, case: str) -> tuple[list[Tensor], Tensor]:
    """Arguments of ``solve_chunks`` in float32, and every token's H_t, made of them in float64."""
    rng = torch.Generator().manual_seed(size + key_dim)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    q, k = (torch.nn.functional.normalize(normal(CHUNKS, size, key_dim), dim=-1) for _ in range(2))
    discount = torch.full((CHUNKS, size), 0.9, dtype=torch.float64)
    discount[0], discount[0, size // 2 :] = 0.9999, 1.0
    noise, floor = 10 ** (2 * torch.rand(CHUNKS, size, generator=rng, dtype=torch.float64) - 2), torch.ones(key_dim)
    if case == "repeated keys":
        k, noise = k[:, :4].repeat(1, size // 4 + 1, 1)[:, :size], torch.full_like(noise, 1e-3)
        q[:, ::2] = k[:, ::2]
    if case == "floor over decades":
        floor = torch.logspace(-3, 3, key_dim)
    q[:, 2], k[:, 3] = 0.0, 0.0
    if case == "no query at all":
        q = torch.zeros_like(q)
    k = k.bfloat16().double()
    total = discount.log().cumsum(1)
    later = torch.ones(size, size, dtype=torch.bool).tril()
    weight = ((total[:, :, None] - total[:, None]).exp() / noise[:, None]).where(later, 0.0)
    before = normal(CHUNKS, 2 * key_dim, key_dim)
    start = before.mT @ before + torch.diag_embed(floor).expand(CHUNKS, -1, -1)
    refill = -torch.expm1(total)[..., None] * floor
    given = [x.float().contiguous() for x in (start, total.exp()[..., None], refill, k, weight, q)]
    s, gamma, pull, key, w, _ = (x.double() for x in given)
    dense = gamma[..., None] * s[:, None] + torch.diag_embed(pull)
    return given, dense + torch.einsum("mts,msi,msj->mtij", w, key, key)


@pytest.mark.parametrize(
    ("size", "key_dim", "case"),
    [
        *((size, key_dim, "mild") for size, key_dim in ((16, 16), (64, 20), (16, 64), (64, 64), (21, 20))),
        *((size, key_dim, "repeated keys") for size, key_dim in ((16, 16), (64, 64))),
        *((size, key_dim, "floor over decades") for size, key_dim in ((16, 16), (16, 64))),
        (16, 20, "no query at all"),
    ],
)
def test_kernel_solves(size: int, key_dim: int, case: str):
    given, dense = chunks(size, key_dim, case)
    rhs = given[-1].double()
    x, residual, iterations = (y.cpu() for y in solve_chunks(*(y.to(DEVICE) for y in given), 4 * key_dim))
    exact = torch.linalg.solve(dense, rhs)
    left = rhs - (dense @ x.double()[..., None])[..., 0]
    norm = rhs.norm(dim=-1).clamp(min=1e-30)
    torch.testing.assert_close(residual.double(), left.norm(dim=-1) / norm, rtol=1.0, atol=1e-4)
    hard = case == "repeated keys"
    assert residual.max() < (3e-3 if hard else 3e-4)
    assert (x - exact).norm() <= (1e-2 if hard else 3e-4) * exact.norm()
    assert (x[:, 2] == 0).all() and (residual[:, 2] == 0).all()
    if case == "no query at all":
        assert (iterations == 0).all()


def test_right_sides_of_any_size():
    given, _ = chunks(16, 16, "mild")
    x, *_ = solve_chunks(*(y.to(DEVICE) for y in given), 64)
    sizes = torch.tensor([1e-30, 1e30]).repeat(8)[:, None]
    scaled, residual, _ = solve_chunks(*(y.to(DEVICE) for y in (*given[:-1], given[-1] * sizes)), 64)
    assert residual.max() < 1e-4
    torch.testing.assert_close(scaled / sizes.to(DEVICE), x, rtol=1e-5, atol=1e-7)


def test_what_float32_leaves_is_solved_for_in_turn(monkeypatch: pytest.MonkeyPatch):
    given, dense = chunks(64, 64, "repeated keys")
    dense, (start, since, refill, k, weight, rhs) = dense.to(DEVICE), (y.to(DEVICE) for y in given)
    seen = []

    def times(x: Tensor) -> Tensor:
        seen.append(x)
        return (dense @ x[..., None])[..., 0]

    def solve() -> Tensor | None:
        return precision_kernel.kernel_solve(start, since, refill, k, weight, rhs, 256, times)

    monkeypatch.setattr(precision_kernel, "BOUND", 1e-6)
    x = solve()
    assert x is not None and x.dtype == torch.float64 and 2 <= len(seen) <= 4
    assert ((rhs - times(x)).norm(dim=-1) <= 1e-6 * rhs.norm(dim=-1)).all()
    assert (x - torch.linalg.solve(dense, rhs.double())).norm() <= 1e-5 * x.norm()
    monkeypatch.setattr(precision_kernel, "REFINEMENTS", 0)
    assert solve() is None


def test_at_the_limit_the_residual_says_so():
    given, _ = chunks(16, 16, "mild")
    _, residual, iterations = solve_chunks(*(y.to(DEVICE) for y in given), 1)
    assert (iterations == 1).all() and residual.max() > 1e-2
    poisoned = given[-1].clone()
    poisoned[1, 5, 3] = torch.nan
    _, residual, _ = solve_chunks(*(y.to(DEVICE) for y in (*given[:-1], poisoned)), 64)
    assert residual[1, 5].isnan() and residual[0].max() < 1e-4


def with_kernel(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Let this device take the kernel; what is returned says of every solve whether it was believed."""
    believed: list[bool] = []
    solve = precision_solve.kernel_solve

    def seen(*args):
        found = solve(*args)
        believed.append(found is not None)
        return found

    monkeypatch.setattr(precision_solve, "kernel_solve", seen)
    monkeypatch.setattr(precision_kernel, "DEVICES", (DEVICE.type,))
    monkeypatch.setattr(chunk, "ITERATIVE_DEVICES", (DEVICE.type,))
    return believed


def prepared(dtype: torch.dtype, **sizes) -> Case:
    """Unit keys and streams of ``dtype``, all else float32."""
    case = make_case(LOG_LINEAR, **sizes)
    x = {name: y.float() for name, y in case.tensors.items()}
    x |= {name: torch.nn.functional.normalize(x[name], dim=-1) for name in ("q", "k")}
    x = {name: y.to(DEVICE, dtype if name in STREAMS else torch.float32) for name, y in x.items()}
    return case.with_(**x)


def run(case: Case, backend: str, outputs=OUTPUTS, cu_seqlens=None, autocast=False) -> tuple[dict, dict]:
    """Outputs, and gradients of a random functional of them all."""
    leaves = case.leaves()
    given = dict(leaves.tensors)
    given["cov"] = 0.5 * (given["cov"] + given["cov"].mT)
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=autocast):
        out = fields(leaves.with_(**given).run(backend, outputs=outputs, cu_seqlens=cu_seqlens))
        source = torch.Generator().manual_seed(1)
        loss = sum((x.double() * torch.randn(x.shape, generator=source).to(DEVICE)).sum() for x in out.values())
        found = torch.autograd.grad(loss, list(leaves.tensors.values()), allow_unused=True, materialize_grads=True)
    return out, dict(zip(leaves.tensors, found, strict=True))


def assert_filters(case: Case, **options) -> None:
    out, gradients = run(case, "chunk", **options)
    options.pop("autocast", None)
    exact, slopes = run(case.to(torch.float64), "recurrent", **options)
    assert out.keys() == exact.keys()
    pairs = {name: (out[name], x, OUTPUT) for name, x in exact.items()}
    pairs |= {
        f"d {n}": (gradients[n], x, STREAM if n in (*STREAMS, "mean", "cov") else GATE) for n, x in slopes.items()
    }
    errors = {
        n: (((x.double() - y).norm() / y.norm().clamp(min=1e-12)).item(), most) for n, (x, y, most) in pairs.items()
    }
    failed = {name: pair for name, pair in errors.items() if not pair[0] <= pair[1]}
    assert not failed, failed


@pytest.mark.parametrize(
    ("dtype", "outputs"), [(torch.bfloat16, OUTPUTS), (torch.bfloat16, ()), (torch.float16, ("predictive_var",))]
)
def test_filter(dtype: torch.dtype, outputs: tuple[str, ...], monkeypatch: pytest.MonkeyPatch):
    believed = with_kernel(monkeypatch)
    case = prepared(dtype, length=37, key_dim=20, value_dim=9)
    assert_filters(case, outputs=outputs, autocast=dtype == torch.bfloat16)
    assert believed == [True, True]


def test_repeated_keys_small_noise_and_hard_resets(monkeypatch: pytest.MonkeyPatch):
    believed = with_kernel(monkeypatch)
    case = prepared(torch.bfloat16, length=40, heads=1, key_dim=16)
    x = {name: y.clone() for name, y in case.tensors.items()}
    x["k"][:, 4:] = x["k"][:, :4].repeat(1, 9, 1, 1)
    x["obs_noise"] *= 1e-2
    x["log_decay"] *= 1e-3
    x["log_decay"][:, 25] = -torch.inf
    assert_filters(case.with_(**x))
    assert believed == [True, True]


def test_packed_sequences(monkeypatch: pytest.MonkeyPatch):
    believed = with_kernel(monkeypatch)
    bounds = torch.tensor([0, 1, 17, 20], device=DEVICE)
    case = prepared(torch.bfloat16, length=20, rows=3, key_dim=5)
    assert_filters(case, cu_seqlens=bounds)
    assert believed and all(believed)


@pytest.mark.parametrize("outputs", [(), OUTPUTS])
def test_what_is_not_believed_is_solved_in_float64(outputs: tuple[str, ...], monkeypatch: pytest.MonkeyPatch):
    """All that follows is then in float64 too: to the last bit what it is without the kernel."""
    case = prepared(torch.bfloat16, batch=2, length=37, key_dim=5)
    monkeypatch.setattr(chunk, "ITERATIVE_DEVICES", (DEVICE.type,))
    monkeypatch.setattr(precision_kernel, "DEVICES", ())
    expected = run(case, "chunk", outputs)
    believed = with_kernel(monkeypatch)
    monkeypatch.setattr(precision_kernel, "BOUND", 0.0)
    for found, exact in zip(run(case, "chunk", outputs), expected, strict=True):
        assert all(torch.equal(found[name], x) for name, x in exact.items())
    assert believed == [False]


def arguments() -> list[Tensor]:
    """Of ``solve_precision``."""
    case = prepared(torch.bfloat16, length=40, key_dim=5)
    x = {
        name: y.double().transpose(1, 2) for name, y in case.tensors.items() if name not in ("mean", "cov", "prior_var")
    }
    floor, start = 1 / case.tensors["prior_var"].double(), torch.linalg.inv(case.tensors["cov"].double())
    q, k = (x[name].expand(-1, 2, -1, -1) for name in ("q", "k"))
    return [q, k, x["log_decay"][..., None], floor, x["obs_noise"], 0.5 * (start + start.mT)]


def test_after_one_iteration_it_is_factorised():
    given = arguments()
    found = solve_precision(*given, 1, 32)
    assert torch.equal(found, solve_precision(*given, 1))
    solved = solve_precision(*given, None, 32)
    assert found.dtype == torch.float64 and solved.dtype == torch.float32
    assert (solved - found).norm() <= 1e-5 * found.norm()


def test_a_backward_pass_alone_in_float64(monkeypatch: pytest.MonkeyPatch):
    def slopes(*options) -> tuple[Tensor, ...]:
        leaves = [x.clone().requires_grad_() for x in arguments()]
        x = solve_precision(*leaves, None, *options)
        monkeypatch.setattr(precision_kernel, "BOUND", 0.0)
        return torch.autograd.grad((x * torch.linspace(-1, 2, x.numel()).view(x.shape).to(x)).sum(), leaves)

    found = slopes(32)
    for x, exact in zip(found, slopes(), strict=True):
        assert x.dtype == torch.float64 and (x - exact).norm() <= 1e-5 * exact.norm()


def test_of_rows_in_parts_some_are_believed(monkeypatch: pytest.MonkeyPatch):
    given = arguments()
    whole = solve_precision(*given)
    solve, calls = precision_solve.kernel_solve, []
    monkeypatch.setattr(precision_solve, "MOST_NUMBERS", 40)
    monkeypatch.setattr(
        precision_solve, "kernel_solve", lambda *x: calls.append(0) or (solve(*x) if calls[1:] else None)
    )
    parts = solve_precision(*given, None, 32)
    assert len(calls) == 2
    assert (parts - whole).norm() <= 1e-5 * whole.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_wider_streams_stay_in_float64(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    believed = with_kernel(monkeypatch)
    prepared(torch.bfloat16, length=9).to(dtype).run("chunk", outputs=())
    assert believed == []


def test_neither_wide_keys_nor_rounded_products_nor_evidence(monkeypatch: pytest.MonkeyPatch):
    believed = with_kernel(monkeypatch)
    prepared(torch.bfloat16, length=2, key_dim=129, heads=1).run("chunk", outputs=())
    case = prepared(torch.bfloat16, length=9)
    case.run("chunk", outputs=("log_evidence",))
    with monkeypatch.context() as rounded:
        rounded.setattr(torch, "get_float32_matmul_precision", lambda: "high")
        case.run("chunk", outputs=())
    assert believed == []
    case.run("chunk", outputs=())
    assert believed == [True]


def test_how_products_are_rounded_is_known_by_either_setting(monkeypatch: pytest.MonkeyPatch):
    assert matmul_precision() == "highest"

    def refuses() -> str:
        raise RuntimeError("PyTorch is checking whether allow_tf32 is used with fp32_precision")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuses)
    for setting, known in (("ieee", "highest"), ("none", "highest"), ("tf32", "high")):
        monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(fp32_precision=setting))
        assert matmul_precision() == known


def test_a_cpu_takes_no_kernel_unasked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chunk, "ITERATIVE_DEVICES", ("cpu",))
    monkeypatch.setattr(precision_solve, "kernel_solve", lambda *_: pytest.fail("took the kernel"))
    case = prepared(torch.bfloat16, length=9)
    case.with_(**{name: x.cpu() for name, x in case.tensors.items()}).run("chunk", outputs=())

"""Third rung: the filter through the kernels against the float64 chunk form, outputs and every gradient.

Without a GPU the kernels run in Triton's interpreter (which has no bfloat16 products), at small sizes.
"""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from bayesmem.ops import Assumptions, Backend, Discount, LogLinearMixing, bayesian_filter, fused_filter
from bayesmem.ops.fused import filter
from bayesmem.types import Belief
from ops.cases import DRIVEN, Case, Design, fields, make_case

# Chunks made room for but without tokens compute on whatever memory holds, and store nothing.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if GPU else torch.device("cpu")
CHUNK = 16
DESIGNS = [
    Design("full", "prior_mixing"),
    Design("full", "additive"),
    Design("reset", "prior_mixing"),
    Design("diagonal", "prior_mixing"),
    Design("diagonal", "additive"),
    Design("steady_state", "prior_mixing", given_steady_var=True),
    Design("isotropic", "prior_mixing"),
    Design("isotropic", "additive"),
    DRIVEN,
]
# Relative root mean squared errors, of outputs, of gradients of streams and beliefs, and of gates. For 16 bits it is
# flash-linear-attention's own table for its delta rule, which it uses for float32 as well.
TOLERANCE = {
    torch.float32: (5e-6, 1e-5, 2e-5),
    torch.float16: (5e-3, 8e-3, 2e-2),
    torch.bfloat16: (5e-3, 8e-3, 2e-2),
}
STREAMS = {"q", "k", "v"}
PACKED = torch.tensor([0, 1, 16, 18, 51])


def prepared(design: Design, dtype: torch.dtype, **sizes) -> Case:
    """A case with streams of ``dtype``, all else float32, one prior a head where the covariance is full."""
    case = make_case(design, **sizes)
    if design.covariance == "full":
        case = case.with_(prior_var=case.tensors["prior_var"][:, 0])
    elif design.covariance == "none":
        case = case.with_(prior_var=None, log_retention=None)
    x = {name: t.to(DEVICE, dtype if name in STREAMS else torch.float32) for name, t in case.tensors.items()}
    unit = {name: torch.nn.functional.normalize(x[name].float(), dim=-1).to(dtype) for name in ("q", "k")}
    return case.with_(**(x | unit))


def run(
    case: Case, backend: Backend, cu_seqlens: Tensor | None, precise: bool, outputs: tuple[str, ...] | None = None
) -> tuple[dict, dict]:
    """Outputs (the design's, where not said), and gradients of a random functional of them all."""
    leaves = (case.to(torch.float64) if precise else case).leaves()
    given = dict(leaves.tensors)
    if "cov" in given and case.design.covariance == "full":
        given["cov"] = 0.5 * (given["cov"] + given["cov"].mT)
    out = fields(leaves.with_(**given).run(backend, cu_seqlens=cu_seqlens, outputs=outputs))
    source = torch.Generator().manual_seed(1)
    weights = {name: torch.randn(x.shape, generator=source).to(DEVICE) for name, x in out.items()}
    loss = sum((x.double() * weights[name]).sum() for name, x in out.items())
    tensors = leaves.tensors
    found = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True, materialize_grads=True)
    return out, dict(zip(tensors, found, strict=True))


def error(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected).norm() / expected.norm().clamp(min=1e-12)).item()


def assert_filters(
    case: Case,
    dtype: torch.dtype,
    cu_seqlens: Tensor | None = None,
    chunk: int | None = CHUNK,
    outputs: tuple[str, ...] | None = None,
) -> None:
    cu_seqlens = None if cu_seqlens is None else cu_seqlens.to(DEVICE)
    out, gradients = run(case, Backend("triton", chunk), cu_seqlens, False, outputs)
    exact, slopes = run(case, Backend("chunk"), cu_seqlens, True, outputs)
    assert out.keys() == exact.keys()
    output, stream, gate = TOLERANCE[dtype]
    errors = {name: (error(out[name], x), output) for name, x in exact.items()}
    wide = STREAMS | {"mean", "cov"}
    errors |= {f"d {n}": (error(gradients[n], x), stream if n in wide else gate) for n, x in slopes.items()}
    failed = {name: pair for name, pair in errors.items() if not pair[0] <= pair[1]}
    assert not failed, failed


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("design", DESIGNS, ids=str)
def test_every_structure_and_noise(design: Design, packed: bool):
    sizes = {"batch": 1, "length": 51, "rows": 4} if packed else {"batch": 2, "length": 37}
    case = prepared(design, torch.float32, key_dim=5, value_dim=7, groups=1, heads=2, **sizes)
    assert_filters(case, torch.float32, PACKED if packed else None)


@pytest.mark.parametrize("dtype", [torch.float16, *([torch.bfloat16] if GPU else [])], ids=str)
@pytest.mark.parametrize("design", [DESIGNS[0], DESIGNS[2], DESIGNS[3], DESIGNS[6], DRIVEN], ids=str)
def test_sixteen_bits(design: Design, dtype: torch.dtype):
    case = prepared(design, dtype, batch=1, length=24, key_dim=20, value_dim=9, groups=2, heads=4)
    assert_filters(case, dtype)


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_gains_are_halved_for_bfloat16_without_variances(bfloat16, monkeypatch, packed):
    sizes = {"batch": 1, "length": 51, "rows": 4} if packed else {"batch": 2, "length": 24}
    case = prepared(DESIGNS[0], torch.bfloat16, key_dim=20, value_dim=9, groups=1, heads=2, **sizes)
    taken, backward = [], filter.covariance_backward
    seen = lambda *given, **named: taken.append(given[2]) or backward(*given, **named)  # noqa: E731
    monkeypatch.setattr(filter, "covariance_backward", seen)
    assert_filters(case, torch.bfloat16, PACKED if packed else None, outputs=("log_evidence", "final_belief"))
    assert [x.dtype for x in taken.pop()] == [torch.bfloat16] * 2
    assert_filters(case, torch.bfloat16, PACKED if packed else None)
    high, low = taken.pop()
    assert high.dtype == torch.float32 and low is None


def test_streams_may_begin_anywhere():
    """Views that begin at no multiple of 16 bytes, which some kernels read at once."""
    dtype, backend = (torch.bfloat16, Backend("triton")) if GPU else (torch.float16, Backend("triton", CHUNK))
    case = prepared(DESIGNS[0], dtype, length=70, groups=1, heads=1, key_dim=64, value_dim=64 if GPU else 16)
    moved = {}
    for name in STREAMS:
        x = case.tensors[name]
        moved[name] = torch.cat([x.new_zeros(1), x.flatten()])[1:].view_as(x)
        assert moved[name].data_ptr() % 16
    wanted = ("log_evidence", "final_belief")
    expected = run(case, backend, None, False, wanted)
    for found, exact in zip(run(case.with_(**moved), backend, None, False, wanted), expected, strict=True):
        assert all(torch.equal(found[name], x) for name, x in exact.items())


def test_from_the_prior_and_without_decay():
    case = prepared(DESIGNS[0], torch.float32, length=33, key_dim=4)
    case = case.with_(mean=None, cov=None, log_decay=torch.zeros_like(case.tensors["log_decay"]))
    assert_filters(case, torch.float32)


def test_hard_resets_repeated_keys_and_a_binding_floor():
    case = prepared(DESIGNS[0], torch.float32, length=40, key_dim=6)
    x = {name: t.clone() for name, t in case.tensors.items()}
    x["log_decay"][:, 5::9] = -torch.inf
    x["log_retention"][:, 7::9] = -torch.inf
    x["k"][:, 20:30] = x["k"][:, 20:21]
    x["obs_noise"][:, 20:24] = 1e-6
    assert_filters(case.with_(**x), torch.float32)


def test_the_retention_of_a_memory_that_forgets_has_its_gradient():
    """It is a small difference of large numbers: float32 sums that never forget leave 1e-5 of it, and grow."""
    case = prepared(DESIGNS[0], torch.float32, batch=1, length=64, key_dim=64, value_dim=20, groups=1, heads=1)
    _, found = run(case, Backend("triton", 64), None, precise=False)
    _, exact = run(case, Backend("chunk"), None, precise=True)
    assert error(found["log_retention"], exact["log_retention"]) < 3e-6


def test_split_anywhere_and_resumed_is_the_whole():
    case = prepared(DESIGNS[0], torch.float32, length=40, heads=1, key_dim=5)
    backend = Backend("triton", CHUNK)
    whole = case.run(backend)
    for now in (1, 15, 16, 17, 39):
        first = case.between(0, now).run(backend)
        rest = case.between(now).after(first.final_belief).run(backend)
        assert error(torch.cat([first.o, rest.o], 1), whole.o.double()) < 2e-6
        assert error(rest.final_belief.cov, whole.final_belief.cov.double()) < 2e-6


def test_one_token_at_a_time_is_the_whole():
    """Without gradients one token is one launch, and the belief it came from stays as it was."""
    case = prepared(DESIGNS[0], torch.float32, batch=2, length=6, key_dim=5)
    whole, belief = case.run(Backend("triton", CHUNK)), Belief(case.tensors["mean"], case.tensors["cov"])
    for now in range(6):
        kept = belief.mean.clone()
        with torch.no_grad():
            step = case.between(now, now + 1).after(belief).run(Backend("triton", CHUNK))
        assert torch.equal(kept, belief.mean)
        for name in ("o", "predictive_var", "log_evidence"):
            assert error(getattr(step, name), getattr(whole, name)[:, now : now + 1].double()) < 3e-6, name
        belief = step.final_belief
    assert error(belief.cov, whole.final_belief.cov.double()) < 3e-6


def test_packed_sequences_do_not_leak():
    """Neither a poisoned sequence's NaN nor gradients cross a border, and tables are not mixed up."""
    case = prepared(DESIGNS[0], torch.float32, length=51, rows=4, heads=1, key_dim=5)
    for bounds in (PACKED, torch.tensor([0, 17, 20, 40, 51])):
        bounds = bounds.to(DEVICE)
        clean = case.run(Backend("triton", CHUNK), cu_seqlens=bounds)
        poisoned = case.tensors["v"].clone()
        poisoned[:, : bounds[1]] = torch.nan
        leaves = case.with_(v=poisoned).leaves()
        x = leaves.tensors
        out = bayesian_filter(
            x["q"],
            x["k"],
            x["v"],
            x["log_decay"],
            x["obs_noise"],
            leaves.assumptions(),
            initial_belief=Belief(x["mean"], x["cov"]),
            cu_seqlens=bounds,
            backend=Backend("triton", CHUNK),
            validate=False,
        )
        assert torch.equal(out.o[:, bounds[1] :], clean.o[:, bounds[1] :])
        (slope,) = torch.autograd.grad(out.o[:, bounds[1] :].sum(), x["k"])
        assert slope[:, bounds[1] :].isfinite().all()


COMPILED = """
import torch
from bayesmem.ops import Assumptions, Backend, PriorMixing, bayesian_filter

device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
q, k, v = (torch.randn(1, 20, 1, 4, device=device, requires_grad=True) for _ in range(3))
decay, noise, kept = (torch.rand(1, 20, 1, device=device) for _ in range(3))
tensors = [q, k, v, *(x.requires_grad_() for x in (decay, noise, kept))]

def filtered(q, k, v, decay, noise, kept):
    given = Assumptions(process_noise=PriorMixing(-kept))
    out = bayesian_filter(q, k, v, -decay, noise, given, outputs=("predictive_var",), backend=Backend("triton", 16))
    return out.o, out.predictive_var

plain = filtered(*tensors)
with torch.autocast(device, dtype=torch.bfloat16):
    traced = torch.compile(filtered, fullgraph=True, backend="aot_eager")(*tensors)
slopes = [torch.autograd.grad(o.sum() + var.sum(), tensors) for o, var in (plain, traced)]
for a, b in zip(plain + slopes[0], traced + slopes[1], strict=True):
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
print("one graph")
"""


def test_compiles_without_a_break_and_under_autocast():
    """In a process of its own: the type checks of the tests are not for ``torch.compile``."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert done.stdout.strip() == "one graph", done.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dtype": torch.float64}, "inputs are float64"),
        ({"assumptions": Assumptions(process_noise=LogLinearMixing())}, "no LogLinearMixing noise"),
        ({"assumptions": Assumptions("isotropic", LogLinearMixing())}, "no LogLinearMixing noise"),
        (
            {"assumptions": Assumptions(process_noise=Discount(torch.zeros(1, 9, 1, device=DEVICE)))},
            "no Discount noise",
        ),
        ({"assumptions": Assumptions(prior_var=torch.ones(1, 4, device=DEVICE))}, "per head, not per channel"),
        ({"channels": True}, "per head, not per channel"),
        ({"chunk": 48}, "16, 32, 64 tokens .got 48"),
        ({"key_dim": 257}, "K is at most 256"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_the_kernels_cannot_do_is_refused_by_name(change, said):
    key_dim, dtype = change.get("key_dim", 4), change.get("dtype", torch.float32)
    q = torch.ones(1, 9, 1, key_dim, dtype=dtype, device=DEVICE)
    gate = torch.zeros(1, 9, 1, *([4] if change.get("channels") else []), dtype=dtype, device=DEVICE)
    backend = Backend("triton", change.get("chunk"))
    given = change.get("assumptions", Assumptions())
    noise = torch.ones(1, 9, 1, dtype=dtype, device=DEVICE)
    with pytest.raises(ValueError, match=f"backend='triton' cannot do this: .*{said}"):
        bayesian_filter(q, q, q[..., :3], gate, noise, given, backend=backend, validate=False)


def test_without_a_gpu_the_mend_is_named(monkeypatch):
    if GPU:
        monkeypatch.setattr(torch.Tensor, "device", torch.device("cpu"))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    x = torch.ones(1, 3, 1, 2)
    with pytest.raises(ValueError, match="needs a GPU"):
        bayesian_filter(x, x, x, None, torch.ones(1, 3, 1), backend="triton")


@pytest.mark.parametrize(("key_dim", "value_dim", "tokens"), [(32, 64, 16), (33, 64, 64), (64, 16, 16), (64, 17, 64)])
def test_few_channels_go_in_short_chunks(key_dim: int, value_dim: int, tokens: int, monkeypatch):
    monkeypatch.setattr(fused_filter, "most_tokens", lambda device: 64)
    assert fused_filter.chunk_size(torch.ones(1, 1, 1, key_dim), torch.ones(1, 1, 1, value_dim)) == tokens


@pytest.mark.skipif(not GPU, reason="sizes of use need a GPU")
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("key_dim", [16, 32, 64, 128, 200])
def test_sizes_of_use_without_variances(key_dim: int, packed: bool):
    """What a training asks for: gains are halved, and on Hopper the backward is in CUDA C++."""
    bounds = torch.tensor([0, 1, 130, 200], device=DEVICE) if packed else None
    sizes = {"batch": 1, "rows": 3} if packed else {"batch": 2}
    shape = {"length": 200, "groups": 3, "heads": 6, "key_dim": key_dim, "value_dim": 64}
    case = prepared(DESIGNS[0], torch.bfloat16, **shape, **sizes)
    assert_filters(case, torch.bfloat16, bounds, chunk=None, outputs=("log_evidence", "final_belief"))


@pytest.mark.skipif(not GPU, reason="sizes of use need a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("key_dim", [64, 128])
def test_chains_of_use_in_segments(key_dim: int, dtype: torch.dtype):
    """Long enough for the covariance's chains to be cut (covariance_cuts.cu), both ways for bfloat16."""
    sizes = {"length": 2000, "groups": 1, "heads": 2, "key_dim": key_dim, "value_dim": 32}
    case = prepared(DESIGNS[0], dtype, batch=1, **sizes)
    assert_filters(case, dtype, chunk=None, outputs=("log_evidence", "final_belief"))


@pytest.mark.skipif(not GPU, reason="sizes of use need a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("key_dim", "value_dim"), [(64, 64), (128, 128), (96, 80), (128, 512), (256, 256), (256, 32)])
@pytest.mark.parametrize("design", [DESIGNS[0], DESIGNS[2], DRIVEN], ids=str)
def test_sizes_of_use(design: Design, key_dim: int, value_dim: int, dtype: torch.dtype):
    case = prepared(design, dtype, batch=2, length=200, groups=1, heads=2, key_dim=key_dim, value_dim=value_dim)
    assert_filters(case, dtype, chunk=None)

"""The short convolution through the kernels against the eager one in float64, outputs and every gradient."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from bayesmem.layers import projections
from bayesmem.layers.config import BayesianLayerConfig
from bayesmem.layers.projections import Projections, ShortConvolution
from bayesmem.ops.fused.short_convolution import short_convolution
from bayesmem.ops.triton import short_convolution as kernels

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
TOLERANCE = {torch.float32: (1e-6, 1e-6), torch.float16: (5e-3, 8e-3), torch.bfloat16: (5e-3, 8e-3)}
WALK = kernels.WALK if GPU else 8  # rows a strip, here a few: strips have their borders, and the interpreter its time
LENGTHS = [1, WALK - 3, WALK, 2 * WALK + 1]


@pytest.fixture(autouse=True)
def strips(monkeypatch):
    monkeypatch.setattr(kernels, "WALK", WALK)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def eager(x: Tensor, weight: Tensor, bias: Tensor | None, tail: Tensor | None, position: Tensor | None) -> Tensor:
    module = ShortConvolution(*weight.shape, bias=bias is not None).double()
    given = {"weight": weight} | ({} if bias is None else {"bias": bias})
    tail = x.new_zeros(x.shape[0], weight.shape[1] - 1, x.shape[2]) if tail is None else tail
    return torch.func.functional_call(module, given, (x, tail, position))


def positions(bounds: list[int], start: int = 0) -> Tensor:
    lengths = torch.tensor(bounds).diff()
    place = torch.cat([torch.arange(n) for n in lengths.tolist()]).to(DEVICE)
    place[: lengths[0]] += start
    return place


def assert_same(x, weight, bias=None, tail=None, position=None) -> None:
    tensors = [t.requires_grad_() for t in (x, weight, bias, tail) if t is not None]
    wide = {id(t): t.detach().double().requires_grad_() for t in tensors}
    out = short_convolution(x, weight, bias, tail, position)
    exact = eager(*(None if t is None else wide[id(t)] for t in (x, weight, bias, tail)), position)
    assert out.dtype == x.dtype
    dy = drawn(9, *out.shape).to(x.dtype)
    found = (out, *torch.autograd.grad(out, tensors, dy))
    wanted = (exact, *torch.autograd.grad(exact, list(wide.values()), dy.double()))
    output, gradient = TOLERANCE[x.dtype]
    for index, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert a.shape == b.shape
        assert (a.double() - b).norm() <= (gradient if index else output) * b.norm(), index


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("taps", [1, 2, 3, 4])
def test_every_length_and_number_of_taps(taps, length):
    x, weight, bias, tail = drawn(0, 2, length, 5), drawn(1, 5, taps), drawn(2, 5), drawn(3, 2, taps - 1, 5)
    assert_same(x, weight, bias, tail if taps > 1 else None)
    if taps == 4:
        assert_same(x, weight)


@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("taps", [2, 3, 4])
def test_packed_sequences(taps, start):
    """Also one that began before this row, as on a rank of a context-parallel group."""
    x, weight, tail = drawn(0, 1, 28, 3), drawn(1, 3, taps), drawn(2, 1, taps - 1, 3)
    position = positions([0, 1, 3, 7, 8, 9, 13, 21, 28], start)
    assert_same(x, weight, drawn(3, 3), tail, position)
    if not start:
        assert_same(x, weight, None, None, position.int())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sixteen_bits_under_a_wide_weight(dtype):
    """More channels than one program has, in part of a wider row, as a joined projection gives them."""
    joined, weight = drawn(0, 2, 13, 300).to(dtype), drawn(1, 137, 4)
    assert_same(joined[..., 100:237], weight, drawn(2, 137), drawn(3, 2, 3, 200).to(dtype)[..., 40:177])
    assert_same(joined[..., :260:2][..., :7], weight[:7].to(dtype))


def test_the_weight_is_not_rounded():
    x, weight = torch.ones(1, 4, 3, dtype=torch.float16, device=DEVICE), drawn(1, 3, 4) * 1e-9
    weight = weight + torch.tensor([0.0, 0.0, 0.0, 1e4], device=DEVICE) * 1e-9
    (slope,) = torch.autograd.grad(short_convolution(x, weight.requires_grad_()).sum(), weight)
    assert slope.dtype == torch.float32
    assert torch.allclose(slope, torch.tensor([0.5, 1, 1.5, 2], device=DEVICE).expand(3, 4), rtol=1e-4)


def test_a_neighbour_of_nan_is_not_heard():
    x, weight, position = drawn(0, 1, 20, 4), drawn(1, 4, 4), positions([0, 7, 20])
    clean = short_convolution(x, weight, None, None, position)
    for poisoned, sound in ((slice(0, 7), slice(7, 20)), (slice(7, 20), slice(0, 7))):
        given = x.clone()
        given[:, poisoned] = torch.nan
        out = short_convolution(given.requires_grad_(), weight, None, None, position)
        assert torch.equal(out[:, sound], clean[:, sound])
        (slope,) = torch.autograd.grad(out.sum(), given)
        assert slope[:, sound].isfinite().all() and slope[:, poisoned].isnan().all()


def test_finite_differences():
    tensors = [drawn(0, 1, 6, 2), drawn(1, 2, 3), drawn(2, 2), drawn(3, 1, 2, 2)]
    for index, x in enumerate(tensors):
        step, others = 1e-2 * drawn(7, *x.shape), tensors.copy()
        ends = [short_convolution(*others[:index], x + sign * step, *others[index + 1 :]).sum() for sign in (1, -1)]
        others[index] = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(short_convolution(*others).sum(), others[index])
        assert torch.allclose((slope * step).sum(), (ends[0] - ends[1]) / 2, rtol=2e-3, atol=2e-5), index


def test_token_after_token_is_the_whole():
    x, weight = drawn(0, 2, 9, 5), drawn(1, 5, 4)
    whole, tail = short_convolution(x, weight), torch.zeros(2, 3, 5, device=DEVICE)
    for now in range(9):
        step = short_convolution(x[:, now : now + 1], weight, None, tail)
        assert torch.equal(step, whole[:, now : now + 1])
        tail = torch.cat([tail, x[:, now : now + 1]], 1)[:, 1:]


@pytest.mark.parametrize("taps", [2, 4, 5])
def test_a_layer_takes_the_kernel_and_is_the_same(monkeypatch, taps):
    """Padded, packed, from a tail and one token at a time; more taps than the kernel knows stay as they were."""
    config = BayesianLayerConfig(hidden_size=8, num_heads=2, head_dim=3, value_dim=4, conv_size=taps, conv_bias=True)
    torch.manual_seed(0)
    layer = Projections(config).to(DEVICE)
    x, tail = drawn(0, 2, 11, 8), drawn(1, 2, taps - 1, 20)
    mask = torch.ones(2, 11, dtype=torch.bool, device=DEVICE)
    mask[0, 3:6] = mask[1, :4] = False
    calls = [(x, tail), (x[:, :1], tail), (x, tail, None, mask), (x[:1], tail[:1], positions([0, 2, 11]))]
    with torch.no_grad(), monkeypatch.context() as patch:
        patch.setattr(projections, "has_kernels", lambda *tensors: False)
        expected = [layer(*call)[:4] for call in calls]
        used = []
        patch.setattr(projections, "has_kernels", lambda *tensors: True)
        patch.setattr(kernels, "convolution", lambda *given, of=kernels.convolution: used.append(1) or of(*given))
        found = [layer(*call)[:4] for call in calls]
    assert len(used) == (3 * len(calls) if taps <= 4 else 0)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6)


def test_no_tokens_give_none():
    x, weight = drawn(0, 2, 0, 5).requires_grad_(), drawn(1, 5, 4).requires_grad_()
    out = short_convolution(x, weight)
    assert out.shape == (2, 0, 5)
    assert not torch.autograd.grad(out.sum(), weight)[0].any()


COMPILED = """
import torch
from bayesmem.ops.fused.short_convolution import short_convolution

device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
shapes = [(2, 6, 9), (5, 4), (5,), (2, 3, 9)]
tensors = [torch.randn(s, device=device, requires_grad=True) for s in shapes]

def mixed(x, weight, bias, tail):
    return short_convolution(x[..., 2:7], weight, bias, tail[..., 4:])

plain = mixed(*tensors)
with torch.autocast(device, dtype=torch.bfloat16):
    traced = torch.compile(mixed, fullgraph=True, backend="aot_eager")(*tensors)
slopes = [torch.autograd.grad(y.square().sum(), tensors) for y in (plain, traced)]
for a, b in zip((plain, *slopes[0]), (traced, *slopes[1]), strict=True):
    torch.testing.assert_close(a, b, rtol=0, atol=0)
torch.library.opcheck(torch.ops.bayesmem.short_convolution, (tensors[0][..., 2:7], *tensors[1:3], None, None))
print("one graph")
"""


def test_compiles_without_a_break_and_under_autocast():
    """In a process of its own: the type checks of the tests are not for ``torch.compile``."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert done.stdout.strip() == "one graph", done.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weight": (5, 5)}, "5 taps; the kernel knows 1 to 4"),
        ({"x": (2, 7, 4)}, r"x has shape \(2, 7, 4\); expected \[B, T, 5\]"),
        ({"bias": (4,)}, r"bias has shape \(4,\); expected \(5,\)"),
        ({"tail": (2, 2, 5)}, r"tail has shape \(2, 2, 5\); expected \(2, 3, 5\)"),
        ({"position": (6,)}, r"position has shape \(6,\); expected \(7,\)"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_does_not_fit_is_refused(change, said):
    shapes = {"x": (2, 7, 5), "weight": (5, 4), "bias": (5,), "tail": (2, 3, 5), "position": (7,)} | change
    given = {name: torch.zeros(shape, device=DEVICE) for name, shape in shapes.items()}
    with pytest.raises(ValueError, match=said):
        short_convolution(**given | {"position": given["position"].int()})

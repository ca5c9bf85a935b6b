"""What a chunk knows of the covariance's backward in CUDA C++ against Triton's kernel; thread by thread on a CPU."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from bayesmem.ops.triton import covariance_prepare_cuda as prepare_cuda
from bayesmem.ops.triton.covariance_prepare import prepare
from bayesmem.ops.triton.hopper import CAPABILITY, TOKENS
from bayesmem.ops.triton.spans import spans_of
from ops.triton.emulation import run_stage

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
HOPPER = DEVICE.type == "cuda" and torch.cuda.get_device_capability() == CAPABILITY
PAIRS = 3e-5  # relative: what pairs are wrong by, 2^-17 a product, over a few of them
NAMES = ("solve", "direct", "alpha", "to_end", "along", "sums")


@pytest.mark.parametrize(
    ("key_dim", "lengths", "room", "groups", "heads", "sigma", "resets"),
    [
        (128, (TOKENS + 7,), 0, 1, 2, True, slice(40, None, TOKENS)),
        (128, (TOKENS,), 0, 1, 1, False, slice(0)),  # none: all blocks of the inverse count
        (64, (3, TOKENS + 30), 5, 2, 2, True, slice(0, None, 9)),  # with chunks that nothing fills
        (64, (TOKENS + 1, 1), 0, 1, 3, False, slice(20, None, TOKENS)),
    ],
    ids=str,
)
def test_it_is_that_of_triton(tmp_path, bfloat16, key_dim, lengths, room, groups, heads, sigma, resets):
    if DEVICE.type == "cuda" and not HOPPER:
        pytest.skip("this GPU has no kernel of its own")
    bounds = tuple(sum(lengths[:i]) for i in range(len(lengths) + 1))
    spans = spans_of(bounds, TOKENS, DEVICE, room)
    source = torch.Generator().manual_seed(2)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source)

    count = bounds[-1]
    k = normalize(normal(count, groups, key_dim), dim=-1).bfloat16().to(DEVICE)
    g = normal(count, heads, key_dim) / key_dim**0.5
    gain = (g.bfloat16().to(DEVICE), (g - g.bfloat16().float()).bfloat16().to(DEVICE))
    gates = [0.5 + normal(count, heads).abs(), -0.1 * normal(count, heads).abs(), normal(count, heads, key_dim)]
    gates[1][resets] = -60.0  # hard resets, beyond which nothing reaches
    gates = [x.to(DEVICE) for x in gates]
    s = normal(count, heads).to(DEVICE) if sigma else None
    expected = prepare(k, None, gain, *gates, s, None, spans, "bf16x3", {"prepare": {"num_stages": 2}})

    made = [torch.full_like(getattr(expected, name), torch.nan) for name in NAMES]
    read = [torch.full_like(y, torch.nan) for y in expected.read]
    args = [k, *gain, *gates, 0 if s is None else s, *made[:3], *read, *made[3:]]
    args += [spans.seq_start, spans.chunk_seq, spans.chunk_first, heads, groups]
    blocks = spans.chunks * heads
    run_stage(tmp_path, prepare_cuda, (key_dim,), TOKENS, "bf16x3", blocks=blocks, args=args)
    held = [(name, y, getattr(expected, name)) for name, y in zip(NAMES, made, strict=True)]
    held += [("read", *(high.double() + low.double() for high, low in (read, expected.read)))]
    for name, y, exact in held:
        wrong = (y.double() - exact.double()).norm() / exact.double().norm()
        assert wrong <= PAIRS, (name, wrong)

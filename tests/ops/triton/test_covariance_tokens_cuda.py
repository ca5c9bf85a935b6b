"""The tokens of the covariance's backward in CUDA C++ against Triton's kernel; thread by thread on a CPU."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from bayesmem.ops.triton import covariance_tokens_cuda as tokens_cuda
from bayesmem.ops.triton.covariance_chain import Chained
from bayesmem.ops.triton.covariance_config import RENEW
from bayesmem.ops.triton.covariance_prepare import Prepared
from bayesmem.ops.triton.covariance_tokens import TokenGradients, settle_kernel, tokens
from bayesmem.ops.triton.hopper import CAPABILITY, TOKENS
from bayesmem.ops.triton.spans import Spans, spans_of
from ops.triton.emulation import run_stage

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
HOPPER = DEVICE.type == "cuda" and torch.cuda.get_device_capability() == CAPABILITY
PAIRS = 3e-5  # relative: what pairs are wrong by, 2^-17 a product, over a few of them
ROUNDED = 3e-3  # of dk, which either rounds to bfloat16
NAMES = ("k", "log_retention", "process_noise", "obs_noise", "floor")


def inputs(spans: Spans, groups: int, heads: int, key_dim: int) -> tuple[dict[str, Tensor], Prepared, Chained]:
    """What the tokens read, of the sizes it has in use."""
    source = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source)

    def pair(*shape: int) -> tuple[Tensor, Tensor]:
        x = normal(*shape) / key_dim**0.5
        return x.bfloat16().to(DEVICE), (x - x.bfloat16().float()).bfloat16().to(DEVICE)

    count, chunks = spans.bounds[-1], spans.chunks
    square, gate = (chunks, heads, TOKENS, TOKENS), (count, heads)
    x = {
        "k": normalize(normal(count, groups, key_dim), dim=-1).bfloat16(),
        "innovation_var": 0.5 + normal(*gate).abs(),
        "log_retention": -0.1 * normal(*gate).abs(),
        "process_noise": 0.1 * normal(*gate).abs(),
        "obs_noise": 0.1 + normal(*gate).abs(),
        "floor": torch.linspace(0.2, 0.6, heads),  # binds at some tokens
        "dgain": normal(count, heads, key_dim),
        "sigma": normal(*gate),
        "checkpoints": normal(chunks, heads, key_dim, key_dim),
        "dk": normal(count, heads, key_dim).bfloat16(),
        "sums": torch.zeros(chunks, heads, 2, TOKENS),
        "met": normal(*square),
        "along": normal(*gate),
        "trace": normal(chunks, heads, key_dim),
        "overlap": normal(chunks, heads),
    }
    x["checkpoints"] += x["checkpoints"].mT.clone()
    x["met"] += x["met"].mT.clone()
    steps = -0.1 * normal(2, chunks, heads, TOKENS).abs()
    steps[:, :, :, 20] = -60.0  # a hard reset
    x["sums"] += (steps * torch.tensor([1.0, 0.01])[:, None, None, None]).cumsum(-1).permute(1, 2, 0, 3)
    x["solve"], x["direct"] = (normal(*square).tril(-1) / TOKENS**0.5 for _ in range(2))
    x["solve"] += torch.eye(TOKENS)
    x = {name: y.to(DEVICE) for name, y in x.items()}
    gain, sent = pair(count, heads, key_dim), pair(chunks, heads, TOKENS, key_dim)
    alpha, read = x["checkpoints"][..., :TOKENS].contiguous(), pair(chunks, heads, key_dim, TOKENS)
    known = (x["solve"], x["direct"], None, alpha, read, None, x["along"], x["along"], x["sums"])
    return x, Prepared(gain, *known), Chained(sent, x["met"], x["trace"], x["overlap"], RENEW, None)


@pytest.mark.parametrize(
    ("key_dim", "lengths", "room", "groups", "heads", "sigma", "added"),
    [
        (128, (TOKENS + 7,), 0, 1, 2, True, True),
        (128, (TOKENS,), 0, 1, 1, False, False),
        (64, (3, TOKENS + 30), 5, 2, 2, True, True),  # with chunks that nothing fills
        (64, (2 * TOKENS,), 0, 1, 2, False, False),
    ],
)
def test_it_is_that_of_triton(tmp_path, bfloat16, key_dim, lengths, room, groups, heads, sigma, added):
    if DEVICE.type == "cuda" and not HOPPER:
        pytest.skip("this GPU has no kernel of its own")
    bounds = tuple(sum(lengths[:i]) for i in range(len(lengths) + 1))
    spans = spans_of(bounds, TOKENS, DEVICE, room)
    x, prepared, chained = inputs(spans, groups, heads, key_dim)
    gates = (x["log_retention"], x["process_noise"], x["obs_noise"], x["floor"])
    gradients = (x["dgain"], x["sigma"] if sigma else None, None)
    given = (x["k"], None, x["innovation_var"], gates, gradients, None, x["checkpoints"], prepared, chained, spans)
    before = x["dk"].clone() if added else None
    expected = tokens(*given, "bf16x3", {"tokens": {"num_stages": 2}}, before)

    dk = x["dk"].clone() if added else torch.full_like(x["dk"], torch.nan)
    rest = [torch.full_like(y, torch.nan) for y in gates[:3]]
    found = TokenGradients(dk, *rest, torch.zeros_like(chained.overlap))
    later = torch.zeros_like(chained.overlap)
    tables = (spans.seq_start, spans.chunk_seq, spans.chunk_first)
    args = [x["k"], *prepared.gain, x["innovation_var"], prepared.sums, *gates[1:], x["dgain"]]
    args += [x["sigma"] if sigma else 0, prepared.solve, prepared.direct, prepared.along]
    args += [*chained.sent, chained.met, chained.trace, x["checkpoints"]]
    args += [found.k, found.log_retention, later, found.process_noise, found.obs_noise, found.floor]
    args += [*tables, heads, groups, int(added)]
    blocks = spans.chunks * heads
    run_stage(tmp_path, tokens_cuda, (key_dim,), TOKENS, "bf16x3", blocks=blocks, args=args)
    sizes = {"H": heads, "C": TOKENS, "RENEW": RENEW, "num_warps": 1}
    settle_kernel[(spans.chunks, heads)](chained.overlap, later, found.log_retention, *tables, **sizes)
    for name in NAMES:
        y, exact = (getattr(of, name).double() for of in (found, expected))
        wrong = (y - exact).norm() / exact.norm()
        assert wrong <= (ROUNDED if name == "k" else PAIRS), (name, wrong)

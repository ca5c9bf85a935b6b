"""Gradients of the mean pass inside a chunk in CUDA C++ against Triton's and float64; thread by thread on a CPU."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from bayesmem.ops.triton import mean_local_cuda as local_cuda
from bayesmem.ops.triton.hopper import CAPABILITY, TOKENS
from bayesmem.ops.triton.mean_backward_local import mean_backward_local
from bayesmem.ops.triton.spans import Spans, spans_of
from ops.triton.emulation import run_stage

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
HOPPER = DEVICE.type == "cuda" and torch.cuda.get_device_capability() == CAPABILITY
NAMES = ("q", "k", "gain", "log_decay")
# Relative: sums in another order turn what is rounded to bfloat16 at times; and what that rounding leaves of float64.
TURNED = {"q": 5e-4, "k": 5e-4, "gain": 1e-4, "log_decay": 1e-4}
ROUNDED = {"q": 4e-3, "k": 4e-3, "gain": 3e-3, "log_decay": 6e-3}


def inputs(spans: Spans, groups: int, heads: int, key_dim: int, value: int, decay: float, resets: bool) -> list[Tensor]:
    """What the kernel reads, of the sizes it has in use, in its order."""
    source = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source)

    count, chunks = spans.bounds[-1], spans.chunks
    q, k = (normalize(normal(count, groups, key_dim), dim=-1) for _ in range(2))
    written = 0.7 * k.repeat_interleave(heads // groups, 1) + 0.02 * normal(count, heads, key_dim)
    log_decay = -decay * torch.rand(count, heads, generator=source)
    if resets:
        log_decay[torch.rand(count, heads, generator=source) < 0.1] = -60.0
    sums = torch.zeros(chunks, heads, TOKENS, dtype=torch.float64)
    for chunk, (first, live) in enumerate(places(spans)):
        sums[chunk, :, :live] = log_decay[first : first + live].T.double()
    sums = sums.cumsum(-1)
    factors = torch.stack((sums.exp(), (sums[..., -1:] - sums).exp()), 2).float()
    innovation, do, dv = (normal(count, heads, value) for _ in range(3))
    means, d_means = (normal(chunks, heads, key_dim, value) / key_dim**0.5 for _ in range(2))
    streams = {0: q, 1: k, 2: written, 5: innovation, 6: means, 7: do, 8: dv, 9: d_means}
    made = [q, k, written, log_decay, factors, innovation, means, do, dv, d_means]
    return [(x.bfloat16() if i in streams else x).to(DEVICE) for i, x in enumerate(made)]


def places(spans: Spans) -> list[tuple[int, int]]:
    """First token and number of tokens of every chunk."""
    found = []
    for chunk, sequence in enumerate(spans.chunk_seq.tolist()):
        first = spans.bounds[sequence] + TOKENS * (chunk - int(spans.chunk_first[sequence]))
        found.append((first, min(max(spans.bounds[sequence + 1] - first, 0), TOKENS)))
    return found


def exact(given: list[Tensor], spans: Spans) -> list[Tensor]:
    """The formulas of ``mean_backward_local`` in float64."""
    q, k, written, log_decay, _, innovation, means, do, dv, d_means = (x.double().cpu() for x in given)
    share = written.shape[1] // k.shape[1]
    q, k = q.repeat_interleave(share, 1), k.repeat_interleave(share, 1)
    made = [torch.zeros_like(x) for x in (q, k, written, log_decay)]
    for chunk, (first, live) in enumerate(places(spans)):
        if live == 0:
            continue
        at = slice(first, first + live)
        qs, ks, gs, error, d_out, d_value = (x[at].transpose(0, 1) for x in (q, k, written, innovation, do, dv))
        steps = log_decay[at].T
        inside = steps[:, None, :].expand(-1, live, -1).tril()  # sums, not differences, of what lies between
        between = inside.flip(-1).cumsum(-1).flip(-1)
        ratio = torch.zeros(len(steps), live, live, dtype=torch.float64)
        ratio[:, :, :-1] = between[:, :, 1:]
        ratio = ratio.exp().tril()
        since, left, whole = between[:, :, 0].exp(), ratio[:, -1], between[:, -1, 0].exp()
        mean, d_mean = means[chunk], d_means[chunk]
        d_seen = ratio * (d_out @ error.mT)
        d_reads = -(ratio * (d_value @ error.mT)).tril(-1)
        itself, d_seen = d_seen.diagonal(dim1=1, dim2=2)[..., None], d_seen.tril(-1)
        d_query = since[..., None] * (d_out @ mean.mT) + d_seen @ gs
        d_key = -since[..., None] * (d_value @ mean.mT) + d_reads @ gs
        carried = left[..., None] * (error @ d_mean.mT)
        d_written = d_seen.mT @ qs + d_reads.mT @ ks
        db = (qs * d_query + ks * d_key - gs * d_written).sum(-1)
        sent = (gs * carried).sum(-1)
        decays = db.flip(-1).cumsum(-1).flip(-1)
        decays[:, 1:] += sent.cumsum(-1)[:, :-1]
        decays += (whole * (mean * d_mean).sum((1, 2)))[:, None]
        results = d_query + itself * gs, d_key, d_written + carried + itself * qs, decays
        for to, x in zip(made, results, strict=True):
            to[at] = x.transpose(0, 1)
    return made


@pytest.mark.parametrize(
    ("sizes", "lengths", "room", "groups", "heads", "decay", "resets"),
    [
        ((128, 128), (TOKENS + 7,), 0, 1, 2, 0.1, False),
        ((128, 128), (3, 2 * TOKENS, 1), 6, 1, 1, 1.0, True),  # with chunks that nothing fills
        ((128, 128), (TOKENS,), 0, 1, 1, 20.0, True),
        ((64, 64), (3, TOKENS + 30), 5, 2, 4, 0.3, True),
        ((64, 64), (2 * TOKENS,), 0, 1, 2, 0.0, False),
        ((64, 128), (TOKENS + 30,), 0, 1, 1, 0.1, True),
        ((128, 64), (TOKENS + 30,), 0, 1, 1, 0.1, False),
        ((64, 256), (30,), 0, 1, 1, 0.1, False),
        ((128, 256), (70,), 0, 1, 1, 0.1, False),
    ],
)
def test_it_is_that_of_triton(tmp_path, bfloat16, sizes, lengths, room, groups, heads, decay, resets):
    if DEVICE.type == "cuda" and not HOPPER:
        pytest.skip("this GPU has no kernel of its own")
    bounds = tuple(sum(lengths[:i]) for i in range(len(lengths) + 1))
    spans = spans_of(bounds, TOKENS, DEVICE, room)
    given = inputs(spans, groups, heads, *sizes, decay, resets)
    q, k, written, log_decay, factors, *rest = given
    tuning = {"local": {"num_stages": 2}}
    expected = mean_backward_local(q, k, written, log_decay, factors, *rest, spans, "tf32x3", tuning, torch.float32)
    truth = exact(given, spans)

    found = [torch.full_like(x, torch.nan) for x in expected]
    tables = (spans.seq_start, spans.chunk_seq, spans.chunk_first)
    args = [*given, *found, *tables, heads, groups]
    run_stage(tmp_path, local_cuda, sizes, TOKENS, blocks=spans.chunks * heads, args=args)
    for name, x, y, z in zip(NAMES, found, expected, truth, strict=True):
        x, y, z = (of.double().cpu() for of in (x, y, z))
        assert (x - y).norm() <= TURNED[name] * y.norm(), name
        assert (x - z).norm() <= ROUNDED[name] * z.norm(), name

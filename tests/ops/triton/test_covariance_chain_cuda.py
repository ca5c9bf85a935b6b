"""The reverse chain of the covariance in CUDA C++ against its equations in float64; thread by thread on a CPU."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bayesmem.ops.triton import covariance_chain_cuda as chain_cuda
from bayesmem.ops.triton.covariance_config import RENEW, chain_config
from bayesmem.ops.triton.covariance_cuts import cut_room
from bayesmem.ops.triton.hopper import CAPABILITY, TOKENS
from bayesmem.ops.triton.spans import Spans, spans_of
from ops.triton.emulation import emulated_hopper

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
HOPPER = DEVICE.type == "cuda" and torch.cuda.get_device_capability() == CAPABILITY
PAIRS = 3e-5  # relative: what pairs are wrong by, 2^-17 a product, over a few chunks
GATES = ("process_noise", "obs_noise", "floor")
NAMES = ("sent", "met", "trace", "overlap", "d_initial")


def run(
    folder: Path,
    key_dim: int,
    keys: torch.dtype,
    chains: int,
    segments: int,
    backwards: bool,
    args: list[Tensor | int],
) -> None:
    """The kernels on this GPU, or every thread a fiber."""
    if HOPPER:
        launch = chain_cuda.cuda_chain(key_dim, keys, TOKENS, "bf16x3", DEVICE)
        assert launch is not None
        launch(chains, segments, args)
        return
    shared = chain_cuda.shared_bytes(key_dim)
    for mend in range(1 if segments == 1 else 2):
        name, chosen = (chain_cuda.NAME + "_mend" * mend, chain_cuda.settings(key_dim, keys, bool(mend)))
        blocks = chains if mend else chains * segments
        emulated_hopper(folder, name, chosen, shared, blocks, [*args, segments], backwards)


def pair(x: Tensor) -> tuple[Tensor, Tensor]:
    high = x.bfloat16()
    return high, (x - high.float()).bfloat16()


def inputs(spans: Spans, heads: int, key_dim: int, reset: bool) -> dict[str, Tensor]:
    """What the chain reads, of the sizes it has in use; tokens past an end are zeros in what lies by chunk."""
    source = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source)

    tokens, chunks, sequences = spans.bounds[-1], spans.chunks, spans.sequences
    x = {
        "gain": normal(tokens, heads, key_dim) / key_dim,
        "alpha": normal(chunks, heads, key_dim, TOKENS),
        "read": normal(chunks, heads, key_dim, TOKENS) / key_dim**0.5,
        "log_retention": -0.1 * normal(tokens, heads).abs(),
        "to_end": torch.exp(-normal(tokens, heads).abs()),
        "checkpoints": normal(chunks, heads, key_dim, key_dim),
        "final_cov": normal(sequences, heads, key_dim, key_dim),
        "d_initial": normal(sequences, heads, key_dim, key_dim),
        "k": normal(tokens, 1, key_dim) / key_dim**0.5,
        "process_noise": 0.1 * normal(tokens, heads).abs(),
        "obs_noise": 0.1 + normal(tokens, heads).abs(),
        "floor": torch.zeros(heads),
    }
    if reset:
        x["log_retention"][torch.rand(tokens, heads, generator=source) < 0.3] = -60.0
    x["d_initial"] += x["d_initial"].mT.clone()
    for chunk in range(chunks):
        sequence = int(spans.chunk_seq[chunk])
        first = spans.bounds[sequence] + TOKENS * (chunk - int(spans.chunk_first[sequence]))
        for name in ("alpha", "read"):
            x[name][chunk, ..., spans.bounds[sequence + 1] - first :] = 0
    return x


def reference(x: dict[str, Tensor], spans: Spans, renew: int) -> dict[str, Tensor]:
    """The equations of ``covariance_chain`` in float64; what is not asked for is NaN."""
    x = {name: y.double() for name, y in x.items()}
    heads = x["alpha"].shape[1]
    nan = torch.full((spans.chunks, heads), torch.nan, dtype=torch.float64)
    made = {"sent": x["alpha"].mT.clone(), "overlap": nan}
    made["met"] = x["alpha"].new_empty(spans.chunks, heads, TOKENS, TOKENS)
    made["trace"] = x["alpha"].new_empty(x["alpha"].shape[:3])
    ends = []
    for sequence, (start, stop) in enumerate(pairwise(spans.bounds)):
        lam = x["d_initial"][sequence]
        first = int(spans.chunk_first[sequence])
        for back, begin in enumerate(reversed(range(start, stop, TOKENS))):
            chunk, now = first + (begin - start) // TOKENS, slice(begin, min(begin + TOKENS, stop))
            gone = TOKENS - (now.stop - now.start)
            e = torch.nn.functional.pad(x["to_end"][now].T, (0, gone), value=1.0)
            g = torch.nn.functional.pad(x["gain"][now].transpose(0, 1), (0, 0, 0, gone))
            kept = (x["log_retention"][begin].exp() * x["to_end"][begin])[:, None, None]
            made["trace"][chunk] = lam.diagonal(dim1=1, dim2=2)
            if back % renew == 0:
                after = x["checkpoints"][chunk + 1] if back else x["final_cov"][sequence]
                made["overlap"][chunk] = (lam * after).sum((1, 2))
            n = lam @ (e[..., None] * g).mT
            made["sent"][chunk] = n.mT
            s = made["met"][chunk] = e[..., None] * g @ n
            read = x["read"][chunk]
            z = 0.5 * x["alpha"][chunk] - kept * n + 0.5 * read @ s
            lam = kept**2 * lam + z @ read.mT + read @ z.mT
        ends.append(0.5 * (lam + lam.mT))
    return made | {"d_initial": torch.stack(ends)}


def check(
    folder: Path,
    x: dict[str, Tensor],
    bounds: tuple[int, ...],
    segments: int = 1,
    d_final: bool = True,
    keys: torch.dtype = torch.bfloat16,
    backwards: bool = False,
) -> Tensor:
    """Held to the equations; what the kernels counted, where chains were cut."""
    if DEVICE.type == "cuda" and not HOPPER:
        pytest.skip("this GPU has no kernel of its own")
    here, spans = (spans_of(bounds, TOKENS, device) for device in (torch.device("cpu"), DEVICE))
    heads, key_dim = x["gain"].shape[1:]
    assert chain_config(x["final_cov"], "bf16x3", None)["RENEW"] == RENEW
    expected = reference(x | ({} if d_final else {"d_initial": 0 * x["d_initial"]}), here, RENEW)
    given = [*pair(x["gain"]), x["alpha"], *pair(x["read"]), x["log_retention"], x["to_end"]]
    given += [x["checkpoints"], x["final_cov"], x["k"].to(keys), *(x[name] for name in GATES)]
    given = [y.to(DEVICE) for y in (*given, x["d_initial"] if d_final else x["d_initial"].new_empty(0))]
    sent = [torch.full(given[3].mT.shape, torch.nan, dtype=torch.bfloat16, device=DEVICE) for _ in range(2)]
    rest = [torch.full_like(expected[name], torch.nan, dtype=torch.float32, device=DEVICE) for name in NAMES[1:]]
    chains = spans.sequences * heads
    edge, count = cut_room(given[9], chains, segments)
    edge.fill_(torch.nan)
    places = [spans.seq_start, spans.chunk_first, heads, x["k"].shape[1]]
    run(folder, key_dim, keys, chains, segments, backwards, [*given, *sent, *rest, edge, count, *places])
    high, low, *found = (y.double().cpu() for y in (*sent, *rest))
    for name, y in zip(NAMES, (high + low, *found), strict=True):
        assert torch.equal(y.isnan(), expected[name].isnan()), name
        wrong, whole = ((y - z).nan_to_num().norm() for z in (expected[name], 0 * y))
        assert wrong <= PAIRS * whole, (name, wrong / whole)
    return count.cpu()


def joined(lengths: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sum(lengths[:i]) for i in range(len(lengths) + 1))


@pytest.mark.parametrize(
    ("key_dim", "lengths", "heads", "reset"),
    [
        (128, (2 * TOKENS + 7, 10), 1, False),
        (128, (9 * TOKENS + 1,), 1, True),  # past a renewed overlap
        (64, (3, TOKENS, 2 * TOKENS + 5), 2, True),
    ],
)
def test_it_is_the_recurrence_in_float64(tmp_path, key_dim, lengths, heads, reset):
    bounds = joined(lengths)
    x = inputs(spans_of(bounds, TOKENS, torch.device("cpu")), heads, key_dim, reset)
    check(tmp_path, x, bounds, d_final=len(lengths) < 3)


@pytest.mark.parametrize(
    ("key_dim", "keys", "agree", "backwards"),
    [
        (64, torch.bfloat16, True, True),
        (64, torch.bfloat16, False, False),
        (64, torch.float16, True, False),
        (128, torch.bfloat16, False, True),
    ],
    ids=str,
)
def test_segments_are_the_recurrence_in_float64(tmp_path, key_dim, keys, agree, backwards):
    """A chain forgets as soon as was estimated, or later than that; beside it one too short to be cut."""
    lengths, heads = (12 * TOKENS + 5, 2 * TOKENS), 2 if key_dim == 64 else 1
    bounds = joined(lengths)
    x = inputs(spans_of(bounds, TOKENS, torch.device("cpu")), heads, key_dim, False)
    if agree:
        x["to_end"] *= 1e-4  # R_C of chunks
    count = check(tmp_path, x, bounds, 3, keys=keys, backwards=backwards).view(2, heads, -1)
    agreed, done, mended = count[..., 3:5], count[..., 6], count[..., 7]
    assert done.tolist() == [[3] * heads, [0] * heads] and mended.any() != agree
    assert agreed[0].tolist() == [[int(agree)] * 2] * heads

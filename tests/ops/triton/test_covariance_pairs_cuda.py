"""All of the covariance's backward in CUDA C++; without a GPU of the kind, thread by thread on a CPU."""

import ctypes
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bayesmem.ops.triton import covariance_pairs_cuda as pairs_cuda
from bayesmem.ops.triton import cuda_source
from bayesmem.ops.triton.covariance_chain import Chained
from bayesmem.ops.triton.covariance_config import chain_config
from bayesmem.ops.triton.covariance_pairs_cuda import CHAIN, PREPARE, TOKEN, TOKENS
from bayesmem.ops.triton.covariance_prepare import Prepared, prepare
from bayesmem.ops.triton.covariance_tokens import TokenGradients, settle_kernel, tokens
from bayesmem.ops.triton.spans import Spans, spans_of
from ops.triton.emulation import COMPILER, HERE

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HOPPER = DEVICE.type == "cuda" and torch.cuda.get_device_capability() == pairs_cuda.CAPABILITY
RENEW = pairs_cuda.RENEW
PAIRS = 3e-5  # relative: what pairs are wrong by, 2^-17 a product, over a few chunks
NAMES = ("sent", "met", "trace", "overlap", "d_initial")


def run(folder: Path, name: str, key_dim: int, blocks: int, args: list[Tensor | int]) -> None:
    """The kernel on this GPU, or every thread a fiber."""
    if HOPPER:
        launch = pairs_cuda.pairs_kernel(name, key_dim, TOKENS, "bf16x3", DEVICE)
        assert launch is not None
        launch(blocks, args)
        return
    assert COMPILER, "the emulation needs a C++ compiler: apt-get install g++"
    files = ("cuda_on_cpu.h", "pairs_on_cpu.h", pairs_cuda.SHARED, f"{name}.cu", "pairs_on_cpu_main.h")
    parts = (cuda_source.HERE / file if file.endswith(".cu") else HERE / file for file in files)
    defines = pairs_cuda.settings(name, key_dim) | {"CLUSTER": 1, "KEY_KIND": 0, "WARPGROUPS": 0, "NAME": name}
    library = folder / f"{name}.so"
    options = ["-x", "c++", "-std=c++17", "-O1", "-w", "-shared", "-fPIC", "-", "-o", str(library)]
    options += [f"-D{key}={value}" for key, value in defines.items()]
    subprocess.run([COMPILER, *options], input="\n".join(p.read_text() for p in parts).encode(), check=True)
    emulated = ctypes.CDLL(str(library))
    assert emulated.shared_size() == pairs_cuda.shared_bytes(name, key_dim), (
        "shared_bytes does not follow struct Shared"
    )
    slots = [x if isinstance(x, int) else x.data_ptr() for x in args]
    emulated.launch((ctypes.c_void_p * len(slots))(*slots), blocks)


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


@pytest.mark.parametrize(
    ("key_dim", "lengths", "heads", "reset"),
    [
        (128, (2 * TOKENS + 7, 10), 1, False),
        (128, (9 * TOKENS + 1,), 1, True),  # past a renewed overlap
        (64, (3, TOKENS, 2 * TOKENS + 5), 2, True),
    ],
)
def test_it_is_the_recurrence_in_float64(tmp_path, key_dim, lengths, heads, reset):
    if DEVICE.type == "cuda" and not HOPPER:
        pytest.skip("this GPU has no kernel of its own")
    bounds = tuple(sum(lengths[:i]) for i in range(len(lengths) + 1))
    spans = spans_of(bounds, TOKENS, DEVICE)
    x = inputs(spans_of(bounds, TOKENS, torch.device("cpu")), heads, key_dim, reset)
    assert chain_config(x["final_cov"], "bf16x3", None)["RENEW"] == RENEW
    expected = reference(x, spans_of(bounds, TOKENS, torch.device("cpu")), RENEW)
    given = [*pair(x["gain"]), x["alpha"], *pair(x["read"]), x["log_retention"], x["to_end"]]
    given = [y.to(DEVICE) for y in (*given, x["checkpoints"], x["final_cov"])]
    sent = [torch.full(given[3].mT.shape, torch.nan, dtype=torch.bfloat16, device=DEVICE) for _ in range(2)]
    rest = [torch.full_like(expected[name], torch.nan, dtype=torch.float32, device=DEVICE) for name in NAMES[1:4]]
    made = [*sent, *rest, x["d_initial"].to(DEVICE)]
    run(tmp_path, CHAIN, key_dim, len(lengths) * heads, [*given, *made, spans.seq_start, spans.chunk_first, heads])
    high, low, *found = (y.double().cpu() for y in made)
    for name, y in zip(NAMES, (high + low, *found), strict=True):
        assert torch.equal(y.isnan(), expected[name].isnan()), name
        wrong = (y - expected[name]).nan_to_num().norm() / expected[name].nan_to_num().norm()
        assert wrong <= PAIRS, (name, wrong)


def passed_on(spans: Spans, groups: int, heads: int, key_dim: int) -> tuple[dict[str, Tensor], Prepared, Chained]:
    """What the tokens read, of the sizes it has in use."""
    source = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source)

    count, chunks = spans.bounds[-1], spans.chunks
    square, gate = (chunks, heads, TOKENS, TOKENS), (count, heads)
    x = {
        "k": torch.nn.functional.normalize(normal(count, groups, key_dim), dim=-1).bfloat16(),
        "innovation_var": 0.5 + normal(*gate).abs(),
        "log_retention": -0.1 * normal(*gate).abs(),
        "process_noise": 0.1 * normal(*gate).abs(),
        "obs_noise": 0.1 + normal(*gate).abs(),
        "floor": torch.linspace(0.2, 0.6, heads),  # binds at some tokens
        "dgain": normal(count, heads, key_dim),
        "sigma": normal(*gate),
        "checkpoints": normal(chunks, heads, key_dim, key_dim),
        "dk": normal(count, heads, key_dim).bfloat16(),
    }
    x["checkpoints"] += x["checkpoints"].mT.clone()
    sums = torch.zeros(chunks, heads, 2, TOKENS)
    sums[:, :, 0] = (-0.1 * normal(chunks, heads, TOKENS).abs()).cumsum(-1)
    solve, direct = (normal(*square).tril(-1) / TOKENS**0.5 for _ in range(2))
    met = normal(*square)
    place = x | {"sums": sums, "solve": solve + torch.eye(TOKENS), "direct": direct, "met": met + met.mT}
    x = {name: y.to(DEVICE) for name, y in place.items()}
    gain, sent = (
        tuple(y.to(DEVICE) for y in pair(normal(*shape) / key_dim**0.5))
        for shape in ((count, heads, key_dim), (chunks, heads, TOKENS, key_dim))
    )
    alpha = normal(chunks, heads, key_dim, TOKENS).to(DEVICE)
    along, trace, overlap = (
        y.to(DEVICE) for y in (normal(*gate), normal(chunks, heads, key_dim), normal(chunks, heads))
    )
    read = tuple(y.to(DEVICE) for y in pair(alpha.cpu()))
    known = (x["solve"], x["direct"], None, alpha, read, None, along, along, x["sums"])
    return x, Prepared(gain, *known), Chained(sent, x["met"], trace, overlap, RENEW, None)


@pytest.mark.parametrize(
    ("key_dim", "lengths", "groups", "heads", "sigma", "added"),
    [
        (128, (TOKENS + 7,), 1, 2, True, True),
        (128, (TOKENS,), 1, 1, False, False),
        (64, (3, TOKENS + 30), 2, 2, True, True),
    ],
)
def test_tokens_are_those_of_triton(tmp_path, bfloat16, key_dim, lengths, groups, heads, sigma, added):
    if DEVICE.type == "cuda" and not HOPPER:
        pytest.skip("this GPU has no kernel of its own")
    bounds = tuple(sum(lengths[:i]) for i in range(len(lengths) + 1))
    spans = spans_of(bounds, TOKENS, DEVICE)
    x, prepared, chained = passed_on(spans, groups, heads, key_dim)
    gates = (x["log_retention"], x["process_noise"], x["obs_noise"], x["floor"])
    gradients = (x["dgain"], x["sigma"] if sigma else None, None)
    given = (x["k"], None, x["innovation_var"], gates, gradients, None, x["checkpoints"], prepared, chained, spans)
    before = x["dk"].clone() if added else None
    expected = tokens(*given, "bf16x3", {"tokens": {"num_stages": 2}}, before)

    dk = x["dk"].clone() if added else torch.full_like(x["dk"], torch.nan)
    found = TokenGradients(
        dk, *(torch.full_like(y, torch.nan) for y in gates[:3]), torch.full_like(chained.overlap, torch.nan)
    )
    turned = torch.full_like(chained.overlap, torch.nan)
    args = [
        x["k"],
        *prepared.gain,
        x["innovation_var"],
        prepared.sums,
        *gates[1:],
        x["dgain"],
        x["sigma"] if sigma else 0,
    ]
    args += [
        prepared.solve,
        prepared.direct,
        prepared.along,
        *chained.sent,
        chained.met,
        chained.trace,
        x["checkpoints"],
    ]
    args += [found.k, found.log_retention, turned, found.process_noise, found.obs_noise, found.floor]
    args += [spans.seq_start, spans.chunk_seq, spans.chunk_first, heads, groups, int(added)]
    run(tmp_path, TOKEN, key_dim, spans.chunks * heads, args)
    tables = (spans.seq_start, spans.chunk_seq, spans.chunk_first)
    sizes = {"H": heads, "C": TOKENS, "RENEW": RENEW, "num_warps": 1}
    settle_kernel[(spans.chunks, heads)](chained.overlap, turned, found.log_retention, *tables, **sizes)
    for name in ("k", "log_retention", "process_noise", "obs_noise", "floor"):
        y, exact = (getattr(of, name).double() for of in (found, expected))
        wrong = (y - exact).norm() / exact.norm()
        assert wrong <= (3e-3 if name == "k" else PAIRS), (name, wrong)  # dk is rounded to bfloat16 by either


@pytest.mark.parametrize(
    ("key_dim", "lengths", "groups", "heads", "sigma"),
    [(128, (TOKENS + 7,), 1, 2, True), (128, (TOKENS,), 1, 1, False), (64, (3, TOKENS + 30), 2, 2, True)],
)
def test_what_a_chunk_knows_is_that_of_triton(tmp_path, bfloat16, key_dim, lengths, groups, heads, sigma):
    if DEVICE.type == "cuda" and not HOPPER:
        pytest.skip("this GPU has no kernel of its own")
    bounds = tuple(sum(lengths[:i]) for i in range(len(lengths) + 1))
    spans = spans_of(bounds, TOKENS, DEVICE)
    x, passed, _ = passed_on(spans, groups, heads, key_dim)
    x["log_retention"][::9] = -60.0  # a hard reset
    gates = (x["innovation_var"], x["log_retention"], x["dgain"], x["sigma"] if sigma else None)
    expected = prepare(x["k"], None, passed.gain, *gates, None, spans, "bf16x3", {"prepare": {"num_stages": 2}})

    names = ("solve", "direct", "alpha", "to_end", "along", "sums")
    made = [torch.full_like(getattr(expected, name), torch.nan) for name in names]
    read = [torch.full_like(y, torch.nan) for y in expected.read]
    args = [x["k"], *passed.gain, *gates[:3], gates[3] if sigma else 0, *made[:3], *read, *made[3:]]
    args += [spans.seq_start, spans.chunk_seq, spans.chunk_first, heads, groups]
    run(tmp_path, PREPARE, key_dim, spans.chunks * heads, args)
    held = [(name, y, getattr(expected, name)) for name, y in zip(names, made, strict=True)]
    held += [("read", *(high.double() + low.double() for high, low in (read, expected.read)))]
    for name, y, exact in held:
        wrong = (y.double() - exact.double()).norm() / exact.double().norm()
        assert wrong <= PAIRS, (name, wrong)


def test_what_they_leave_to_the_others():
    for name in (PREPARE, CHAIN, TOKEN):
        assert (pairs_cuda.pairs_kernel(name, 128, TOKENS, "bf16x3", DEVICE) is not None) == HOPPER
        assert pairs_cuda.pairs_kernel(name, 128, TOKENS, "tf32x3", DEVICE) is None
        assert pairs_cuda.pairs_kernel(name, 96, TOKENS, "bf16x3", DEVICE) is None
        assert pairs_cuda.pairs_kernel(name, 128, 32, "bf16x3", DEVICE) is None

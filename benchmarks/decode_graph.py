"""One token in place inside a CUDA graph, as a decoder runs it: the kernel shared by a cluster, Triton's, and fla's.

    python benchmarks/decode_graph.py FILE

First holds the cluster kernel to a float64 loop; then times 50 tokens a graph, 20 replays, the same belief all along
(so that a small one stays in the L2 cache). Rows go to FILE, one JSON object a line.
"""

import json
import sys
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bayesmem.ops.triton.decode import decode_step

DEVICE = torch.device("cuda", 0)
TOKENS, REPLAYS = 50, 20
HEADS, SIZE = 8, 128
CLOSE = {torch.float32: 5e-6, torch.bfloat16: 5e-3, torch.float16: 1e-3}  # of o, of the largest; states: float32's
SPLITS = [{"cluster": c, "threads": t} for c, t in ((8, 128), (8, 256), (4, 128), (4, 256), (2, 256), (2, 512))]


def inputs(sequences: int, groups: int, heads: int, K: int, V: int, dtype: torch.dtype, seed: int) -> list[Tensor]:
    """q, k, v, log_decay, log_retention, process_noise, obs_noise of one token."""
    source = torch.Generator(DEVICE).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(sequences, *shape, generator=source, device=DEVICE)

    q, k = (normalize(normal(groups, K), dim=-1).to(dtype) for _ in range(2))
    decay, retention = -0.1 * normal(heads).abs(), -0.05 * normal(heads).abs()
    return [q, k, normal(heads, V).to(dtype), decay, retention, -torch.expm1(2 * retention), 0.1 * normal(heads).exp()]


def beliefs(sequences: int, heads: int, K: int, V: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance to begin with."""
    source = torch.Generator(DEVICE).manual_seed(7)
    mean = torch.randn(sequences, heads, K, V, generator=source, device=DEVICE)
    return mean, torch.eye(K, device=DEVICE).repeat(sequences, heads, 1, 1)


def exact(mean: Tensor, cov: Tensor, x: list[Tensor], floor: Tensor) -> tuple[Tensor, ...]:
    """One token in float64: mean, covariance, o, variance, innovation variance, energy."""
    q, k, v, decay, retention, noise, r = (y.double() for y in x)
    q, k = (y.repeat_interleave(v.shape[1] // y.shape[1], 1) for y in (q, k))
    keep, decay = (2 * retention).exp()[..., None], decay.exp()[..., None]
    r = torch.maximum(r, floor.double() * k.square().sum(-1))
    u = keep * (cov @ k[..., None])[..., 0] + noise[..., None] * k
    s = (k * u).sum(-1) + r
    gain = u / s[..., None]
    identity = torch.eye(k.shape[-1], device=DEVICE, dtype=torch.float64)
    cov = keep[..., None] * cov + noise[..., None, None] * identity - u[..., None] * gain[..., None, :]
    e = v - decay * (mean.mT @ k[..., None])[..., 0]
    mean = decay[..., None] * mean + gain[..., None] * e[..., None, :]
    o, var = (mean.mT @ q[..., None])[..., 0], (q * (cov @ q[..., None])[..., 0]).sum(-1)
    return mean, cov, o, var, s, e.square().sum(-1)


def check(add: Callable[..., None]) -> bool:
    """Eight tokens by the cluster kernel and by float64, at the sizes of use and at awkward ones."""
    good = True
    cases = [
        (2, 2, 64, 64, torch.bfloat16, (False, False)),
        (2, 2, 128, 128, torch.bfloat16, (False, False)),
        (1, 4, 128, 128, torch.float32, (True, True)),
        (2, 2, 256, 256, torch.float16, (True, False)),
        (1, 2, 72, 40, torch.bfloat16, (True, True)),
        (1, 2, 256, 512, torch.float32, (False, True)),
    ]
    for groups, heads, K, V, dtype, wanted in cases:
        for cluster in (2, 4, 8):
            mean, cov = beliefs(3, heads, K, V)
            truth = mean.double(), cov.double()
            floor, errors = torch.full((heads,), 0.05, device=DEVICE), dict.fromkeys(("o", "var", "s", "energy"), 0.0)
            what = {"G": groups, "H": heads, "K": K, "V": V, "dtype": str(dtype), "cluster": cluster}
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message="bayesmem")
                if not used(3, groups, heads, K, V, dtype, wanted, {"cluster": cluster}):
                    if K * K // cluster <= 16384 and K * V // cluster <= 16384:
                        add(check="float64 loop", **what, ok=False, reason="the cluster kernel was not used")
                        good = False
                    continue
                for step in range(8):
                    x = inputs(3, groups, heads, K, V, dtype, step)
                    *truth, o, var, s, energy = exact(*truth, x, floor)
                    got = decode_step(*x, floor, mean, cov, None, "full", *wanted, tuning={"cluster": cluster})
                    for (name, one), other in zip(zip(errors, got, strict=True), (o, var, s, energy), strict=True):
                        if one is not None:
                            errors[name] = max(errors[name], off(one, other))
            errors |= {"mean": off(mean, truth[0]), "cov": off(cov, truth[1])}
            symmetric = torch.equal(cov, cov.mT)
            ok = symmetric and all(e <= CLOSE[dtype if n == "o" else torch.float32] for n, e in errors.items())
            add(
                check="float64 loop",
                **what,
                ok=ok,
                symmetric=symmetric,
                **{n: float(f"{e:.1e}") for n, e in errors.items()},
            )
            good = good and ok
    return good


def used(sequences, groups, heads, K, V, dtype, wanted, tuning) -> bool:  # type: ignore[no-untyped-def]
    """Whether the cluster kernel takes such inputs."""
    from bayesmem.ops.triton.decode_cluster import cluster_kernel

    q, k, v, *_ = inputs(sequences, groups, heads, K, V, dtype, 0)
    mean, cov = beliefs(sequences, heads, K, V)
    return cluster_kernel(q, k, v, mean.new_ones(heads), mean, cov, *wanted, tuning) is not None


def off(got: Tensor, expected: Tensor) -> float:
    """Largest error, relative to the largest number; not finite where ``got`` is not."""
    return ((got.double() - expected).abs().max() / expected.abs().max()).nan_to_num(float("inf")).item()


def microseconds(call: Callable[[], object]) -> float:
    """Of one call in a graph of TOKENS: the median of REPLAYS replays, each between events."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(TOKENS):
            call()
    graph.replay()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(REPLAYS + 1)]
    marks[0].record()
    for mark in marks[1:]:
        graph.replay()
        mark.record()
    torch.cuda.synchronize()
    times = sorted(a.elapsed_time(b) for a, b in pairwise(marks))
    return times[REPLAYS // 2] * 1e3 / TOKENS


def peer(sequences: int, x: list[Tensor]) -> Callable[[], object] | None:
    """One token by fla's fused recurrent Gated DeltaNet, or ``None`` where there is no fla or it fails."""
    try:
        from fla.ops.gated_delta_rule import fused_recurrent_gated_delta_rule as rule
    except ImportError:
        return None
    q, k, v, decay = (y[:, None].contiguous() for y in x[:4])
    beta, state = torch.rand_like(decay), beliefs(sequences, HEADS, SIZE, SIZE)[0]

    def call() -> object:
        return rule(q, k, v, decay, beta=beta, scale=1.0, initial_state=state, output_final_state=True)

    try:
        call()
    except Exception as reason:  # a peer must not end our run
        print(f"fla left out: {reason}")
        return None
    return call


@torch.no_grad()
def main() -> None:
    """Check, time, record, and print a table."""
    if len(sys.argv) != 2 or not torch.cuda.is_available():
        raise SystemExit("usage, on a machine with a GPU: python benchmarks/decode_graph.py FILE")
    out = Path(sys.argv[1])
    out.parent.mkdir(parents=True, exist_ok=True)

    def add(**row: object) -> None:
        row = {"card": torch.cuda.get_device_name(DEVICE), "torch": torch.__version__, **row}
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def say(**row: object) -> None:
        add(**row)
        print(row, flush=True)

    good = check(say)
    print(f"\nmicroseconds a token, H = {HEADS}, K = V = {SIZE}, bfloat16 streams, in a CUDA graph")
    names = ["chosen", "triton", *(f"{s['cluster']} x {s['threads']}" for s in SPLITS), "fla"]
    print("sequences".rjust(9), *(name.rjust(9) for name in names), flush=True)
    for sequences in (1, 2, 4, 8, 16, 32, 64, 256):
        x = inputs(sequences, HEADS, HEADS, SIZE, SIZE, torch.bfloat16, 0)
        floor = torch.full((HEADS,), 1e-4, device=DEVICE)
        line = []
        for name, tuning in zip(names[:-1], [None, {"cluster": 0}, *SPLITS], strict=True):
            mean, cov = beliefs(sequences, HEADS, SIZE, SIZE)

            def call(tuning=tuning, mean=mean, cov=cov, x=x, floor=floor) -> object:  # type: ignore[no-untyped-def]
                return decode_step(*x, floor, mean, cov, None, "full", False, False, tuning=tuning)

            line.append(microseconds(call))
            split = tuning or {}
            what = name if name in ("chosen", "triton") else "cluster"
            add(what=what, sequences=sequences, cluster=split.get("cluster"), threads=split.get("threads"), us=line[-1])
        call = peer(sequences, x)
        if call is not None:
            line.append(microseconds(call))
            add(what="fla", sequences=sequences, cluster=None, threads=None, us=line[-1])
        print(f"{sequences:9}", *(f"{us:9.2f}" for us in line), flush=True)
    if not good:
        raise SystemExit("the cluster kernel does not agree with float64: see the rows above")


if __name__ == "__main__":
    main()

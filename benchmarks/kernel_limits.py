"""What the kernels bear, on a GPU: long sequences, hard inputs, less precision, and where the time goes.

Run ``python benchmarks/kernel_limits.py --out FILE`` on a machine with a GPU; records go to FILE, one a line.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.profiler import ProfilerActivity, profile

from bayesmem.ops import Additive, Assumptions, PriorMixing, bayesian_filter
from bayesmem.ops.covariance_pass import covariance_pass
from bayesmem.ops.triton import covariance_cuda as cuda
from bayesmem.ops.triton import cuda_source
from bayesmem.ops.triton.covariance_cuts import cut_room
from bayesmem.ops.triton.spans import dense_spans
from bayesmem.report.records import Records

HERE, EXPERIMENT = Path(__file__).parent, "kernel_limits"
DEVICE = torch.device("cuda", 0)


def inputs(batch: int, length: int, heads: int, size: int, seed: int, kind: str = "mild") -> dict[str, Tensor]:
    """bfloat16 streams; ``hard`` repeats three keys with a noise of 1e-4, forgets nothing, and resets now and then."""
    source = torch.Generator(device=DEVICE).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, device=DEVICE)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=source, device=DEVICE)

    shape = (batch, length, heads)
    x = {name: normalize(normal(*shape, size), dim=-1).bfloat16() for name in ("q", "k")} | {
        "v": normal(*shape, size).bfloat16()
    }
    x |= {
        "log_decay": -0.1 * uniform(*shape),
        "obs_noise": 0.1 + uniform(*shape),
        "log_retention": -0.01 * uniform(*shape),
    }
    if kind != "mild":
        x["k"] = x["k"][:, torch.arange(length, device=DEVICE) % 3].contiguous()
        x["obs_noise"] = torch.full(shape, 1e-4, device=DEVICE)
        x["log_retention"], x["log_decay"] = torch.zeros(shape, device=DEVICE), torch.zeros(shape, device=DEVICE)
    if kind == "mixed":  # hard, with resets, huge values and long keys in between
        x["log_retention"][:, ::97] = x["log_decay"][:, ::89] = -60.0
        x["v"][:, ::101] *= 1e3
        x["k"][:, ::103] *= 30
    return x


def filtered(x: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Outputs and all gradients of one call forward and backward."""
    leaves = {name: t.detach().requires_grad_() for name, t in x.items()}
    streams = (leaves[name] for name in ("q", "k", "v", "log_decay", "obs_noise"))
    o = bayesian_filter(*streams, Assumptions(process_noise=PriorMixing(leaves["log_retention"])), backend="triton").o
    return o, list(torch.autograd.grad(o.float().square().mean(), list(leaves.values())))


def milliseconds(run: Any, repeats: int = 5) -> float:
    """Median of ``repeats`` timed calls after one more."""
    run()
    times = []
    for _ in range(repeats):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop))
    return sorted(times)[repeats // 2]


def linear(add: Any) -> None:
    """Time of forward and backward as T grows at one sequence of 8 heads."""
    for length in (4096, 8192, 16_384, 32_768, 65_536):
        x = inputs(1, length, 8, 128, 0)
        add(
            "linear in T",
            {"B": 1, "H": 8, "K": 128, "V": 128, "T": length},
            {"forward_backward_ms": milliseconds(lambda x=x: filtered(x), 3)},
        )


def ten_million(add: Any) -> None:
    """Ten million tokens and more, hard cases among them: how many outputs and gradients are not finite."""
    tokens = bad = seed = 0
    while tokens < 10_000_000:
        o, gradients = filtered(inputs(8, 4096, 8, 128, seed, ("mild", "hard", "mixed")[seed % 3]))
        bad += sum(int((~t.isfinite()).sum()) for t in (o, *gradients))
        tokens, seed = tokens + 8 * 4096, seed + 1
    add("not finite", {"B": 8, "T": 4096, "H": 8, "K": 128, "calls": seed}, {"tokens": tokens, "not_finite": bad})


def precision(add: Any) -> None:
    """Gains by one TF32 product in place of three, against float64 over 65,536 tokens."""
    whole = "s.lo = as_bits(x - as_float(s.hi));"
    for kind in ("mild", "hard"):
        x = inputs(1, 65_536, 1, 64, 0, kind)
        noise = torch.zeros_like(x["obs_noise"]) if kind == "hard" else -torch.expm1(2 * x["log_retention"])
        first = (
            t.double().transpose(1, 2)
            for t in (x["k"], x["log_retention"][..., None], noise[..., None], x["obs_noise"])
        )
        exact = covariance_pass(*first, torch.eye(64, dtype=torch.float64, device=DEVICE).expand(1, 1, 64, 64))
        for name, instead in (("3xTF32", whole), ("TF32", "s.lo = 0u;")):
            gain = by_cuda(x, noise, whole, instead)
            off = (gain.double() - exact.gain[0].transpose(0, 1)).norm() / exact.gain.norm()
            add("precision", {"products": name, "inputs": kind, "T": 65_536, "K": 64}, {"gain_error": off.item()})


def by_cuda(x: dict[str, Tensor], noise: Tensor, old: str, new: str) -> Tensor:
    """Gains of the CUDA kernel with one line of its source put in place of another."""
    (batch, length, heads, size), settings = x["k"].shape, cuda.settings(x["k"].shape[-1], x["k"].dtype, 1, groups=True)
    text = "".join(f"#define {name} {value}\n" for name, value in settings.items())
    text += "".join(
        (cuda_source.HERE / file).read_text() for file in (*cuda.machine(settings), *cuda.sources(settings))
    )
    assert old in text
    with cuda_source.without_toolkit():
        kernel = torch.cuda._compile_kernel(
            text.replace(old, new), "covariance_forward", compute_capability=cuda_source.architecture(DEVICE.index)
        )
    kernel.set_shared_memory_config(cuda.shared_bytes(settings))

    spans = dense_spans(batch, length, 64, DEVICE)
    start = torch.eye(size, device=DEVICE).expand(batch, heads, size, size).contiguous()
    floor = torch.zeros(heads, device=DEVICE)
    gain = torch.empty(batch * length, heads, size, device=DEVICE)
    rest = [
        torch.empty(batch * length, heads, device=DEVICE),
        start.new_empty(spans.chunks, heads, size, size),
        torch.empty_like(start),
    ]
    gates = [t.reshape(-1, heads).contiguous() for t in (x["log_retention"], noise, x["obs_noise"])]
    arguments = [x["k"], *gates, floor, start, spans.seq_start, spans.chunk_first, gain, gain.new_empty(0), *rest]
    arguments += cut_room(x["k"], batch * heads, 1)
    arguments += [heads, heads, 4, 1]
    kernel(
        grid=(batch * heads, 1, 1), block=(2 * size + 64, 1, 1), args=arguments, shared_mem=cuda.shared_bytes(settings)
    )
    return gain


def stages(add: Any) -> None:
    """Time of every kernel of one call, forward and backward."""
    for batch, size in ((8, 128), (32, 128), (2, 128), (8, 64), (8, 256)):
        x = inputs(batch, 4096, 8, size, 0)
        filtered(x)
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            filtered(x)
            torch.cuda.synchronize()
        spent = {event.key[:60]: event.self_device_time_total / 1e3 for event in seen.key_averages()}
        own = {name: round(ms, 4) for name, ms in spent.items() if "at::" not in name and ms > 0.003}
        others = round(sum(spent.values()) - sum(own.values()), 4)
        add("stages", {"B": batch, "T": 4096, "H": 8, "K": size, "V": size}, own | {"others_ms": others})


def unlike_structures(add: Any) -> None:
    """The other structures and noises the kernels know, forward and backward."""
    x = inputs(8, 4096, 8, 128, 0)
    kept = PriorMixing(x["log_retention"])
    kinds = {
        "full": Assumptions(process_noise=kept),
        "full, additive": Assumptions(process_noise=Additive(0.01)),
        "diagonal": Assumptions("diagonal", kept),
        "isotropic": Assumptions("isotropic", kept),
        "reset": Assumptions("reset", kept),
    }
    leaves = [x[name].requires_grad_() for name in ("q", "k", "v", "log_decay", "obs_noise")]
    for name, assumptions in kinds.items():
        for outputs in ((), ("predictive_var",)):

            def run(a: Assumptions = assumptions, outputs: tuple[str, ...] = outputs) -> None:
                out = bayesian_filter(*leaves, a, outputs=outputs, backend="triton")
                loss = out.o.float().sum() + (0 if out.predictive_var is None else out.predictive_var.sum())
                torch.autograd.grad(loss, leaves)

            settings = {"structure": name, "outputs": list(outputs), "B": 8, "T": 4096, "H": 8, "K": 128}
            add("structures", settings, {"forward_backward_ms": milliseconds(run)})


def main() -> None:
    """Run every part, record, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "records" / "kernel_limits.jsonl")
    parser.add_argument("--only", nargs="*", help="parts to run, by name")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("kernel_limits needs a GPU; `bayesmem bench` times the CPU back ends.")
    records = Records(options.out)

    def add(name: str, settings: dict[str, Any], figures: dict[str, Any]) -> None:
        records.add(EXPERIMENT, name, settings, figures)
        print(name, settings, figures, flush=True)

    parts = {f.__name__: f for f in (precision, ten_million, linear, stages, unlike_structures)}
    for name in options.only or parts:
        parts[name](add)


if __name__ == "__main__":
    main()

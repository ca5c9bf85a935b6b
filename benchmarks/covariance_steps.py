"""The CUDA covariance pass step by step: what each part costs, and where the clock of every kind of warp stands.

    python benchmarks/covariance_steps.py FILE

Times the kernel with warps, with warpgroups and with wide steps (B = 8, 2, 32; T = 4096, H = 8, bf16), then the last
with one part of its source left out at a time (its results are wrong then, its time is what counts), then writes down
the clock at named places of one of its steps. Rows go to FILE, one JSON object a line. The places are those of the
source as it is now: a changed line is told by name.
"""

import json
import statistics
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bayesmem.ops.triton import covariance_cuda as cuda
from bayesmem.ops.triton import cuda_source
from bayesmem.ops.triton.spans import dense_spans
from bayesmem.report.records import context

DEVICE = torch.device("cuda", 0)
LENGTH, HEADS, CHUNK, STEP = 4096, 8, 64, 50
WAYS = ("warps", "warpgroups", "wide")
ROOM = 256  # bytes of shared memory for the clocks

NO_UPDATE = tuple(
    (f"    group_product<KDIM, -1>(p, {half}[c], s.{table} + at, WRITE_PLANE);\n", "")
    for half, table in (("lo", "write"), ("hi", "rest"), ("hi", "write"))
)
NO_PRODUCT = tuple(
    (f"      group_product<STEP, 1>({name}, {half}[n], b, KEY_PLANE);\n", "")
    for name, half in (("pk", "hi"), ("small", "lo"))
)
PIVOTS = "    for (int j = block; j < block + {}; ++j) {{"
PARTS: dict[str, tuple[tuple[str, str], ...]] = {
    "nothing": (),
    "update of P": NO_UPDATE,
    "P k": NO_PRODUCT,
    "update of P and P k": NO_UPDATE + NO_PRODUCT,
    "elimination": ((PIVOTS.format(8), PIVOTS.format(1)),),
    "products of keys": (("    compare_keys(s, n, c);\n  }", "  }"),),
    "gains to memory": (("if (8 * m + (i & 1) < live", "if (n >= 9999999 && 8 * m + (i & 1) < live"),),
    "checkpoints": (("int due = steps_a_chunk ? 0 : -1;", "int due = -1;"),),
    "fences": (('asm volatile("fence.proxy.async.shared::cta;" ::: "memory");', ""),),
    "sharing of registers": (("192   // a thread", "0  // a thread"),),
}
# Who, a line, whether the clock is read after it, and what is then done.
PLACES = [
    ("matrix", "    float keep = 1.f, add = 0.f;\n    if (n >= 0) {", False, "top"),
    ("matrix", "      keep = s.step[n & 1][0], add", False, "factors are there"),
    ("matrix", "#pragma unroll\n      for (int m = 0; m < NT; ++m) {\n        const int row", False, "gains"),
    ("matrix", "    if (n >= -1) wait_at<WRITTEN, MATRIX_AND(2)>();\n", False, "W"),
    ("matrix", "    if (n >= -1) wait_at<WRITTEN, MATRIX_AND(2)>();\n", True, "W is there"),
    ("matrix", "    begin_update(p, w, s, g, t);\n", False, "P scaled"),
    ("matrix", "    begin_update(p, w, s, g, t);\n", True, "update begun"),
    ("matrix", "        wait_at<SEEN, MATRIX_AND(1)>();\n", False, "gains to memory"),
    ("matrix", "        wait_at<SEEN, MATRIX_AND(1)>();\n", True, "X is there"),
    ("matrix", "        contract<false>(s.cross[warp], y, later, g, t, own);", False, "Y"),
    ("matrix", "    end_update(p);\n", False, "Z"),
    ("matrix", "    end_update(p);\n", True, "update ended"),
    ("matrix", "      times_keys(ahead, p, later, g, t);  // P k and quad", False, "checkpoint"),
    ("matrix", "      contract<true>(s.quad[warp], ahead, later, g, t, own);\n", False, "P k"),
    ("matrix", "      contract<true>(s.quad[warp], ahead, later, g, t, own);\n", True, "quad"),
    ("matrix", "    arrive_at<QUAD, MATRIX_AND(1)>();\n", True, "keys"),
    ("crossing", "      join(s, n, c);\n", False, "top"),
    ("crossing", "      join(s, n, c);\n", True, "G"),
    ("crossing", "      crossed(e, s, odd, c);\n", False, "Z is there"),
    ("crossing", "      crossed(e, s, odd, c);\n", True, "C"),
    ("crossing", "      s.roots[c] = square;\n", False, "eliminated"),
    ("crossing", "      arrive_at<SEEN, MATRIX_AND(1)>();\n", False, "X"),
    ("whitening", "      if (n < steps - 1) arrive_at<CROSSED, MATRIX_AND(2)>();\n", False, "G is there"),
    ("whitening", "      const int token = STEP * n + c;\n", False, "eliminated"),
    ("whitening", "      arrive_at<FACTORS, MATRIX_AND(1)>();\n", False, "A and B"),
    ("whitening", "      wait_at<WRITTEN, MATRIX_AND(2)>();\n    }\n  }\n}", False, "told"),
    ("gate", "      float base[STEP];\n", False, "quad is there"),
    ("gate", "      const float rho = expf(coming[0])", False, "quad summed"),
    ("gate", "      if (n == steps) break;\n", False, "G is there"),
    ("gate", "    compare_keys(s, n, c);\n  }", False, "base"),
]
TICKS = ("  float step[2][4]; ", "  unsigned tick[64];\n  float step[2][4]; ")


def inputs(batch: int, size: int) -> dict[str, Tensor]:
    """What the kernel reads, but the first covariance."""
    source = torch.Generator(DEVICE).manual_seed(0)
    tokens = batch * LENGTH
    k = normalize(torch.randn(tokens, HEADS, size, generator=source, device=DEVICE), dim=-1).bfloat16()
    retention = -0.05 * torch.rand(tokens, HEADS, generator=source, device=DEVICE)
    noise = 0.01 + torch.rand(tokens, HEADS, generator=source, device=DEVICE)
    return {
        "k": k,
        "log_retention": retention,
        "process_noise": -torch.expm1(2 * retention),
        "obs_noise": noise,
        "floor": torch.full((HEADS,), 1e-4, device=DEVICE),
    }


def clocked(text: str) -> str:
    """The source with the clock read at every place, and told in place of the first gains."""
    for number, (who, line, after, _) in enumerate(PLACES):
        assert text.count(line) == 1, f"{line!r} occurs {text.count(line)} times in the source; mend PLACES"
        once = "THREAD == 0" if who == "matrix" else "c == 0"
        mark = f"    if ({once} && n == {STEP}) s.tick[{number}] = ticks();\n"
        text = text.replace(line, line + mark if after else mark + line)
    end = "  store_rows(final + (long long)bh * K * K, p, own + g, 2 * t);\n"
    assert text.count(end) == 1
    text = text.replace(end, end + "  last_meeting();\n  if (THREAD < 64) gain[THREAD] = as_float(s.tick[THREAD]);\n")
    text = text.replace(*TICKS)
    helpers = (
        'DEVICE void last_meeting() { asm volatile("bar.sync 9, %0;" ::"r"(2 * KDIM) : "memory"); }\n'
        'DEVICE unsigned ticks() { unsigned x; asm volatile("mov.u32 %0, %%clock;" : "=r"(x)); return x; }\n'
    )
    return text.replace("DEVICE void sync_total()", helpers + "DEVICE void sync_total()")


def settings(size: int, way: str) -> dict[str, int]:
    """What a way is compiled with."""
    return cuda.settings(size, torch.bfloat16, 1, groups=way != "warps", wide=way == "wide")


@lru_cache
def kernel(size: int, way: str, edits: tuple[tuple[str, str], ...] = (), clocks: bool = False) -> Callable[..., None]:
    """The kernel of the source with its lines exchanged."""
    chosen = settings(size, way)
    text = "".join(f"#define {name} {value}\n" for name, value in chosen.items())
    text += "".join((cuda_source.HERE / file).read_text() for file in (*cuda.machine(chosen), *cuda.sources(chosen)))
    for old, new in edits:
        assert old in text, f"{old!r} is not in the source; mend PARTS"
        text = text.replace(old, new)
    with cuda_source.without_toolkit():
        made = torch.cuda._compile_kernel(
            clocked(text) if clocks else text,
            "covariance_forward",
            compute_capability=cuda_source.architecture(DEVICE.index),
        )
    made.set_shared_memory_config(cuda.shared_bytes(chosen) + ROOM)
    whole: Callable[..., None] = made
    return whole


def call(made: Callable[..., None], x: dict[str, Tensor], batch: int, way: str) -> tuple[Callable[[], None], Tensor]:
    """A launch, and the gains that it fills."""
    size = x["k"].shape[-1]
    chosen = settings(size, way)
    spans = dense_spans(batch, LENGTH, CHUNK, DEVICE)
    start = torch.eye(size, device=DEVICE).expand(batch, HEADS, size, size).contiguous()
    gain = torch.empty(batch * LENGTH, HEADS, size, device=DEVICE)
    rest = [gain[..., 0].clone(), start.new_empty(spans.chunks, HEADS, size, size), torch.empty_like(start)]
    sizes = [HEADS, HEADS, CHUNK // chosen["STEP"]]
    arguments = [*x.values(), start, spans.seq_start, spans.chunk_first, gain, *rest, *sizes]
    shared, threads = cuda.shared_bytes(chosen) + ROOM, cuda.threads(chosen)
    return lambda: made(grid=(batch * HEADS, 1, 1), block=(threads, 1, 1), args=arguments, shared_mem=shared), gain


def milliseconds(run: Callable[[], None], count: int = 15) -> float:
    """Median of a launch."""
    for _ in range(3):
        run()
    times = []
    for _ in range(count):
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        marks[0].record()
        run()
        marks[1].record()
        torch.cuda.synchronize()
        times.append(marks[0].elapsed_time(marks[1]))
    return round(statistics.median(times), 4)


def main() -> None:
    """All of it."""
    about = {
        "command": "benchmarks/covariance_steps.py",
        "commit": context()["commit"],
        "card": torch.cuda.get_device_name(DEVICE),
        "torch": torch.__version__,
    }

    def add(**row: Any) -> None:
        with Path(sys.argv[1]).open("a") as file:
            file.write(json.dumps(about | row) + "\n")
        print(row, flush=True)

    for size in (128, 64):
        for batch in (8, 2, 32):
            x = inputs(batch, size)
            for way in WAYS:
                add(B=batch, K=size, way=way, ms=milliseconds(call(kernel(size, way), x, batch, way)[0]))
    x = inputs(8, 128)
    for name, edits in PARTS.items():
        ms = milliseconds(call(kernel(128, "wide", edits), x, 8, "wide")[0])
        add(B=8, K=128, way="wide", without=name, ms=ms)
    run, gain = call(kernel(128, "wide", clocks=True), x, 8, "wide")
    run()
    clocks = gain.view(-1)[: len(PLACES)].view(torch.int32).tolist()
    told = [
        [who, what, (clock - clocks[0] + 2**31) % 2**32 - 2**31]
        for (who, _, _, what), clock in zip(PLACES, clocks, strict=True)
    ]
    add(B=8, K=128, way="wide", step=STEP, cycles=told)


if __name__ == "__main__":
    main()

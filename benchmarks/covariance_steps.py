"""The CUDA covariance pass step by step: what each part costs, and where the clock of every kind of warp stands.

    python benchmarks/covariance_steps.py FILE

Times the kernel with warps and with warpgroups (B = 8, 2, 32; T = 4096, H = 8, bf16), then with one part of its source
left out at a time (its results are wrong then, its time is what counts), then writes down the clock at named places
of one step. Rows go to FILE, one JSON object a line. The places are those of the source as it is now: a changed line
is told by name.
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
from bayesmem.ops.triton.covariance_cuts import cut_room
from bayesmem.ops.triton.spans import dense_spans
from bayesmem.report.records import context

DEVICE = torch.device("cuda", 0)
LENGTH, HEADS, CHUNK, STEP = 4096, 8, 64, 101
ROOM = 256  # bytes of shared memory for the clocks

NO_UPDATE = tuple(
    (f"    group_product<KDIM, -1>(p, {half}[c], s.{table} + at, WRITE_PLANE);\n", "")
    for half, table in (("lo", "write"), ("hi", "rest"), ("hi", "write"))
)
NO_PRODUCT = tuple(
    (f"      group_product<16, 1>({name}, {half}[n], b, KEY_PLANE);\n", "")
    for name, half in (("pk", "hi"), ("small", "lo"))
)
PIVOTS = "    for (int j = {}; j < 16; ++j) {{\n      const float d = shuffle(a[j], j);"
PARTS: dict[str, tuple[tuple[str, str], ...]] = {
    "nothing": (),
    "update of P": NO_UPDATE,
    "P k": NO_PRODUCT,
    "update of P and P k": NO_UPDATE + NO_PRODUCT,
    "elimination": ((PIVOTS.format(0), PIVOTS.format(15)),),
    "products of keys": (("    if (n < steps) compare_keys(s, n, lane);", ""),),
    "gains to memory": (
        ("    if (n >= 0) {\n      const long long at", "    if (n >= 9999999) {\n      const long long at"),
    ),
    "checkpoints": (("int due = steps_a_chunk ? 0 : -1;", "int due = -1;"),),
    "fences": (('asm volatile("fence.proxy.async.shared::cta;" ::: "memory");', ""),),
}
# Who, a line, whether the clock is read after it, and what is then done.
PLACES = [
    ("matrix", "    if (n >= -1) sync_all();  // the factors", False, "top"),
    ("matrix", "    accept();\n    if (n >= 0) {\n      const int odd", False, "all met"),
    ("matrix", "      publish();\n    }\n    if (n >= -1) meet();", False, "W"),
    ("matrix", "    if (n >= -1) meet();  // all of W is there\n", True, "matrix warps met"),
    ("matrix", "    begin_update(p, w, s, g, t);\n", False, "P scaled"),
    ("matrix", "    begin_update(p, w, s, g, t);\n", True, "update begun"),
    ("matrix", "        sync_total();  // X is there\n", False, "gains to memory"),
    ("matrix", "        sync_total();  // X is there\n", True, "X is there"),
    ("matrix", "      contract(s.cross[(n + 1) % CROSS][warp], y, later, g, t, own);", False, "Y"),
    ("matrix", "    end_update(p);\n", False, "Z"),
    ("matrix", "    end_update(p);\n", True, "update ended"),
    ("matrix", "    times_keys(ahead, p, later, g, t);  // P k and quad", False, "checkpoint"),
    ("matrix", "    contract(s.quad[warp], ahead, later, g, t, own);\n", False, "P k"),
    ("matrix", "    contract(s.quad[warp], ahead, later, g, t, own);\n", True, "quad"),
    (
        "matrix",
        "    store_key(s.key[(n + 3) % BUFFERS], key_token, key_column, coming);\n    publish();\n",
        True,
        "keys",
    ),
    ("factor", "    if (n > 0) seen = cross_keys(s, n - 1, lane);\n", False, "all met"),
    ("factor", "    if (n > 0) seen = cross_keys(s, n - 1, lane);\n", True, "X"),
    ("factor", "    float pivot = 1.f;  // D_c\n", False, "G"),
    ("factor", "    if (half == 0) {\n      const int token = 16 * n + c;\n", False, "eliminated"),
    ("factor", "    prepare_mix(s.mix[n & 1], s, lane);\n", True, "A and B"),
    ("gate", "    float base[8], gram[8];\n", False, "all met"),
    ("gate", "    if (n < steps) compare_keys(s, n, lane);\n", False, "base"),
    ("gate", "    if (n < steps) compare_keys(s, n, lane);\n", True, "products of keys"),
]


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
        once = "THREAD == 0" if who == "matrix" else "lane == 0"
        mark = f"    if ({once} && n == {STEP}) s.tick[{number}] = ticks();\n"
        text = text.replace(line, line + mark if after else mark + line)
    end = "  store_rows(final + (long long)bh * K * K, p, own + g, 2 * t);\n"
    assert text.count(end) == 1
    text = text.replace(
        end, end + "  last_meeting();\n  if (BLOCK == 0 && THREAD < 64) gain[THREAD] = as_float(s.tick[THREAD]);\n"
    )
    text = text.replace("  float step[2][4]; ", "  unsigned tick[64];\n  float step[2][4]; ")
    helpers = (
        'DEVICE void last_meeting() { asm volatile("bar.sync 6, %0;" ::"r"(THREADS - 64) : "memory"); }\n'
        'DEVICE unsigned ticks() { unsigned x; asm volatile("mov.u32 %0, %%clock;" : "=r"(x)); return x; }\n'
    )
    return text.replace("DEVICE void sync_total()", helpers + "DEVICE void sync_total()")


@lru_cache
def kernel(
    size: int, groups: bool, edits: tuple[tuple[str, str], ...] = (), clocks: bool = False
) -> Callable[..., None]:
    """The kernel of the source with its lines exchanged."""
    chosen = cuda.settings(size, torch.bfloat16, 1, groups)
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


def call(
    made: Callable[..., None], x: dict[str, Tensor], batch: int, groups: bool
) -> tuple[Callable[[], None], Tensor]:
    """A launch, and the gains that it fills, the high halves first."""
    size = x["k"].shape[-1]
    chosen = cuda.settings(size, torch.bfloat16, 1, groups)
    spans = dense_spans(batch, LENGTH, CHUNK, DEVICE)
    start = torch.eye(size, device=DEVICE).expand(batch, HEADS, size, size).contiguous()
    gain = torch.empty(2, batch * LENGTH, HEADS, size, dtype=torch.bfloat16, device=DEVICE)
    rest = [torch.empty_like(x["obs_noise"]), start.new_empty(spans.chunks, HEADS, size, size), torch.empty_like(start)]
    arguments = [
        *x.values(),
        start,
        spans.seq_start,
        spans.chunk_first,
        *gain,
        *rest,
        *cut_room(x["k"], batch * HEADS, 1),
    ]
    arguments += [HEADS, HEADS, CHUNK // 16, 1]
    shared, threads = cuda.shared_bytes(chosen) + ROOM, 2 * chosen["KDIM"] + 64
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
            for groups in (False, True):
                ms = milliseconds(call(kernel(size, groups), x, batch, groups)[0])
                add(B=batch, K=size, warpgroups=groups, ms=ms)
    x = inputs(8, 128)
    for name, edits in PARTS.items():
        add(B=8, K=128, warpgroups=True, without=name, ms=milliseconds(call(kernel(128, True, edits), x, 8, True)[0]))
    for size in (128, 64):
        x = inputs(8, size)
        run, gain = call(kernel(size, True, clocks=True), x, 8, True)
        run()
        clocks = gain.view(-1).view(torch.int32)[: len(PLACES)].tolist()
        told = [
            [who, what, (clock - clocks[0] + 2**31) % 2**32 - 2**31]
            for (who, _, _, what), clock in zip(PLACES, clocks, strict=True)
        ]
        add(B=8, K=size, warpgroups=True, step=STEP, cycles=told)


if __name__ == "__main__":
    main()

"""Every Triton kernel as its compiler leaves it: registers, spills, shared memory, and a stack pointer taken for data.

    python benchmarks/compiled_kernels.py FILE
    PYTHONPATH=OTHER_TRITON python benchmarks/compiled_kernels.py FILE --dtypes float32 --sizes 5,2 16,16

No GPU is needed. The ptxas of Triton 3.6 compiled one variant of a kernel into code that reckons with R1, the stack
pointer, as half of an address, and so reads outside of shared memory; this finds such. All launches are recorded
(``kernel_launches.py``), compiled by whichever Triton is imported, and disassembled (``machine_code.py``). A record of
the run goes to FILE. Fails, and names the variants, if any misuses the stack pointer, takes more shared memory than the
device has, or does not compile. Not seen: the CUDA sources, which NVRTC compiles; variants that differ in which whole
numbers are multiples of 16 only; code that is wrong in any other way.
"""

import argparse
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import torch
import triton

from bayesmem.ops.triton import device
from bayesmem.report.records import Records
from kernel_launches import PATHS, Launch, recording
from machine_code import Compiled, assembler, compiled

SMALL = ("5,2", "5,7", "16,16", "20,9", "32,32", "40,24", "64,64")
SIZES = (*SMALL, "96,80", "128,128", "128,512", "200,48", "256,256", "256,32")
DTYPES = ("float32", "bfloat16", "float16")
SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB that a program may take, by capability


def options() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the JSONL file that a record is added to")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="K,V")
    parser.add_argument("--paths", nargs="+", choices=PATHS, default=list(PATHS))
    parser.add_argument("--chunks", nargs="+", type=int, choices=(16, 32, 64), help="default: what the device takes")
    parser.add_argument("--kernels", nargs="+", metavar="NAME", help="only these functions")
    parser.add_argument("--capability", type=int, choices=SHARED, default=90)
    parser.add_argument("--jobs", type=int, default=1, help="compilations side by side")
    return parser.parse_args()


@contextmanager
def standing_in(capability: int) -> Iterator[None]:
    """Block sizes are chosen for a device of this capability, with an H100's 132 multiprocessors."""
    limits = device.Device((capability // 10, capability % 10), 132, SHARED[capability] * 1024)
    device.limits.cache_clear()
    with patch.object(device, "Device", lambda *_: limits):  # what a CPU passes for
        yield
    device.limits.cache_clear()


def recorded(given: argparse.Namespace) -> list[Launch]:
    """All launches, each kind once."""
    chunks = given.chunks or [64 if SHARED[given.capability] * 1024 >= device.LARGE_SHARED else 32]
    launches: dict[str, Launch] = {}
    for dtype in given.dtypes:
        for size in given.sizes:
            key_dim, value_dim = map(int, size.split(","))
            for chunk in chunks:
                for path in given.paths:
                    caller = f"{path} {dtype} K={key_dim} V={value_dim} C={chunk}"
                    with recording(caller, launches), standing_in(given.capability):
                        PATHS[path](getattr(torch, dtype), key_dim, value_dim, chunk)
    return [x for x in launches.values() if not given.kernels or x.kernel.fn.__name__ in given.kernels]


def fault(made: Compiled, shared: int) -> str | None:
    """What is wrong with it, in words."""
    if made.error:
        return f"does not compile: {made.error}"
    if made.misuses:
        return f"stack pointer as data: {'; '.join(made.misuses[:3])} ({len(made.misuses)} in all)"
    return f"{made.shared} bytes of shared memory, of {shared}" if made.shared > shared else None


def table(made: list[tuple[Launch, Compiled]]) -> dict[str, dict[str, int | str]]:
    """Of every kernel how many variants, and its most, each by itself; the variant that spills most."""
    rows: dict[str, dict[str, int | str]] = {}
    for name in sorted({launch.name for launch, _ in made}):
        mine = [pair for pair in made if pair[0].name == name]
        worst = max(mine, key=lambda pair: pair[1].spills)
        most = {what: max(getattr(x, what) for _, x in mine) for what in ("registers", "stack", "spills", "shared")}
        rows[name] = {"variants": len(mine), **most, "worst": worst[0].caller if worst[1].spills else ""}
    return rows


def main() -> None:
    """Record, compile, print, and keep a record."""
    given = options()
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise SystemExit("unset TRITON_INTERPRET: kernels that are interpreted cannot be compiled.")
    torch.manual_seed(0)
    launches = recorded(given)
    print(len(launches), "variants; Triton", triton.__version__, "ptxas", assembler(), flush=True)
    made, faults = [], {}
    with ProcessPoolExecutor(given.jobs, get_context("fork"), _keep, (launches, given.capability)) as pool:
        for launch, result in zip(launches, pool.map(_compiled, range(len(launches))), strict=True):
            made.append((launch, result))
            if wrong := fault(result, SHARED[given.capability] * 1024):
                variant = f"{launch.name} [{launch.caller}] {launch.options}"
                faults[variant] = wrong
                print("FAULT", variant, wrong, flush=True)
    rows = table(made)
    print(f"{'kernel':48} variants registers  stack spills shared  of most spills")
    for name, row in rows.items():
        print("{:48} {:8} {:9} {:6} {:6} {:6}  {}".format(name, *row.values()))
    settings = {name: getattr(given, name) for name in ("dtypes", "sizes", "paths", "chunks", "kernels")}
    settings |= {"triton": triton.__version__, "ptxas": assembler(), "seed": 0}
    Records(given.out).add("compiled_kernels", f"sm_{given.capability}", settings, {"kernels": rows, "faults": faults})
    if faults:
        raise SystemExit(f"{len(faults)} of {len(launches)} variants are at fault, named above.")


_work: tuple[list[Launch], int]


def _keep(launches: list[Launch], capability: int) -> None:
    """In a process of the pool, which has the kernels from the fork: they cannot be sent."""
    global _work
    _work = launches, capability


def _compiled(place: int) -> Compiled:
    launches, capability = _work
    return compiled(launches[place], capability)


if __name__ == "__main__":
    main()

"""The search for misused stack pointers, on listings made up and on a kernel compiled without a GPU."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bayesmem.ops import triton as kernels
from bayesmem.report.records import Records

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
CLEAN = """
\t.headerflags\t@"EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;
        /*0020*/                   VIADD R1, R1, 0xffffffe0 ;
        /*0030*/                   IADD3 R1, PT, PT, R1, -0x50, RZ ;
        /*0040*/                   STL.64 [R1+0x8], R172 ;
        /*0050*/              @!P0 LDL.LU R10, [R1] ;
        /*0060*/                   UIADD3 UR1, UR4, 0x2, URZ ;
        /*0070*/                   IADD3 R6, P0, R10, R11, RZ ;
"""
MISUSED = (
    "IADD3 R6, P0, R1, 0x2, RZ",  # as of Triton 3.6
    "IADD3.X R36, R1, -0x80000000, RZ, P0, !PT",
    "R2UR UR9, R1",
    "LDS R1, [R4]",
    "IADD3 R1, R1, R5, RZ",
    "STG.E desc[UR4][R2.64], R1",
    "STL [R1+0x4], R1",
)
# One process for all, in which Triton does not interpret: what is recorded, then the command.
COMMAND = """
import sys
import torch
sys.path.insert(0, sys.argv[1])
from kernel_launches import PATHS, recording
launches = {}
for sizes in ((torch.float32, 5, 2, 32), (torch.bfloat16, 64, 16, 64), (torch.bfloat16, 200, 16, 64)):
    for path, run in PATHS.items():
        with recording(path, launches):
            run(*sizes)
print(*{launch.kernel.fn.__name__ for launch in launches.values()})
import compiled_kernels
del sys.argv[1]
compiled_kernels.main()
"""
WANTED = [
    "--dtypes",
    "float32",
    "--sizes",
    "5,2",
    "--paths",
    "isotropic",
    "--kernels",
    "readout_kernel",
    "_forward_kernel",
]


def test_a_stack_pointer_is_an_address_or_moves(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from machine_code import misuses

    assert misuses(CLEAN) == []
    for text in MISUSED:
        for guard in ("", "@P1 ", "@!UP0 "):
            assert misuses(f"{CLEAN}        /*0080*/  {guard}{text} ;\n{CLEAN}") == [text]


def test_every_kernel_is_recorded_and_some_are_compiled(tmp_path: Path):
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(tmp_path / "cache")
    command = [sys.executable, "-c", COMMAND, BENCHMARKS, tmp_path / "out.jsonl", *WANTED]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    source = "".join(path.read_text() for path in Path(kernels.__file__).parent.glob("*.py"))
    every = set(re.findall(r"@triton\.jit.*\n@no_type_check\ndef (\w+_kernel)\(", source))
    assert every and set(done.stdout.splitlines()[0].split()) == every
    (record,) = Records(tmp_path / "out.jsonl").all()
    rows = record.figures["kernels"]
    assert record.name == "sm_90" and record.figures["faults"] == {}
    assert rows.keys() == {"isotropic._forward_kernel", "mean_forward.readout_kernel"}
    assert all(row["variants"] >= 1 and 16 <= row["registers"] <= 255 for row in rows.values())

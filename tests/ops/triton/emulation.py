"""Runs the CUDA kernels of the covariance on a CPU: compiled by the C++ compiler, every CUDA thread a fiber."""

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from bayesmem.ops.triton import covariance_cuda, cuda_source, hopper
from bayesmem.ops.triton.covariance_cuts import cut_room
from bayesmem.ops.triton.covariance_products import Pair
from bayesmem.ops.triton.spans import Spans

HERE = Path(__file__).parent
COMPILER = shutil.which("g++") or shutil.which("clang++")
POINTERS, SIZES = 15, ("H", "G", "steps_a_chunk", "segments", "initial_stride")


class Arguments(ctypes.Structure):
    """As ``struct Arguments`` of cuda_on_cpu_main.h."""

    _fields_ = [(f"tensor{i}", ctypes.c_void_p) for i in range(POINTERS)] + [(name, ctypes.c_int) for name in SIZES]


@lru_cache
def compiled(
    folder: Path, key_dim: int, dtype: torch.dtype, cluster: int, groups: bool, mend: bool, nats: int = 15
) -> ctypes.CDLL:
    """The kernel with its launch as a library in ``folder``."""
    assert COMPILER, "the emulation needs a C++ compiler: apt-get install g++"
    settings = covariance_cuda.settings(key_dim, dtype, cluster, groups) | {"MEND": int(mend), "NATS": nats}
    own = [cuda_source.HERE / file for file in covariance_cuda.sources(settings)]
    parts = (HERE / "cuda_on_cpu.h", *own, HERE / "cuda_on_cpu_main.h")
    source = "\n".join(part.read_text() for part in parts)
    library = folder / ("_".join(map(str, settings.values())) + ".so")
    defines = [f"-D{name}={value}" for name, value in settings.items()]
    options = ["-x", "c++", "-std=c++17", "-O1", "-w", "-shared", "-fPIC", *defines, "-", "-o", str(library)]
    subprocess.run([COMPILER, *options], input=source.encode(), check=True)
    return ctypes.CDLL(str(library))


def emulated_forward(
    folder: Path,
    k: Tensor,
    log_retention: Tensor,
    process_noise: Tensor,
    obs_noise: Tensor,
    floor: Tensor,
    initial_cov: Tensor,
    spans: Spans,
    cluster: int = 1,
    together: bool = False,
    halved: bool = False,
    keep: bool = True,
    segments: int = 1,
    backwards: bool = False,
    nats: int = 15,
) -> tuple[Pair, Tensor, Tensor, Tensor]:
    """As ``covariance_forward``, four warps multiplying ``together`` if they can.

    With ``segments`` blocks may come ``backwards``, and warm up on fewer ``nats`` than the kernel asks for. Outputs
    start as NaN, so that what is not written shows.
    """
    (count, groups, key_dim), heads = k.shape, log_retention.shape[1]
    nan = float("nan")
    gain = torch.full((count, heads, key_dim), nan, dtype=torch.bfloat16 if halved else torch.float32)
    low = gain.clone() if halved and keep else None
    outputs = (
        torch.full((count, heads), nan),
        torch.full((spans.chunks if keep else 0, heads, key_dim, key_dim), nan),
        torch.full((spans.sequences, heads, key_dim, key_dim), nan),
    )
    initial_cov, stride = covariance_cuda.laid_out(initial_cov)
    given = (k, log_retention, process_noise, obs_noise, floor, initial_cov, spans.seq_start, spans.chunk_first)
    second = low if low is not None else gain if halved else gain.new_empty(0)
    chains = spans.sequences * heads
    tensors = [x.contiguous() for x in (*given, gain, second, *outputs, *cut_room(k, chains, segments))]
    expected = covariance_cuda.shared_bytes(covariance_cuda.settings(key_dim, k.dtype, cluster, together))
    sizes = (heads, groups, spans.chunk_size // 16 if keep else 0, segments, stride)
    for mend in (False, True)[: 1 if segments == 1 else 2]:
        library = compiled(folder, key_dim, k.dtype, cluster, together, mend, nats)
        ctypes.c_int.in_dll(library, "backwards").value = int(backwards)
        assert library.shared_size() == expected, "shared_bytes does not follow struct Shared"
        arguments = Arguments(*(x.data_ptr() for x in tensors), *sizes)
        library.launch(ctypes.byref(arguments), chains * (1 if mend else segments))
    return (gain, low), *outputs


def run_stage(folder: Path, stage: ModuleType, sizes: tuple[int, ...], *rest, blocks: int, args) -> None:
    """A stage of the backward on this GPU, if that is a Hopper, or emulated.

    Args:
        folder: for what is compiled.
        stage: the module of its settings and ``shared_bytes``, which take ``sizes``.
        sizes: K, and where the stage has it V.
        rest: what its launcher asks for between ``sizes`` and the device.
        blocks: of threads.
        args: of the kernel.
    """
    device = torch.device("cuda", 0)
    if torch.cuda.is_available():
        launch = getattr(stage, f"cuda_{stage.NAME.split('_')[-1]}")(*sizes, *rest, device)
        assert launch is not None
        launch(blocks, args)
        return
    emulated_hopper(folder, stage.NAME, stage.settings(*sizes), stage.shared_bytes(*sizes), blocks, args)


def emulated_hopper(
    folder: Path,
    name: str,
    settings: dict[str, int],
    shared_bytes: int,
    blocks: int,
    args: Sequence[Tensor | int],
    backwards: bool = False,
) -> None:
    """A kernel of ``hopper`` with its arguments, in so many blocks, every thread a fiber."""
    assert COMPILER, "the emulation needs a C++ compiler: apt-get install g++"
    own = [cuda_source.HERE / file for file in hopper.files(name)]
    parts = (HERE / "cuda_on_cpu.h", HERE / "hopper_on_cpu.h", *own, HERE / "hopper_on_cpu_main.h")
    library = folder / f"{name}.so"
    options = ["-x", "c++", "-std=c++17", "-O1", "-w", "-shared", "-fPIC", "-", "-o", str(library)]
    options += [f"-D{key}={value}" for key, value in (settings | {"WARPGROUPS": 0, "NAME": name}).items()]
    subprocess.run([COMPILER, *options], input="\n".join(p.read_text() for p in parts).encode(), check=True)
    emulated = ctypes.CDLL(str(library))
    ctypes.c_int.in_dll(emulated, "backwards").value = int(backwards)
    assert emulated.shared_size() == shared_bytes, "shared_bytes and struct Shared differ"
    slots = [x if isinstance(x, int) else x.data_ptr() for x in args]
    emulated.launch((ctypes.c_void_p * len(slots))(*slots), blocks)

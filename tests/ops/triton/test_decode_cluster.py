"""The decode kernel that shares a belief among blocks, thread by thread on a CPU, against the textbook step."""

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bayesmem.ops.triton import cuda_source, decode_cluster
from bayesmem.types import Belief
from ops.triton.emulation import COMPILER, HERE
from ops.triton.test_decode import CLOSE, FLOOR, PRIOR, ROUNDED, SEQUENCES, close, fresh, textbook, token

EMULATED = ("cuda_on_cpu.h", "decode_on_cpu.h", "decode_cluster.cu", "decode_on_cpu_main.h")


def compiled(folder: Path, settings: dict[str, int], delayed: int = -1) -> Callable[..., None]:
    """The launch of the kernel, every CUDA thread a fiber; one warp of the cluster goes on late from its barrier."""
    assert COMPILER, "the emulation needs a C++ compiler: apt-get install g++"
    parts = (cuda_source.HERE / name if name.endswith(".cu") else HERE / name for name in EMULATED)
    library = folder / "decode.so"
    options = ["-x", "c++", "-std=c++17", "-O1", "-w", "-shared", "-fPIC", "-", "-o", str(library)]
    options += [f"-D{name}={value}" for name, value in (settings | {"DELAYED": delayed}).items()]
    subprocess.run([COMPILER, *options], input="\n".join(p.read_text() for p in parts).encode(), check=True)
    return ctypes.CDLL(str(library)).launch


# cluster, threads, (G, H, K, V), keys, floor, predictive variance, evidence
CASES = [
    (8, 128, (1, 1, 128, 128), torch.bfloat16, True, False, False),
    (8, 128, (1, 2, 72, 40), torch.bfloat16, True, True, True),  # the last warp of all has no rows
    (4, 128, (2, 2, 64, 64), torch.float32, False, True, False),
    (2, 128, (1, 1, 20, 264), torch.float16, True, False, True),
    (8, 256, (1, 1, 256, 64), torch.float32, True, True, True),
]


@pytest.mark.parametrize(("cluster", "threads", "sizes", "dtype", "floored", "want_var", "want_evidence"), CASES)
def test_shared_beliefs_are_the_textbook_step(
    tmp_path, cluster, threads, sizes, dtype, floored, want_var, want_evidence
):
    groups, heads, key_dim, value_dim = sizes
    split = decode_cluster.Split(cluster, threads)
    last = cluster * threads // 32 - 1
    run = compiled(tmp_path, decode_cluster.settings(split, sizes, dtype, floored, want_var, want_evidence), last)
    generator = torch.Generator().manual_seed(0)
    mean, cov = fresh("full", heads, key_dim, value_dim)
    belief = Belief(mean.double(), cov.double())
    floor = torch.full((heads,), FLOOR * PRIOR)
    for _ in range(3):
        *x, obs_noise = token(groups, heads, key_dim, value_dim, dtype, generator)
        if not floored:
            obs_noise = obs_noise.clamp(min=0.01)  # never below the textbook's floor
        belief, *expected = textbook(belief, *x, obs_noise, "full")
        o = torch.full((SEQUENCES, heads, value_dim), float("nan"), dtype=dtype)
        sums = [torch.full((SEQUENCES, heads), float("nan")) for _ in range(3)]
        tensors = [*x, obs_noise, floor, mean, cov, o, *sums]
        run((ctypes.c_void_p * len(tensors))(*(y.data_ptr() for y in tensors)), SEQUENCES * heads)
        close(o, expected[0], ROUNDED[dtype])
        for got, reference, asked in zip(sums, expected[1:], (want_var, want_evidence, want_evidence), strict=True):
            if asked:
                close(got, reference, CLOSE)
            else:
                assert got.isnan().all()
    close(mean, belief.mean, CLOSE)
    close(cov, belief.cov, CLOSE)
    assert torch.equal(cov, cov.mT)


def test_fewer_blocks_a_belief_as_beliefs_become_many():
    assert [decode_cluster.split_of(n, 128, 128) for n in (8, 64, 65, 2048)] == [(8, 128), (8, 128), (4, 128), (4, 128)]
    assert decode_cluster.split_of(64, 256, 256) == (8, 256) and decode_cluster.split_of(65, 256, 256) is None
    assert [decode_cluster.split_of(n, 64, 64) for n in (8, 63, 64, 2048)] == [(8, 128), (8, 128), (2, 128), (2, 128)]


@pytest.mark.parametrize("sizes", [(130, 128), (128, 130), (260, 64), (64, 516)])
def test_sizes_that_are_not_shared(sizes):
    assert decode_cluster.split_of(8, *sizes) is None


def test_a_large_belief_is_shared_by_as_many_as_hold_it():
    assert decode_cluster.threads_of(256, 256, 2) is None
    assert decode_cluster.split_of(8, 256, 512) == (8, 512)

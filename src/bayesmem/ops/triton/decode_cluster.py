"""One token for few sequences in CUDA C++ (decode_cluster.cu): blocks that send to each other share a belief."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bayesmem.ops.triton.covariance_cuda import CLUSTER_CAPABILITY, KEY_KINDS
from bayesmem.ops.triton.cuda_source import compiled
from bayesmem.ops.triton.device import limits

SOURCES = ("covariance_prelude.cu", "decode_cluster_prelude.cu", "decode_cluster.cu")
# As measured on an H100 at K = V = 128 (benchmarks/records/decode_graph.jsonl): eight blocks a belief while all run at
# once, then four, which are quicker than one Triton program up to the 2,048 beliefs that were tried.
MOST_BLOCKS = 512
SMALL = 128  # K and V up to which four are used: other sizes than 128 were checked, not timed
MAX_KEY_DIM, MAX_VALUE_DIM = 256, 512
HELD = 32  # floats of P, and of M, that a thread has in registers


class Split(NamedTuple):
    """How a belief is shared: blocks, and the threads of each."""

    cluster: int
    threads: int


def threads_of(key_dim: int, value_dim: int, cluster: int) -> int | None:
    """Fewest threads a block that can hold their share of a belief, or ``None`` where 512 cannot."""
    columns = 4 * -(-value_dim // (4 * cluster))
    needed = max(-(-key_dim // cluster) * key_dim, columns * key_dim) / HELD
    return next((threads for threads in (128, 256, 512) if threads >= needed), None)


@lru_cache(maxsize=64)
def split_of(beliefs: int, key_dim: int, value_dim: int) -> Split | None:
    """Blocks a belief and their threads, or ``None`` where the Triton kernel is to be used."""
    if key_dim % 4 or value_dim % 4 or key_dim > MAX_KEY_DIM or value_dim > MAX_VALUE_DIM:
        return None
    many = 8 * beliefs > MOST_BLOCKS
    if many and max(key_dim, value_dim) > SMALL:
        return None
    cluster = 4 if many else 8
    threads = threads_of(key_dim, value_dim, cluster)
    return None if threads is None else Split(cluster, threads)


def settings(
    split: Split,
    sizes: tuple[int, int, int, int],
    dtype: torch.dtype,
    floor: bool,
    want_var: bool,
    want_evidence: bool,
) -> dict[str, int]:
    """What the source is compiled with; ``sizes`` are G, H, K and V."""
    groups, heads, key_dim, value_dim = sizes
    return {
        "CLUSTER": split.cluster,
        "THREADS": split.threads,
        "K": key_dim,
        "V": value_dim,
        "HEADS": heads,
        "GROUPS": groups,
        "KEY_KIND": KEY_KINDS[dtype],
        "FLOOR": int(floor),
        "WANT_VAR": int(want_var),
        "WANT_EVIDENCE": int(want_evidence),
    }


@lru_cache(maxsize=256)
def _kernel(chosen: tuple[tuple[str, int], ...], device: int) -> Callable[..., None] | None:
    return compiled("decode_cluster", SOURCES, dict(chosen), device)


def cluster_kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    floor: Tensor | None,
    mean: Tensor,
    cov: Tensor | None,
    want_var: bool,
    want_evidence: bool,
    tuning: dict[str, Any] | None,
) -> tuple[Split, Callable[..., None]] | None:
    """The split and its kernel, or ``None`` where the Triton kernel is to be used; ``cov`` is ``None`` or full.

    ``tuning`` may give a ``cluster`` (0 asks for Triton's) and ``threads``; any other of its fields asks for Triton's.
    """
    if q.device.type != "cuda" or cov is None or torch.version.cuda is None or v.dtype not in KEY_KINDS:
        return None
    if not q.dtype == k.dtype == v.dtype or limits(q.device).capability < CLUSTER_CAPABILITY:
        return None
    sequences, heads, key_dim, value_dim = mean.shape
    if not sequences * heads:
        return None
    if tuning:
        cluster = tuning.get("cluster", 0)
        if not cluster or not tuning.keys() <= set(Split._fields) or key_dim % 4 or value_dim % 4:
            return None
        threads = tuning.get("threads") or threads_of(key_dim, value_dim, cluster)
        split = None if threads is None else Split(cluster, threads)
    else:
        split = split_of(sequences * heads, key_dim, value_dim)
    # Four numbers are loaded at a time.
    if split is None or any(x.data_ptr() % 16 for x in (q, k, v, mean, cov)):
        return None
    chosen = settings(
        split, (q.shape[1], heads, key_dim, value_dim), v.dtype, floor is not None, want_var, want_evidence
    )
    kernel = _kernel(tuple(chosen.items()), q.device.index)
    return None if kernel is None else (split, kernel)


def launch(split: Split, kernel: Callable[..., None], tensors: list[Tensor | None], beliefs: int) -> None:
    """Run the kernel on its tensors, in its order; in place of one that it does not use stands another."""
    given = [tensors[0] if x is None else x for x in tensors]
    with torch.cuda.device(given[0].device):  # type: ignore[union-attr]
        kernel(grid=(beliefs * split.cluster, 1, 1), block=(split.threads, 1, 1), args=given)

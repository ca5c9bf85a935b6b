"""One token for few sequences in CUDA C++ (decode_cluster.cu): blocks that send to each other share a belief."""

from collections.abc import Callable
from functools import lru_cache, partial
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
SMALL = 128  # K and V up to which four are used: other sizes than 128 and 64 were checked, not timed
# As measured on an H200 at K = V = 64 (benchmarks/records/decode_called.jsonl): two blocks a belief are quicker than
# four or eight at 64 beliefs and from 256 on, and as quick at 128.
SMALLER, LEAST_OF_SMALLER = 64, 64  # K and V up to which, and beliefs from which, two are used
MAX_KEY_DIM, MAX_VALUE_DIM = 256, 512
HELD = 32  # floats of P, and of M, that a thread has in registers

Launch = Callable[[list[Tensor]], None]


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
    few = max(key_dim, value_dim) <= SMALLER and beliefs >= LEAST_OF_SMALLER
    cluster = 2 if few else 4 if many else 8
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


@lru_cache(maxsize=1024)
def _launch(
    beliefs: int,
    sizes: tuple[int, int, int, int],
    dtype: torch.dtype,
    flags: tuple[bool, bool, bool],
    tuning: tuple[tuple[str, Any], ...],
    device: int,
) -> Launch | None:
    """All of ``cluster_kernel`` that is not in the tensors' addresses; ``flags`` are FLOOR and what is asked for."""
    _, _, key_dim, value_dim = sizes
    if torch.version.cuda is None or dtype not in KEY_KINDS or not beliefs:
        return None
    if limits(torch.device("cuda", device)).capability < CLUSTER_CAPABILITY:
        return None
    if tuning:
        given = dict(tuning)
        cluster = given.get("cluster", 0)
        if not cluster or not given.keys() <= set(Split._fields) or key_dim % 4 or value_dim % 4:
            return None
        threads = given.get("threads") or threads_of(key_dim, value_dim, cluster)
        split = None if threads is None else Split(cluster, threads)
    else:
        split = split_of(beliefs, key_dim, value_dim)
    if split is None:
        return None
    kernel = _kernel(tuple(settings(split, sizes, dtype, *flags).items()), device)
    if kernel is None:
        return None
    return partial(kernel, (beliefs * split.cluster, 1, 1), (split.threads, 1, 1))


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
) -> Launch | None:
    """The kernel, to be called with its tensors in its order (in place of one that it does not use, another).

    ``None`` where the Triton kernel is to be used; ``cov`` is ``None`` or full. ``tuning`` may give a ``cluster`` (0
    asks for Triton's) and ``threads``; any other of its fields asks for Triton's.
    """
    if not q.is_cuda or cov is None or not q.dtype == k.dtype == v.dtype:
        return None
    sequences, heads, key_dim, value_dim = mean.shape
    # Four numbers are loaded at a time.
    if any([x.data_ptr() % 16 for x in (q, k, v, mean, cov)]):
        return None
    return _launch(
        sequences * heads,
        (q.shape[1], heads, key_dim, value_dim),
        v.dtype,
        (floor is not None, want_var, want_evidence),
        tuple(tuning.items()) if tuning else (),
        q.get_device(),
    )

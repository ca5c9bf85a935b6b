"""The covariance pass in CUDA C++ (covariance_shared.cu tells how it works)."""

from collections.abc import Callable, Mapping
from functools import lru_cache

import torch
from torch import Tensor

from bayesmem.ops.triton.covariance_cuts import cut_room
from bayesmem.ops.triton.covariance_products import Pair
from bayesmem.ops.triton.cuda_source import compiled
from bayesmem.ops.triton.device import limits
from bayesmem.ops.triton.spans import Spans

KEY_KINDS = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
LEAST_CAPABILITY = (8, 0)  # TF32 tensor cores
CLUSTER_CAPABILITY = (9, 0)  # blocks that share their memory
GROUP_CAPABILITY = (9, 0)  # products of four warps: Hopper's alone
GROUP_SIZES = ((64, 1), (128, 1), (256, 4))  # padded key dims and clusters whose blocks have whole warpgroups
# Those that are faster so. At 64 two blocks share a multiprocessor by warps, and by warpgroups, which take more
# registers, one does (1.06 and 1.56 ms for 256 chains; benchmarks/records/covariance_steps.jsonl).
GROUP_CHOSEN = ((128, 1), (256, 4))
WHOLE_KEY_DIM, MAX_KEY_DIM = 128, 256  # what the registers of one multiprocessor hold, and of a cluster of four


def settings(key_dim: int, dtype: torch.dtype, cluster: int, groups: bool = False) -> dict[str, int]:
    """What the sources are compiled with; every block of a cluster has whole warps of 16 channels.

    With ``groups`` four warps multiply together, where keys are of 16 bits and channels fill warpgroups.
    """
    whole = 16 * cluster
    padded = -(-key_dim // whole) * whole
    split = dtype == torch.float32
    return {
        "CLUSTER": cluster,
        "K": key_dim,
        "KDIM": padded,
        "SPLIT_KEYS": int(split),
        "KEY_KIND": KEY_KINDS[dtype],
        "WARPGROUPS": int(groups and not split and (padded, cluster) in GROUP_SIZES),
        "BLOCKS": 2 if padded == 64 and cluster == 1 else 1,  # that share a multiprocessor
        "MEND": 0,
    }


def machine(chosen: Mapping[str, int]) -> tuple[str, ...]:
    """Files that say what the GPU gives; the tests have others for a CPU."""
    return ("covariance_prelude.cu", *(("covariance_wgmma.cu",) if chosen["WARPGROUPS"] else ()))


def sources(chosen: Mapping[str, int]) -> tuple[str, ...]:
    """Files of the kernel, in order, that follow those of the machine."""
    products = "covariance_warpgroups.cu" if chosen["WARPGROUPS"] else "covariance_warps.cu"
    before = ("covariance_keys.cu", "covariance_cuts.cu", "covariance_shared.cu", products)
    return (*before, "covariance_matrix.cu", "covariance_factor.cu", "covariance_forward.cu")


def cluster_size(key_dim: int) -> int:
    """Blocks that share one covariance: four where it does not fit one multiprocessor's registers.

    Sharing a smaller one among idle multiprocessors was tried and is slower (docs/notes/003-kernels.md): a barrier
    over a cluster costs more than the products it takes off each block.
    """
    return 4 if key_dim > WHOLE_KEY_DIM else 1


def shared_bytes(chosen: Mapping[str, int]) -> int:
    """Size of ``struct Shared`` under these settings."""
    padded = chosen["KDIM"]
    keys, write = (17 * padded, 16 * padded + 16) if chosen["WARPGROUPS"] else (16 * (padded + 8), 24 * padded)
    partial = (padded // 16) * (2 if chosen["CLUSTER"] == 1 else 3)
    tables = 20 * 128 + 2 * 16 * 24 + 4 * 16 + 2 * 4 + 18  # the last for runs and cuts
    return 4 * (4 * keys + 2 * write + 320 * (partial + 6) + tables)


def kernel_name(chosen: Mapping[str, int]) -> str:
    """Of what the sources compile to."""
    return "covariance_mend" if chosen["MEND"] else "covariance_forward"


def chosen_settings(key_dim: int, dtype: torch.dtype, cluster: int, device: int) -> dict[str, int]:
    """The settings on this GPU."""
    capability = limits(torch.device("cuda", device)).capability
    plain = settings(key_dim, dtype, cluster)
    if capability != GROUP_CAPABILITY or (plain["KDIM"], cluster) not in GROUP_CHOSEN:
        return plain
    return settings(key_dim, dtype, cluster, groups=True)


@lru_cache
def _kernel(
    key_dim: int, dtype: torch.dtype, cluster: int, device: int, mend: bool = False
) -> tuple[Callable[..., None], int, int] | None:
    """Compiled, with threads a block and its shared bytes; ``None`` where it could not be."""
    chosen = chosen_settings(key_dim, dtype, cluster, device) | {"MEND": int(mend)}
    size = shared_bytes(chosen)
    kernel = compiled(kernel_name(chosen), (*machine(chosen), *sources(chosen)), chosen, device, size)
    return None if kernel is None else (kernel, 2 * chosen["KDIM"] // cluster + 64, size)


def chosen_cluster(k: Tensor) -> int | None:
    """Blocks a covariance for these keys, or ``None`` where only the Triton kernel can take them."""
    device = k.device
    return _chosen_cluster(k.shape[-1], k.dtype, device) if device.type == "cuda" else None


@lru_cache
def _chosen_cluster(key_dim: int, dtype: torch.dtype, device: torch.device) -> int | None:
    if torch.version.cuda is None or dtype not in KEY_KINDS:
        return None
    capability, _, shared = limits(device)
    most = MAX_KEY_DIM if capability >= CLUSTER_CAPABILITY else WHOLE_KEY_DIM
    if capability < LEAST_CAPABILITY or key_dim > most:
        return None
    cluster = cluster_size(key_dim)
    if shared_bytes(chosen_settings(key_dim, dtype, cluster, device.index)) > shared:
        return None
    return None if _kernel(key_dim, dtype, cluster, device.index) is None else cluster


def cuda_forward(
    cluster: int,
    segments: int,
    k: Tensor,
    log_retention: Tensor,
    process_noise: Tensor,
    obs_noise: Tensor,
    floor: Tensor,
    initial_cov: Tensor,
    spans: Spans,
    gain: Pair,
    innovation_var: Tensor,
    checkpoints: Tensor,
    final_cov: Tensor,
) -> None:
    """Launch the kernel, ``cluster`` blocks a (sequence, head), or with one block so many segments of it at most.

    ``gain`` and the last three tensors are filled (if not empty). Gains are a pair of keys of bfloat16 alone.
    """
    (_, groups, key_dim), heads = k.shape, log_retention.shape[1]
    initial_cov, stride = laid_out(initial_cov)
    tensors = [k, log_retention, process_noise, obs_noise, floor, initial_cov]
    high, low = gain
    if low is None:  # the kernel is told of high halves alone by their own address, of float32 by none
        low = high if high.dtype == torch.bfloat16 else high.new_empty(0)
    chains = spans.sequences * heads
    if segments > 1 and _kernel(key_dim, k.dtype, cluster, k.device.index, True) is None:
        segments = 1
    outputs = [high, low, innovation_var, checkpoints, final_cov, *cut_room(k, chains, segments)]
    sizes = (heads, groups, spans.chunk_size // 16 if len(checkpoints) else 0, segments, stride)
    for mend in (False, True)[: 1 if segments == 1 else 2]:
        found = _kernel(key_dim, k.dtype, cluster, k.device.index, mend)
        assert found is not None  # of ``chosen_cluster``
        kernel, threads, shared = found
        kernel(
            grid=(chains * (1 if mend else segments * cluster), 1, 1),
            block=(threads, 1, 1),
            args=[*tensors, spans.seq_start, spans.chunk_first, *outputs, *sizes],
            shared_mem=shared,
        )


def laid_out(initial_cov: Tensor) -> tuple[Tensor, int]:
    """Initial covariances as the kernel reads them, and how far one sequence's lie from the next: 0 where all share."""
    if initial_cov.stride(0) == 0:
        return initial_cov[:1].contiguous(), 0
    return initial_cov.contiguous(), initial_cov[0].numel()

"""What the CUDA C++ kernels of the backward share (hopper_prelude.cu, covariance_pairs.cu): where they run, and how."""

from collections.abc import Callable

import torch

from bayesmem.ops.triton.covariance_cuda import KEY_KINDS
from bayesmem.ops.triton.cuda_source import compiled
from bayesmem.ops.triton.device import limits

CAPABILITY = (9, 0)  # products of four warps with what lies in shared memory
KEY_DIMS = (64, 128)  # whole warpgroups
TOKENS = 64
MACHINE = ("covariance_prelude.cu", "covariance_wgmma.cu", "hopper_prelude.cu")  # what the GPU gives; tests have others
MORE = {  # what a kernel has besides covariance_pairs.cu
    "covariance_chain": ("covariance_keys.cu", "covariance_cuts.cu", "covariance_chain_run.cu"),
    "covariance_prepare": ("covariance_inverse.cu",),
    "covariance_tokens": ("covariance_tokens_parts.cu",),
    "mean_local": ("mean_local_parts.cu",),
}
TOKEN_PLANE = 2 * (8 * TOKENS + 8)  # bytes of 8 numbers of the contraction, a row for every token


def files(name: str) -> tuple[str, ...]:
    """The kernel's source, in order, that follows what the machine gives."""
    source = name.removesuffix("_mend")
    return ("covariance_pairs.cu", *MORE.get(source, ()), f"{source}.cu")


def hopper_settings(key_dim: int, blocks: int, keys: torch.dtype = torch.bfloat16) -> dict[str, int]:
    """What every such source is compiled with; so many blocks share a multiprocessor."""
    machine = {"CLUSTER": 1, "KEY_KIND": KEY_KINDS[keys], "BLOCKS": blocks}
    return {"K": key_dim, "KDIM": key_dim, "THREADS": 2 * key_dim, **machine}


def fits_pairs(key_dim: int, chunk: int, prec: str, device: torch.device) -> bool:
    """Whether such a kernel can do it, or a Triton one has to.

    Args:
        key_dim: K.
        chunk: tokens a chunk.
        prec: of the products: only those of pairs of bfloat16 are made here.
        device: where.
    """
    return prec == "bf16x3" and fits(key_dim, chunk, device)


def fits(key_dim: int, chunk: int, device: torch.device) -> bool:
    """As ``fits_pairs``, whatever the products are of."""
    if device.type != "cuda" or torch.version.cuda is None or key_dim not in KEY_DIMS:
        return False
    return chunk == TOKENS and limits(device).capability == CAPABILITY


def hopper_kernel(name: str, settings: dict[str, int], shared: int, device: int) -> Callable[..., None] | None:
    """What launches a kernel over so many blocks with its arguments, or ``None`` where it does not compile."""
    kernel = compiled(name, (*MACHINE, *files(name)), settings, device, shared)
    if kernel is None:
        return None
    block = (settings["THREADS"], 1, 1)
    return lambda blocks, args: kernel(grid=(blocks, 1, 1), block=block, args=args, shared_mem=shared)

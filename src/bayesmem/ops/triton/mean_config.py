"""Block sizes, warps and stages of the kernels of the mean pass, by shape, dtype and device.

Nothing is tuned at run time, and what is chosen is kept. Products of float32 take six times the registers of 16-bit
ones, so that their blocks are narrow. The chains load tiles of a whole chunk while they work on the one before (two
stages) wherever shared memory holds both.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from bayesmem.ops.triton.device import LARGE_SHARED, limits
from bayesmem.ops.triton.sizes import block, cdiv
from bayesmem.ops.triton.spans import Spans

Config = dict[str, int]
Tuning = dict[str, Config]


def prepare_config(k: Tensor, tuning: Tuning | None) -> Config:
    """Of ``prepare_kernel``: BK."""
    return put_over("prepare", _prepare(k.shape[-1], k.dtype), tuning)


@lru_cache
def _prepare(key: int, dtype: torch.dtype) -> Config:
    wide = dtype == torch.float32
    return {"BK": block(key, 32 if wide else 64), "num_warps": 8 if wide else 4, "num_stages": 2}


def readout_config(k: Tensor, value: int, tuning: Tuning | None) -> Config:
    """Of ``readout_kernel``: BK, BV."""
    return put_over("readout", _readout(k.shape[-1], k.dtype, value), tuning)


@lru_cache
def _readout(key: int, dtype: torch.dtype, value: int) -> Config:
    most = 32 if dtype == torch.float32 else 64
    return {"BK": block(key, most), "BV": block(value, 64), "num_warps": 4, "num_stages": 2}


def local_config(k: Tensor, value: int, tuning: Tuning | None) -> Config:
    """Of ``local_kernel``: BK, BV. Its five accumulators fill the registers at BK = 64.

    With 8 warps at BK = 16 the ptxas of Triton 3.6 takes the stack pointer for half of an address, and the kernel reads
    outside of shared memory (``benchmarks/compiled_kernels.py`` finds such).
    """
    wide = k.dtype == torch.float32
    most = 16 if wide else 64 if limits(k.device).shared >= LARGE_SHARED else 32
    size = block(k.shape[-1], 32 if wide else 64)
    warps = 8 if wide and size > 16 else 4
    return put_over("local", {"BK": size, "BV": block(value, most), "num_warps": warps, "num_stages": 2}, tuning)


def chain_config(
    name: str, k: Tensor, value: int, heads: int, spans: Spans, tiles: int, tuning: Tuning | None
) -> Config:
    """Of the chain ``name``: BV.

    Args:
        name: the key in ``tuning``.
        k: keys ``[N, G, K]``.
        value: V.
        heads: H.
        spans: where sequences and chunks lie.
        tiles: how many C x K tiles a chunk loads; beside them it loads one C x C tile fewer, and at most two of C x BV.
        tuning: what is put over the defaults.
    """
    kind = (k.shape[-1], k.dtype, k.device)
    return put_over(name, _chain(name, *kind, value, spans.sequences * heads, spans.chunk_size, tiles), tuning)


@lru_cache
def _chain(
    name: str, size: int, dtype: torch.dtype, device: torch.device, value: int, chains: int, chunk: int, tiles: int
) -> Config:
    wide, key = dtype == torch.float32, block(size)
    _, processors, shared = limits(device)
    width = 16 if wide else block(value, 64 if key <= 128 and shared >= LARGE_SHARED else 32)
    # The widest block that leaves most multiprocessors a program: each reads the same C x K tiles once more.
    while width > 32 and chains * cdiv(value, width) < 0.75 * processors:
        width //= 2
    loaded = tiles * chunk * key + (tiles - 1) * chunk * chunk + 2 * chunk * width
    held = (2 * loaded + key * width) * dtype.itemsize
    warps = 8 if key > 128 and not wide else 4
    if name == "chain_backward" and key > 128 and not wide:
        # Triton 3.6 compiles narrower blocks into reads outside of shared memory (seen on an H100).
        return {"BV": 64, "num_warps": 8, "num_stages": 1}
    return {"BV": width, "num_warps": warps, "num_stages": 2 if held <= shared else 1}


def put_over(kernel: str, config: dict[str, Any], tuning: Tuning | None) -> dict[str, Any]:
    """The configuration of a kernel with what ``tuning`` has for it; not to be changed, it may be kept."""
    return config | tuning.get(kernel, {}) if tuning else config

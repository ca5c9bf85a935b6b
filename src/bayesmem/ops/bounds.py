"""Offsets of packed sequences as the host knows them: to read them from a GPU is to wait for all that it has to do."""

from collections import OrderedDict

import torch
from torch import Tensor

_read: OrderedDict[tuple[object, ...], tuple[Tensor, tuple[int, ...]]] = OrderedDict()
KEPT = 8


def bounds_of(cu_seqlens: Tensor) -> tuple[int, ...]:
    """``cu_seqlens`` as numbers, read from a GPU once and kept while they are in use.

    Read anew where nothing tells of a change: of inference tensors, and in a graph's capture, which refuses it.
    """
    if cu_seqlens.device.type != "cuda" or torch.compiler.is_compiling():
        return tuple(cu_seqlens.tolist())
    if cu_seqlens.is_inference() or torch.cuda.is_current_stream_capturing():
        return tuple(cu_seqlens.tolist())
    x = cu_seqlens
    key = (x.device, x.dtype, x.data_ptr(), x.shape, x.stride(), x._version)
    if key not in _read:
        # The entry holds the tensor, so that its address is not given to another while the numbers live.
        _read[key] = (cu_seqlens, tuple(cu_seqlens.tolist()))
        while len(_read) > KEPT:
            _read.popitem(last=False)
    return _read[key][1]

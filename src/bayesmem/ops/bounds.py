"""Offsets of packed sequences as the host knows them: to read them from a GPU is to wait for all that it has to do."""

from collections import OrderedDict

import torch
from torch import Tensor

_read: OrderedDict[int, tuple[Tensor, int, tuple[int, ...]]] = OrderedDict()
KEPT = 8  # tensors, with all the memory that they are views of; the ones used last


def bounds_of(cu_seqlens: Tensor) -> tuple[int, ...]:
    """``cu_seqlens`` as numbers, read from a GPU once for every tensor, and again when torch has changed it.

    What changes a tensor behind torch's back (``.data``, a kernel of the caller's) is not seen. Inference tensors are
    read every time, and so are all in a graph's capture, which refuses it.
    """
    x = cu_seqlens
    if x.device.type != "cuda" or torch.compiler.is_compiling():
        return tuple(x.tolist())
    if x.is_inference() or torch.cuda.is_current_stream_capturing():
        return tuple(x.tolist())
    known = _read.get(id(x))  # an entry holds its tensor, so that no other has its id
    if known is None or known[1] != x._version:
        known = _read[id(x)] = x, x._version, tuple(x.tolist())
    _read.move_to_end(id(x))
    while len(_read) > KEPT:
        _read.popitem(last=False)
    return known[2]

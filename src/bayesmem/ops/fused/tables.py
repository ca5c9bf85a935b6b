"""What the operators share: chunk tables kept from call to call, and the shapes of gradients."""

from collections import OrderedDict

import torch
from torch import Tensor

from bayesmem.ops.triton.spans import Spans, dense_spans, spans_of

Grad = Tensor | None
_tables: OrderedDict[tuple[int, int, int, int], tuple[Tensor, Spans]] = OrderedDict()
KEPT_TABLES = 8


def chunk_count(tokens: int, sequences: int, chunk: int, packed: bool) -> int:
    """Chunks that a pass makes room for: of packed sequences the most there can be, whatever their lengths."""
    if packed:
        return -(-tokens // chunk) + sequences
    return sequences * -(-tokens // sequences // chunk)


def spans_at(tokens: int, cu_seqlens: Tensor | None, batch: int, chunk: int, device: torch.device) -> Spans:
    """Chunk tables; those of packed sequences are read from the device once, and kept while they are in use."""
    if cu_seqlens is None:
        return dense_spans(batch, tokens // batch, chunk, device)
    key = (cu_seqlens.data_ptr(), cu_seqlens.shape[0], cu_seqlens._version, chunk)
    if key not in _tables:
        room = chunk_count(tokens, cu_seqlens.shape[0] - 1, chunk, True)
        # The entry holds the tensor, so that its address is not given to another while the table lives.
        _tables[key] = (cu_seqlens, spans_of(tuple(cu_seqlens.tolist()), chunk, device, room))
        while len(_tables) > KEPT_TABLES:
            _tables.popitem(last=False)
    return _tables[key][1]


def precision_of(x: Tensor) -> str:
    """Of products of float32 tiles, by the dtype of the streams."""
    return "tf32x3" if x.dtype == torch.float32 else "tf32"


def pairs_of(k: Tensor) -> str:
    """Of the products that make the adjoint of the covariance, likewise (``covariance_products``)."""
    return "tf32x3" if k.dtype == torch.float32 else "bf16x3"


def whole(x: Grad) -> Grad:
    """A gradient laid out as the kernels read it, if there is one."""
    return None if x is None else x.contiguous()


def grouped(grad: Tensor, k: Tensor) -> Tensor:
    """Gradients per value head ``[N, H, K]``, summed over the heads that share a key."""
    if grad.shape[1] != k.shape[1]:
        grad = grad.unflatten(1, (k.shape[1], -1)).sum(2, dtype=torch.float32)
    return grad.to(k.dtype)

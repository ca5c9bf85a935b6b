"""What the operators share: chunk tables kept from call to call, and the shapes of gradients."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bayesmem.ops.bounds import bounds_of
from bayesmem.ops.triton.spans import Spans, dense_spans, packed_spans

Grad = Tensor | None


def chunk_count(tokens: int, sequences: int, chunk: int, packed: bool) -> int:
    """Chunks that a pass makes room for: of packed sequences the most there can be, whatever their lengths."""
    if packed:
        return -(-tokens // chunk) + sequences
    return sequences * -(-tokens // sequences // chunk)


def spans_at(tokens: int, cu_seqlens: Tensor | None, batch: int, chunk: int, device: torch.device) -> Spans:
    """Chunk tables, kept from call to call."""
    if cu_seqlens is None:
        return dense_spans(batch, tokens // batch, chunk, device)
    room = chunk_count(tokens, cu_seqlens.shape[0] - 1, chunk, True)
    return packed_spans(bounds_of(cu_seqlens), chunk, device, room)


def precision_of(x: Tensor) -> str:
    """Of products of float32 tiles, by the dtype of the streams."""
    return "tf32x3" if x.dtype == torch.float32 else "tf32"


def pairs_of(k: Tensor) -> str:
    """Of the products that make the adjoint of the covariance, likewise (``covariance_products``)."""
    return "tf32x3" if k.dtype == torch.float32 else "bf16x3"


def rows(x: Tensor) -> Tensor:
    """Streams ``[..., H, D]`` as one row of tokens ``[N, H, D]``."""
    return x if x.ndim == 3 else x.flatten(0, -3)


def given_of(tensors: Sequence[Grad]) -> list[Tensor]:
    """Those that are there."""
    return [x for x in tensors if x is not None]


def whole(x: Grad) -> Grad:
    """A gradient laid out as the kernels read it, if there is one."""
    return None if x is None else x.contiguous()


def grouped(grad: Tensor, k: Tensor) -> Tensor:
    """Gradients per value head ``[N, H, K]``, summed over the heads that share a key."""
    if grad.shape[1] != k.shape[1]:
        grad = grad.unflatten(1, (k.shape[1], -1)).sum(2, dtype=torch.float32)
    return grad.to(k.dtype)

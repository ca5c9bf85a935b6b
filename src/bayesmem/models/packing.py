"""Several sequences in a row: found by their positions, laid out as one row without padding, and put back."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from bayesmem.ops.validate import check_bounds


@dataclass(frozen=True, slots=True)
class Packing:
    """How the sequences of a batch lie in one row.

    Attributes:
        cu_seqlens: offsets of the N sequences in the row.
        starts: where the batch holds the first token of a sequence.
        index: places of the row's tokens in the flattened batch; ``None`` where that is all of them.
    """

    cu_seqlens: Int[Tensor, " N1"]
    starts: Bool[Tensor, "B T"]
    index: Int[Tensor, " M"] | None = None

    def row(self, x: Shaped[Tensor, "B T *axes"]) -> Shaped[Tensor, "1 M *axes"]:
        """The batch as one row, its padding left out."""
        flat = x.flatten(0, 1)
        return (flat if self.index is None else flat[self.index])[None]

    def batch(self, x: Shaped[Tensor, "1 M *axes"]) -> Shaped[Tensor, "B T *axes"]:
        """The row as a batch again, zero at padding."""
        flat = x[0]
        if self.index is not None:
            flat = x.new_zeros(self.starts.numel(), *x.shape[2:]).index_copy(0, self.index, flat)
        return flat.unflatten(0, self.starts.shape)


def find_packing(
    batch: int,
    length: int,
    cu_seqlens: Tensor | None,
    position_ids: Tensor | None,
    attention_mask: Tensor | None,
) -> Packing | None:
    """The packing that ``cu_seqlens`` gives, or that positions which start again at 0 tell of.

    Args:
        batch: B.
        length: T.
        cu_seqlens: offsets, B = 1.
        position_ids: ``[B, T]``. On a GPU this waits for them.
        attention_mask: ``[B, T]``, 0 where a token is padding; ``None`` where none is.

    Returns:
        ``None`` where every row is one sequence.

    Raises:
        ValueError: ``cu_seqlens`` that does not cover the row, or nothing but padding.
    """
    if cu_seqlens is None and (position_ids is None or length == 1):
        return None
    real = None if attention_mask is None else attention_mask.bool()
    if cu_seqlens is not None:
        check_bounds(cu_seqlens, batch, length)
        starts = torch.zeros(1, length, dtype=torch.bool, device=cu_seqlens.device)
        starts[:, cu_seqlens[:-1].long()] = True
    else:
        assert position_ids is not None
        starts = position_ids.expand(batch, length) == 0
        counts = torch.ones_like(starts) if real is None else real
        if not bool((starts & counts & (counts.cumsum(1) > 1)).any()):  # no start after a token of the same row
            return None
        starts = starts & counts
        starts[:, 0] = True
    if real is None:
        offsets = starts.flatten().nonzero()[:, 0]
        return Packing(F.pad(offsets, (0, 1), value=batch * length), starts)
    index = real.flatten().nonzero()[:, 0]
    if not len(index):
        raise ValueError("attention_mask leaves no token of the packed row; expected at least one that is not padding.")
    segment = starts.flatten().long().cumsum(0)[index]
    counts = torch.unique_consecutive(segment, return_counts=True)[1]
    offsets = F.pad(counts.cumsum(0), (1, 0))
    real_starts = torch.zeros_like(starts.flatten())
    real_starts[index[offsets[:-1]]] = True
    return Packing(offsets, real_starts.unflatten(0, starts.shape), index)

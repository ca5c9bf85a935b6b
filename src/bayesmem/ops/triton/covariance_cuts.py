"""How many segments the CUDA chains of the covariance may be cut into, and the room for it (covariance_cuts.cu)."""

from itertools import pairwise

import torch
from torch import Tensor

from bayesmem.ops.triton.spans import Spans

LEAST_SEGMENT = 256  # tokens of the longest sequence for every segment that chains may have


def side_by_side(spans: Spans, heads: int, processors: int) -> int:
    """Segments that every chain may be cut into, so that all of them run at once; the kernel cuts where it pays."""
    longest = max(stop - start for start, stop in pairwise(spans.bounds))
    return max(min(processors // (spans.sequences * heads), longest // LEAST_SEGMENT), 1)


def cut_room(k: Tensor, chains: int, segments: int) -> tuple[Tensor, Tensor]:
    """Room for what every segment began with and left, and what blocks count, which begins as zero.

    Both are empty for one segment.
    """
    if segments == 1:
        return k.new_empty(0, dtype=torch.float32), k.new_empty(0, dtype=torch.int32)
    edge = k.new_empty(chains, segments, 2, k.shape[-1], k.shape[-1], dtype=torch.float32)
    return edge, k.new_zeros(chains, 2 * segments + 4, dtype=torch.int32)

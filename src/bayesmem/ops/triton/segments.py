"""Sequences cut into segments, for passes whose state can be carried over a segment without going through its tokens.

A chain over the chunks of a sequence keeps one multiprocessor busy a sequence and head. Where most would stand idle, a
sequence is cut into segments that run side by side, twice: once to learn what a segment does to any state, once from
the state that reaches it. Here is only which cuts; what is carried, and how, is the passes' own.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from jaxtyping import Int
from torch import Tensor

from bayesmem.ops.triton.spans import Spans, spans_of


@dataclass(frozen=True, slots=True)
class Segments:
    """Cuts at whole chunks, which stay where they are: what is kept by chunk does not know of the cuts.

    Attributes:
        spans: the segments as if each were a sequence.
        length: tokens of the longest segment, whole chunks.
        first: the first segment of every sequence ``[S]``.
        last: the last one.
        rounds: the second segments of all sequences that have one, then the third and so on; before segment i stands
            i - 1.
    """

    spans: Spans
    length: int
    first: Int[Tensor, "_"]
    last: Int[Tensor, "_"]
    rounds: tuple[Tensor, ...]


def segment_chunks(counts: tuple[int, ...], heads: int, processors: int, least: int, parts: int) -> int | None:
    """Chunks a segment, so that all segments and heads run at once; ``None`` where the cuts would be too few.

    Args:
        counts: chunks of every sequence.
        heads: chains a sequence.
        processors: chains that run at once.
        least: chunks below which a segment is not worth its carrying.
        parts: segments of the longest sequence below which running twice is not worth it.
    """
    longest = max(counts)
    if longest < least * parts or heads * len(counts) * 2 > processors:
        return None
    for size in range(least, longest // parts + 1):
        if heads * sum(-(-count // size) for count in counts) <= processors:
            # Of equal length: as many segments from the longest sequence, none shorter than it need be.
            return -(-longest // -(-longest // size))
    return None


def cut(spans: Spans, heads: int, processors: int, least: int, parts: int) -> Segments | None:
    """Cuts for these sequences, or ``None`` where they do not pay; arguments in tokens, as of ``segment_chunks``."""
    return _cut(spans.bounds, spans.chunk_size, spans.chunks, spans.seq_start.device, heads, processors, least, parts)


@lru_cache(maxsize=64)
def _cut(
    bounds: tuple[int, ...],
    chunk_size: int,
    chunks: int,
    device: torch.device,
    heads: int,
    processors: int,
    least: int,
    parts: int,
) -> Segments | None:
    counts = tuple(-(-(stop - start) // chunk_size) for start, stop in pairwise(bounds))
    size = segment_chunks(counts, heads, processors, -(-least // chunk_size), parts)
    if size is None:
        return None
    length = size * chunk_size
    starts: list[int] = []
    first: list[int] = []
    places: list[int] = []
    for start, stop in pairwise(bounds):
        first.append(len(starts))
        mine = list(range(start, max(stop, start + 1), length))
        starts += mine
        places += range(len(mine))
    last = [after - 1 for after in (*first[1:], len(starts))]

    def ship(x: list[int]) -> Tensor:
        return torch.tensor(x, dtype=torch.int64).to(device, non_blocking=True)

    rounds = tuple(ship([i for i, place in enumerate(places) if place == now]) for now in range(1, max(places) + 1))
    cuts = (*starts, bounds[-1])
    return Segments(spans_of(cuts, chunk_size, device, chunks), length, ship(first), ship(last), rounds)

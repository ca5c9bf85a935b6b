"""Where every sequence and every chunk lies among the tokens: the one layout that all kernels read.

Tokens of all sequences stand in one row, ``[N, H, D]``; a dense batch ``[B, T, H, D]`` is B sequences of T
tokens, without a copy. A chunk never crosses the end of its sequence, so the last one of each may be short.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Spans:
    """Sequences and chunks as offsets (int32, on the device of the tokens).

    Attributes:
        seq_start: first token of every sequence, and the end, ``[S + 1]``.
        chunk_seq: the sequence of every chunk, ``[NC]``; the last ones may hold no token.
        chunk_first: first chunk of every sequence, and the number of chunks, ``[S + 1]``.
        chunk_size: C, tokens a whole chunk.
        bounds: ``seq_start`` as numbers, known to the host.
    """

    seq_start: Int[Tensor, "_"]
    chunk_seq: Int[Tensor, "_"]
    chunk_first: Int[Tensor, "_"]
    chunk_size: int
    bounds: tuple[int, ...]

    @property
    def sequences(self) -> int:
        """How many sequences there are."""
        return self.seq_start.shape[0] - 1

    @property
    def chunks(self) -> int:
        """How many chunks there are in all."""
        return self.chunk_seq.shape[0]


def spans_of(bounds: tuple[int, ...], chunk_size: int, device: torch.device, room: int = 0) -> Spans:
    """Tables for sequences that end at ``bounds`` (rising from 0).

    Args:
        bounds: offsets, ``S + 1`` of them.
        chunk_size: tokens a chunk.
        device: where the tables are read.
        room: chunks to make room for, so that sizes do not depend on the lengths; those too many follow the last
            sequence and hold no token.
    """
    counts = [-(-(stop - start) // chunk_size) for start, stop in pairwise(bounds)]
    first = [0]
    for count in counts:
        first.append(first[-1] + count)
    counts[-1] += max(room - first[-1], 0)
    chunk_seq = torch.repeat_interleave(torch.tensor(counts))

    def ship(x: Tensor) -> Tensor:
        return x.to(torch.int32).to(device, non_blocking=True)

    return Spans(ship(torch.tensor(bounds)), ship(chunk_seq), ship(torch.tensor(first)), chunk_size, bounds)


@dataclass(frozen=True, slots=True)
class Piece:
    """The same few chunks of every sequence, for passes that go through sequences piece by piece.

    Attributes:
        begin: chunks of each sequence before it.
        count: chunks of each, at most.
        order: which chunks these are, of all; ``None`` is all there are, in their order.
    """

    begin: int
    count: int
    order: Int[Tensor, "_"] | None

    def tokens(self, spans: Spans) -> tuple[int, int]:
        """Where it begins in each sequence, and its length at most, in tokens."""
        return self.begin * spans.chunk_size, self.count * spans.chunk_size

    def chunks(self, spans: Spans) -> int:
        """How many chunks it has in all."""
        return spans.chunks if self.order is None else self.order.shape[0]


WHOLE = Piece(0, 2**24, None)  # chunks; of 64 tokens these are 2^30, which an int32 holds


def pieces_of(spans: Spans, parts: int) -> tuple[Piece, ...]:
    """At most ``parts`` pieces, one after the other, kept from call to call."""
    return _pieces(spans.bounds, spans.chunk_size, spans.chunks, spans.seq_start.device, parts)


@lru_cache(maxsize=64)
def _pieces(
    bounds: tuple[int, ...], chunk_size: int, chunks: int, device: torch.device, parts: int
) -> tuple[Piece, ...]:
    counts = [-(-(stop - start) // chunk_size) for start, stop in pairwise(bounds)]
    size = max(-(-max(counts) // parts), 1)
    places = torch.cat([torch.arange(count) for count in counts])
    # Chunks made room for are in the last piece.
    last = max(max(counts) - 1, 0) // size
    part = torch.full((chunks,), last)
    part[: len(places)] = places // size
    orders = [torch.nonzero(part == now)[:, 0].int().to(device, non_blocking=True) for now in range(last + 1)]
    return tuple(Piece(now * size, size, order) for now, order in enumerate(orders))


@lru_cache(maxsize=64)
def dense_spans(batch: int, length: int, chunk_size: int, device: torch.device) -> Spans:
    """Tables of B sequences of T tokens, kept from call to call."""
    return spans_of(tuple(range(0, (batch + 1) * length, length)), chunk_size, device)


@lru_cache(maxsize=8)
def packed_spans(bounds: tuple[int, ...], chunk_size: int, device: torch.device, room: int) -> Spans:
    """As ``spans_of``, kept from call to call."""
    return spans_of(bounds, chunk_size, device, room)

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


@lru_cache(maxsize=64)
def dense_spans(batch: int, length: int, chunk_size: int, device: torch.device) -> Spans:
    """Tables of B sequences of T tokens, kept from call to call."""
    return spans_of(tuple(range(0, (batch + 1) * length, length)), chunk_size, device)


@lru_cache(maxsize=8)
def packed_spans(bounds: tuple[int, ...], chunk_size: int, device: torch.device, room: int) -> Spans:
    """As ``spans_of``, kept from call to call."""
    return spans_of(bounds, chunk_size, device, room)

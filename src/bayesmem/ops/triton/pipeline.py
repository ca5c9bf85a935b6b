"""The covariance pass and the mean pass side by side: the mean of one piece beside the covariance of the next.

The covariance is a chain that keeps one multiprocessor busy a sequence and head; the mean pass waits for nothing but
its gains, and is mostly parallel. Where half of the multiprocessors or more would stand idle, and there is work enough
to repay the launches, sequences are cut into a few pieces of the same chunks each: the covariance goes through them on
a stream of its own, which is scheduled first, and the mean pass follows on the caller's.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from bayesmem.ops.triton.covariance_cuda import chosen_cluster
from bayesmem.ops.triton.covariance_forward import covariance_launcher
from bayesmem.ops.triton.covariance_products import Pair
from bayesmem.ops.triton.device import limits
from bayesmem.ops.triton.mean_forward import mean_forward
from bayesmem.ops.triton.spans import Piece, Spans, pieces_of

PARTS = 4
# Every piece costs the host launches, and so must be work for the device (docs/notes/003-kernels.md): channels of keys
# times tokens of a sequence, and tokens times heads of all.
LEAST_CHAIN, LEAST_WORK = 2**17, 2**16


def parts_of(k: Tensor, heads: int, spans: Spans) -> int:
    """Pieces to cut the sequences into: 1 where that is no help."""
    most = min(PARTS, len(k) * heads // LEAST_WORK)
    if k.device.type != "cuda" or most < 2:
        return 1
    cluster = chosen_cluster(k)
    if cluster is None or 2 * cluster * heads * spans.sequences > limits(k.device).processors:
        return 1
    longest = max(stop - start for start, stop in pairwise(spans.bounds))
    return max(min(most, longest * k.shape[-1] // LEAST_CHAIN), 1)


def pipelined_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    gates: tuple[Tensor, Tensor, Tensor, Tensor],
    initial_mean: Tensor | None,
    initial_cov: Tensor,
    spans: Spans,
    keep: bool,
    halved: bool,
    want_energy: bool,
    prec: str,
    parts: int,
) -> tuple[tuple[Pair, Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None, Tensor, tuple[Tensor, ...]]]:
    """``covariance_forward`` and ``mean_forward`` under its gains, in ``parts`` pieces.

    Args:
        q: as of ``mean_forward``, as k, v, log_decay, initial_mean, want_energy and prec.
        k: keys.
        v: values.
        log_decay: of the mean.
        gates: log retention, process noise, observation noise and floor, as of ``covariance_forward``.
        initial_mean: ``None`` is zero.
        initial_cov: as of ``covariance_forward``, as spans and keep.
        spans: where sequences and chunks lie.
        keep: whether the covariance before every chunk is kept.
        halved: whether gains are written as a pair, of which the mean reads the high half.
        want_energy: whether the squared innovations are asked for.
        prec: of the mean's products.
        parts: pieces at most; of sequences that neither pass cuts into segments.

    Returns:
        What ``covariance_forward`` returns, and what ``mean_forward`` does.
    """
    pieces = pieces_of(spans, parts)
    launch, covariance = covariance_launcher(k, *gates, initial_cov, spans, True, keep, halved)
    gain, _ = covariance[0]
    gpu = k.device.type == "cuda"
    try:
        done = _launched(pieces, launch, k.device) if gpu else [launch(piece) for piece in pieces]
        filtered = _followed(pieces, done, k.device)
        mean = mean_forward(q, k, v, gain, log_decay, initial_mean, spans, want_energy, prec, pieces=filtered)
    except BaseException:
        if gpu:  # what the other stream still fills is about to be given back
            torch.cuda.current_stream(k.device).wait_stream(_stream(k.device))
        raise
    return covariance, mean


def _launched(
    pieces: Sequence[Piece], launch: Callable[[Piece], None], device: torch.device
) -> list[torch.cuda.Event | None]:
    """The covariance of all pieces on a stream of its own, with what says that each is done."""
    beside, done = _stream(device), []
    beside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(beside):
        for piece in pieces:
            launch(piece)
            done.append(beside.record_event())
    return done


def _followed(
    pieces: Sequence[Piece], done: Sequence[torch.cuda.Event | None], device: torch.device
) -> Iterator[Piece]:
    """The pieces, each once the caller's stream waits for its covariance."""
    for piece, event in zip(pieces, done, strict=True):
        if event is not None:
            torch.cuda.current_stream(device).wait_event(event)
        yield piece


@lru_cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Of higher priority: the chain's next piece must not wait for what the mean pass has to do."""
    return torch.cuda.Stream(device, priority=-1)

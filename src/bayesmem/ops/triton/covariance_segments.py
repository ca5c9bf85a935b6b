"""The covariance pass over long sequences of few heads: in segments, side by side, exactly (docs/math.md 5.4).

Legend: a segment takes the covariance P that enters it to A (I + P J)^{-1} P A^T + C, of which ``covariance_forward``
from no covariance gives C, and ``covariance_transition`` under its gains A and the rows whose Gram matrix is J.

    (I + P J)^{-1} P is P told what J holds: with J = L L^T, K measurements of keys L_i and noise 1, which is one more
    short sequence for ``covariance_forward``. Nothing is solved, and P stays a covariance to rounding.

J is summed and factored in float64: of few keys measured often its least eigenvalues are rounding errors of its
largest, which would pass for evidence about directions never measured. The segments are then filtered again, each from
the covariance that reaches it; that is the result, and only these covariances know of the cuts.

Backwards it is simpler: the adjoint Lambda goes through a segment as A^T Lambda A, plus what it gathers from zero.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from bayesmem.ops.step import symmetric
from bayesmem.ops.triton.carry import carry
from bayesmem.ops.triton.covariance_config import chain_config
from bayesmem.ops.triton.covariance_cuda import chosen_cluster
from bayesmem.ops.triton.covariance_forward import covariance_forward
from bayesmem.ops.triton.covariance_products import Pair
from bayesmem.ops.triton.covariance_transition import keys_from_start, transitions
from bayesmem.ops.triton.device import limits
from bayesmem.ops.triton.mean_config import Tuning
from bayesmem.ops.triton.segments import Segments, cut
from bayesmem.ops.triton.sizes import block
from bayesmem.ops.triton.spans import Spans, dense_spans

MAX_KEY_DIM = 128
# With fast products of float64, which J is made of: A100, H100, B200.
CAPABILITIES = {(8, 0), (9, 0), (10, 0)}
# Least tokens a segment, and least segments of the longest sequence, as measured (docs/notes/003-kernels.md).
FORWARD_CUTS, BACKWARD_CUTS = (1536, 6), (2048, 6)


def forward_segments(k: Tensor, heads: int, spans: Spans) -> Segments | None:
    """How the forward pass is cut, or ``None`` where the chain over whole sequences is at least as fast."""
    capability, processors, _ = limits(k.device)
    if k.shape[-1] > MAX_KEY_DIM or capability not in CAPABILITIES:
        return None
    if k.device.type == "cuda" and chosen_cluster(k) is None:
        return None
    return cut(spans, heads, processors, *FORWARD_CUTS)


def backward_segments(final_cov: Tensor, spans: Spans, prec: str, tuning: Tuning | None) -> Segments | None:
    """How the backward pass is cut; not where Lambda lies in memory."""
    key_dim = final_cov.shape[-1]
    if key_dim > MAX_KEY_DIM or chain_config(final_cov, prec, tuning)["BK"] < key_dim:
        return None
    return cut(spans, final_cov.shape[1], limits(final_cov.device).processors, *BACKWARD_CUTS)


@triton.jit
@no_type_check
def factor_kernel(
    information,
    key,
    H: tl.constexpr,
    K: tl.constexpr,
    BK: tl.constexpr,
):
    """One program a segment and head: J = L L^T by columns, as keys ``[S, K tokens, H, K]``.

    J may be singular, as where few keys were seen: what rounding leaves of a pivot is taken for nothing.
    """
    segment, head = tl.program_id(0), tl.program_id(1)
    i = tl.arange(0, BK)
    own = (segment.to(tl.int64) * H + head) * (K * K)
    mask = (i < K)[:, None] & (i < K)[None, :]
    left = tl.load(information + own + (i[:, None] * K + i[None, :]), mask=mask, other=0.0)
    least = 1e-14 * tl.sum(tl.sum(tl.where(i[:, None] == i[None, :], left, 0.0), 1), 0)
    for now in range(K):
        column = tl.sum(tl.where(i[None, :] == now, left, 0.0), 1)
        pivot = tl.sum(tl.where(i == now, column, 0.0), 0)
        scale = tl.where(pivot > least, 1.0 / tl.sqrt(tl.where(pivot > least, pivot, 1.0)), 0.0)
        column = tl.where(i >= now, column * scale, 0.0)
        to = key + ((segment.to(tl.int64) * K + now) * H + head) * K
        tl.store(to + i, column.to(tl.float32), mask=i < K)
        # The row of the pivot is not used again.
        across = tl.sum(tl.where(i[:, None] == i[None, :], column[:, None], 0.0), 0)
        left -= column[:, None] * across[None, :]


def information_keys(seen: Float[Tensor, "S H L K"]) -> Float[Tensor, "S K H K"]:
    """Keys that, measured with noise 1, tell what all tokens of a segment do."""
    segments, heads, _, key_dim = seen.shape
    rows = seen.flatten(0, 1)
    information = torch.bmm(rows.mT, rows)
    keys = seen.new_empty(segments, key_dim, heads, key_dim, dtype=torch.float32)
    warps = 16 if key_dim > 64 else 4
    factor_kernel[(segments, heads)](information, keys, H=heads, K=key_dim, BK=block(key_dim), num_warps=warps)
    return keys


def entering(
    cov: Float[Tensor, "S H K K"],
    transition: Float[Tensor, "S H K K"],
    keys: Float[Tensor, "S K H K"],
    segments: Segments,
) -> Float[Tensor, "S H K K"]:
    """The covariance that enters every segment; zero into the first.

    Args:
        cov: of a first segment, that which it leaves from the covariance before its sequence; of others C.
        transition: A of all segments.
        keys: of ``information_keys``.
        segments: the cuts.
    """
    heads, key_dim = cov.shape[1], cov.shape[-1]
    enters = torch.zeros_like(cov)
    if segments.rounds:
        second = segments.rounds[0]
        enters[second] = cov[second - 1]
    nothing = cov.new_zeros(len(segments.first) * key_dim, heads)
    noise = torch.ones_like(nothing)
    for now in segments.rounds[1:]:
        before, tokens = now - 1, len(now) * key_dim
        spans = dense_spans(len(now), key_dim, 16, cov.device)
        gates = (nothing[:tokens], nothing[:tokens], noise[:tokens], nothing[0])
        known = covariance_forward(keys[before].flatten(0, 1), *gates, enters[before], spans, keep=False)[3]
        carry(symmetric(known), transition, cov, enters, now, both=True)
    return symmetric(enters)


def segmented_forward(
    k: Float[Tensor, "N G K"],
    log_retention: Float[Tensor, "N H"],
    process_noise: Float[Tensor, "N H"],
    obs_noise: Float[Tensor, "N H"],
    floor: Float[Tensor, "H"],
    initial_cov: Float[Tensor, "S H K K"],
    spans: Spans,
    segments: Segments,
    keep: bool = True,
    halved: bool = False,
    prec: str = "tf32x3",
    tuning: Tuning | None = None,
) -> tuple[Pair, Tensor, Tensor, Tensor]:
    """As ``covariance_forward``, in ``segments``; ``prec`` is that of A and of what the tokens see."""
    gates = (log_retention, process_noise, obs_noise, floor)
    start = initial_cov.new_zeros(segments.spans.sequences, *initial_cov.shape[1:])
    start[segments.first] = initial_cov
    gain, innovation_var, _, cov = covariance_forward(k, *gates, start, segments.spans, keep=False)
    read, to_end = keys_from_start(k, gain[0], log_retention, spans, prec, tuning)
    transition, seen = transitions(
        gain,
        (read, None),
        log_retention,
        to_end,
        innovation_var,
        segments.length,
        segments.spans,
        prec,
        tuning,
    )
    del gain, read
    assert seen is not None
    keys = information_keys(seen)
    del seen
    start += entering(symmetric(cov), transition, keys, segments)
    gain, innovation_var, checkpoints, cov = covariance_forward(
        k, *gates, start, segments.spans, keep=keep, halved=halved
    )
    return gain, innovation_var, checkpoints, cov[segments.last]

"""A state carried over one segment of every sequence: X' = A X + B, or A X A^T + B, float32 throughout.

Backwards it is the adjoint, A^T X + B or A^T X A + B. These steps follow each other, so each is one launch.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from bayesmem.ops.triton.segments import Segments
from bayesmem.ops.triton.sizes import block, cdiv


@triton.jit
@no_type_check
def carry_kernel(
    state,
    transition,
    added,
    out,
    segments,
    H: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BI: tl.constexpr,
    BJ: tl.constexpr,
    BACK: tl.constexpr,
    BOTH: tl.constexpr,
    COMPACT: tl.constexpr,
):
    """One program a segment, head, block of BI rows, and of BJ columns where BOTH is not set (else BJ is all of K).

    Forwards it goes from the segment before a listed one into that, backwards the other way. ``state`` has a matrix a
    segment, or a listed segment where COMPACT.
    """
    place, row, col = tl.program_id(0), tl.program_id(1) * BI, tl.program_id(2) * BJ
    number, head = place // H, place % H
    listed = tl.load(segments + number)
    through = ((listed if BACK else listed - 1) * H + head).to(tl.int64)
    into = ((listed - 1 if BACK else listed) * H + head).to(tl.int64)
    of = place.to(tl.int64) if COMPACT else through
    i, j, n = row + tl.arange(0, BI), col + tl.arange(0, BJ), tl.arange(0, BI)
    a = transition + through * (K * K)
    a_row = 1 if BACK else K  # strides of A, or of its transpose
    a_col = K if BACK else 1
    x = state + of * (K * V)
    total = tl.load(
        added + through * (K * V) + i[:, None] * V + j[None, :], mask=(i < K)[:, None] & (j < V)[None, :], other=0.0
    )
    if BOTH:
        for mid in range(0, K, BI):
            m = mid + n
            half = tl.zeros([BI, BI], tl.float32)  # A X, of these rows and BI columns
            for at in range(0, K, BI):
                s = at + n
                left = tl.load(
                    a + i[:, None] * a_row + s[None, :] * a_col, mask=(i < K)[:, None] & (s < K)[None, :], other=0.0
                )
                right = tl.load(x + s[:, None] * V + m[None, :], mask=(s < K)[:, None] & (m < K)[None, :], other=0.0)
                half = tl.dot(left, right, half, input_precision="tf32x3")
            right = tl.load(
                a + j[None, :] * a_row + m[:, None] * a_col, mask=(j < K)[None, :] & (m < K)[:, None], other=0.0
            )
            total = tl.dot(half, right, total, input_precision="tf32x3")
    else:
        for at in range(0, K, BI):
            s = at + n
            left = tl.load(
                a + i[:, None] * a_row + s[None, :] * a_col, mask=(i < K)[:, None] & (s < K)[None, :], other=0.0
            )
            right = tl.load(x + s[:, None] * V + j[None, :], mask=(s < K)[:, None] & (j < V)[None, :], other=0.0)
            total = tl.dot(left, right, total, input_precision="tf32x3")
    tl.store(out + into * (K * V) + i[:, None] * V + j[None, :], total, mask=(i < K)[:, None] & (j < V)[None, :])


def carry(
    state: Float[Tensor, "_ H K V"],
    transition: Float[Tensor, "S H K K"],
    added: Float[Tensor, "S H K V"],
    out: Float[Tensor, "S H K V"],
    segments: Int[Tensor, "_"],
    *,
    back: bool = False,
    both: bool = False,
) -> None:
    """Into ``out`` of the listed segments, from the ones before them; with ``back`` the other way.

    Args:
        state: what enters (with ``back``: leaves) a segment, a matrix for each, or for each listed one.
        transition: A of all segments.
        added: B of all segments.
        out: what it makes; may be ``state``.
        segments: the listed ones, none the first of its sequence.
        back: whether A is to be transposed.
        both: whether the state is multiplied from both sides, a covariance then.
    """
    heads, key_dim, value_dim = added.shape[1:]
    rows = block(key_dim, 32)
    columns = block(value_dim) if both else block(value_dim, 32)
    grid = (len(segments) * heads, cdiv(key_dim, rows), 1 if both else cdiv(value_dim, columns))
    carry_kernel[grid](
        state,
        transition,
        added,
        out,
        segments,
        H=heads,
        K=key_dim,
        V=value_dim,
        BI=rows,
        BJ=columns,
        BACK=back,
        BOTH=both,
        COMPACT=len(state) == len(segments),
        num_warps=4,
    )


def entering(
    added: Float[Tensor, "S H K V"], transition: Float[Tensor, "S H K K"], segments: Segments
) -> Float[Tensor, "S H K V"]:
    """What enters every segment, where ``added`` of a first segment holds all that leaves it; zero into the first."""
    enters = torch.zeros_like(added)
    for now in segments.rounds:
        carry(enters, transition, added, enters, now)
    return enters


def leaving(
    added: Float[Tensor, "R H K V"],
    transition: Float[Tensor, "R H K K"],
    last: Float[Tensor, "S H K V"] | None,
    segments: Segments,
    both: bool,
) -> Float[Tensor, "R H K V"]:
    """The adjoint of what leaves every segment, ``last`` being that of the sequences' ends and ``added`` gathered."""
    leaves = torch.zeros_like(added)
    if last is not None:
        leaves[segments.last] = last
    for now in reversed(segments.rounds):
        carry(leaves, transition, added, leaves, now, back=True, both=both)
    return leaves

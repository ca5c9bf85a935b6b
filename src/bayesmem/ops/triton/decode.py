"""One token for every sequence, the belief updated where it lies: a single launch, each state byte moved once.

Legend, as in ``ops/step.py``: M mean, P cov, a decay, rho retention, n process noise, r obs noise, s innovation
variance, g gain, e innovation. One program per (sequence, head); everything of it in float32:

    P- k = rho^2 P k + n k      s = k . P- k + r            g = P- k / s            w = sqrt(s) g
    P    = rho^2 P + n I - w w^T                            var = q . P q
    e    = v - a M^T k          M = a M + g e^T             o = a M^T q + (g . q) e

``M^T k`` and ``M^T q`` are read off the same load of M, so that nothing waits for the new M. The gain needs all of P
before any of P may change, which is why P is not split over programs: they would have to wait for one another. Blocks
of a cluster can wait for one another, and share a belief where multiprocessors would be idle (decode_cluster.cu).
P is symmetric, so its rows serve as its columns and every sum runs down the rows.
"""

from functools import lru_cache
from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from bayesmem.ops.triton import decode_cluster
from bayesmem.ops.triton.sizes import power_of_two


@triton.jit
@no_type_check
def _held(tile, place, live, k, q, keep, noise, obs_noise, BK: tl.constexpr, WANT_VAR: tl.constexpr):
    """Update P, all of it in registers as ``tile`` and stored at ``place``; gain, s and var."""
    i = tl.arange(0, BK)
    cov_k = keep * tl.sum(tile * k[:, None], 0) + noise * k
    innovation_var = tl.sum(k * cov_k, 0) + obs_noise
    gain = cov_k / innovation_var
    written = gain * tl.sqrt(innovation_var)
    added = tl.where(i[:, None] == i[None, :], noise, 0.0)
    tile = keep * tile + added - written[:, None] * written[None, :]
    tl.store(place, tile, mask=live)
    var = 0.0
    if WANT_VAR:
        var = tl.sum(q * tl.sum(tile * q[:, None], 0), 0)
    return gain, innovation_var, var


@triton.jit
@no_type_check
def _streamed(
    cov, k_at, q_at, k, q, keep, noise, obs_noise,
    K: tl.constexpr, BK: tl.constexpr, ROWS: tl.constexpr, WANT_VAR: tl.constexpr,
):  # fmt: skip
    """The same for a P larger than the registers: ROWS rows at a time, once for P k and once to update."""
    i, step = tl.arange(0, BK), tl.arange(0, ROWS)
    offsets = step[:, None] * K + i[None, :]
    total = tl.zeros([ROWS, BK], tl.float32)
    for first in range(0, K, ROWS):
        row = first + step
        tile = tl.load(cov + first * K + offsets, mask=(row < K)[:, None] & (i < K)[None, :], other=0.0)
        total += tile * tl.load(k_at + row, mask=row < K, other=0.0).to(tl.float32)[:, None]
    cov_k = keep * tl.sum(total, 0) + noise * k
    innovation_var = tl.sum(k * cov_k, 0) + obs_noise
    gain = cov_k / innovation_var
    written = gain * tl.sqrt(innovation_var)
    total = tl.zeros([ROWS, BK], tl.float32)
    for first in range(0, K, ROWS):
        row = first + step
        live = (row < K)[:, None] & (i < K)[None, :]
        tile = tl.load(cov + first * K + offsets, mask=live, other=0.0)
        diagonal = row[:, None] == i[None, :]
        written_row = tl.sum(tl.where(diagonal, written[None, :], 0.0), 1)  # the rows of w, by an exact sum
        tile = keep * tile + tl.where(diagonal, noise, 0.0) - written_row[:, None] * written[None, :]
        tl.store(cov + first * K + offsets, tile, mask=live)
        if WANT_VAR:
            total += tile * tl.load(q_at + row, mask=row < K, other=0.0).to(tl.float32)[:, None]
    var = 0.0
    if WANT_VAR:
        var = tl.sum(q * tl.sum(total, 0), 0)
    return gain, innovation_var, var


@triton.jit
@no_type_check
def _decode_kernel(
    q, k, v, log_decay, log_retention, process_noise, obs_noise, floor, mean, cov, prior_var,
    o, predictive_var, innovation_var, energy,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr, COVARIANCE: tl.constexpr,
):  # fmt: skip
    belief = tl.program_id(0).to(tl.int64)
    h = belief % H
    key = (belief // H) * G + h // (H // G)
    i, j = tl.arange(0, BK), tl.arange(0, BV)
    live = i < K
    # Every place is a scalar plus offsets that all blocks share: few registers.
    offsets = i[:, None] * V + j[None, :]
    column = tl.program_id(1) * (BLOCKS * BV)
    mean += belief * (K * V) + column
    v += belief * V + column
    o += belief * V + column
    # Asked for before the covariance is met, so that both states are on their way at once.
    m = tl.load(mean + offsets, mask=live[:, None] & (j < V - column)[None, :], other=0.0)
    value = tl.load(v + j, mask=j < V - column, other=0.0).to(tl.float32)
    k_i = tl.load(k + key * K + i, mask=live, other=0.0).to(tl.float32)
    q_i = tl.load(q + key * K + i, mask=live, other=0.0).to(tl.float32)
    HELD: tl.constexpr = COVARIANCE == "full" and ROWS == BK
    if HELD:
        place = cov + belief * (K * K) + i[:, None] * K + i[None, :]
        square = live[:, None] & live[None, :]
        tile = tl.load(place, mask=square, other=0.0)
    decay = tl.exp(tl.load(log_decay + belief))
    r = tl.load(obs_noise + belief)
    if COVARIANCE != "reset":
        keep = tl.exp(2.0 * tl.load(log_retention + belief))
        n = tl.load(process_noise + belief)
    if floor is not None:
        r = tl.maximum(r, tl.load(floor + h) * tl.sum(k_i * k_i, 0))

    WANT_VAR: tl.constexpr = predictive_var is not None
    if COVARIANCE == "reset":
        prior = tl.load(prior_var + h)
        s = prior * tl.sum(k_i * k_i, 0) + r
        gain = prior * k_i / s
        if WANT_VAR:
            explained = tl.sum(gain * q_i, 0)
            var = tl.maximum(prior * tl.sum(q_i * q_i, 0) - s * explained * explained, 0.0)
    elif COVARIANCE == "diagonal":  # mean field: precisions add
        d = keep * tl.load(cov + belief * K + i, mask=live, other=0.0) + n
        s = tl.sum(d * k_i * k_i, 0) + r
        gain = d * k_i / s
        d = d * r / (r + d * k_i * k_i)
        tl.store(cov + belief * K + i, d, mask=live)
        if WANT_VAR:
            var = tl.sum(d * q_i * q_i, 0)
    elif HELD:
        gain, s, var = _held(tile, place, square, k_i, q_i, keep, n, r, BK, WANT_VAR)
    else:
        gain, s, var = _streamed(
            cov + belief * (K * K), k + key * K, q + key * K, k_i, q_i, keep, n, r, K, BK, ROWS, WANT_VAR
        )
    # Programs that share a head store the same numbers.
    if WANT_VAR:
        tl.store(predictive_var + belief, var)

    gain_q = tl.sum(gain * q_i, 0)
    squares = tl.zeros([BV], tl.float32)
    for block in range(BLOCKS):
        left = V - column - block * BV
        if BLOCKS > 1:  # the next columns are fetched while these are worked on
            within = j < left - BV
            m_later = tl.load(mean + BV + offsets, mask=live[:, None] & within[None, :], other=0.0)
            value_later = tl.load(v + BV + j, mask=within, other=0.0).to(tl.float32)
        e = value - decay * tl.sum(m * k_i[:, None], 0)
        read = decay * tl.sum(m * q_i[:, None], 0) + gain_q * e
        tl.store(mean + offsets, decay * m + gain[:, None] * e[None, :], mask=live[:, None] & (j < left)[None, :])
        tl.store(o + j, read.to(o.dtype.element_ty), mask=j < left)
        squares += e * e
        if BLOCKS > 1:
            m, value = m_later, value_later
            mean, v, o = mean + BV, v + BV, o + BV
    if energy is not None:
        tl.store(innovation_var + belief, s)
        tl.store(energy + belief, tl.sum(squares, 0))


class Blocks(NamedTuple):
    """How a program goes through its states: rows of P and columns of M at a time, and its warps."""

    rows: int
    columns: int
    num_warps: int


@lru_cache(maxsize=64)
def blocks_of(key_dim: int, value_dim: int, covariance: str) -> Blocks:
    """Blocks by sizes alone: about 128 registers a thread and no spills, so 16 warps a processor of a Hopper."""
    keys, values = (max(16, power_of_two(x)) for x in (key_dim, value_dim))
    if covariance != "full":
        return Blocks(keys, min(values, max(16, 4096 // keys)), 8 if covariance == "diagonal" or keys > 128 else 4)
    if keys > 128:
        return Blocks(8192 // keys, min(values, 32), 16)
    return Blocks(keys, min(values, 64), keys // 8)


def decode_step(
    q: Float[Tensor, "S G K"],
    k: Float[Tensor, "S G K"],
    v: Float[Tensor, "S H V"],
    log_decay: Float[Tensor, "S H"],
    log_retention: Float[Tensor, "S H"] | None,
    process_noise: Float[Tensor, "S H"] | None,
    obs_noise: Float[Tensor, "S H"],
    floor: Float[Tensor, "H"] | None,
    mean: Float[Tensor, "S H K V"],
    cov: Float[Tensor, "S H K K"] | Float[Tensor, "S H K"] | None,
    prior_var: Float[Tensor, "H"] | None,
    covariance: str,
    want_var: bool,
    want_evidence: bool,
    tuning: dict | None = None,
) -> tuple[
    Float[Tensor, "S H V"],
    Float[Tensor, "S H"] | None,
    Float[Tensor, "S H"] | None,
    Float[Tensor, "S H"] | None,
]:
    """Filter one token of every sequence, ``mean`` and ``cov`` in place; all tensors contiguous.

    Args:
        q: queries, in the streams' dtype as ``k`` and ``v``; H a multiple of G.
        k: keys.
        v: values.
        log_decay: of the mean; this and all that follows float32.
        log_retention: of the covariance; ``None`` under ``reset``.
        process_noise: added to the covariance's diagonal; ``None`` under ``reset``.
        obs_noise: observation noise variance.
        floor: least observation noise over ``|k|^2``, or none.
        mean: updated in place.
        cov: updated in place, symmetric (full) or a diagonal (diagonal); ``None`` under ``reset``.
        prior_var: under ``reset``, the predicted variance of every channel.
        covariance: ``full``, ``diagonal`` or ``reset``.
        want_var: whether to compute the predictive variance.
        want_evidence: whether to compute the innovation variance and energy.
        tuning: any fields of ``Blocks`` (but ``rows`` for ``full`` alone), and options of the compiler; or ``cluster``
            and perhaps ``threads`` of the CUDA kernel for few sequences, 0 for none.

    Returns:
        ``o`` in the dtype of ``v``, the predictive variance, the innovation variance and the energy
        ``sum_v innovation^2``; ``None`` where not asked for.
    """
    sequences, heads, key_dim, value_dim = mean.shape
    o = torch.empty_like(v)
    var = torch.empty_like(obs_noise) if want_var else None
    innovation_var, energy = (
        (torch.empty_like(obs_noise), torch.empty_like(obs_noise)) if want_evidence else (None,) * 2
    )
    if covariance == "full":
        launch = decode_cluster.cluster_kernel(q, k, v, floor, mean, cov, want_var, want_evidence, tuning)
        if launch is not None:
            inputs = [q, k, v, log_decay, log_retention, process_noise, obs_noise, floor, mean, cov]
            launch([q if x is None else x for x in [*inputs, o, var, innovation_var, energy]])
            return o, var, innovation_var, energy
    rows, columns, num_warps = blocks_of(key_dim, value_dim, covariance)
    options = {"num_warps": num_warps}
    if tuning:
        options |= {name: value for name, value in tuning.items() if name not in decode_cluster.Split._fields}
        rows, columns = options.pop("rows", rows), options.pop("columns", columns)
    blocks = -(-value_dim // columns)
    # Under reset nothing but M is written, so its columns may be shared out; the energy sums over all of them.
    shared = blocks if covariance == "reset" and not want_evidence else 1
    _decode_kernel[(sequences * heads, shared)](
        q, k, v, log_decay, log_retention, process_noise, obs_noise, floor, mean, cov, prior_var,
        o, var, innovation_var, energy,
        heads, q.shape[1], key_dim, value_dim,
        max(16, power_of_two(key_dim)), columns, rows, blocks // shared, covariance,
        **options,
    )  # fmt: skip
    return o, var, innovation_var, energy

"""Gates of a full covariance under prior mixing, all in one launch each way: logs bounded, noise, floor and prior.

Legend: d and l the logs of the mean's decay and of the retention as given (l = d where none is), p the prior variance
of a head; gamma the gradient of what follows it.

    decay = max(d, LEAST)      retention = max(l, LEAST)      added = p (1 - exp(2 retention))
    floor = ratio p            start = p I
    dl = gamma_retention - 2 p exp(2 retention) gamma_added, where l > LEAST
    dp = sum over tokens of (1 - exp(2 retention)) gamma_added + ratio gamma_floor + trace gamma_start
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from bayesmem.ops.normalise import LOG_ZERO
from bayesmem.ops.triton.launched import launched
from bayesmem.ops.triton.sizes import block, cdiv

TILE = 1024  # gates a program
ROWS = 32  # of a starting covariance a program


@triton.jit
@no_type_check
def bounded(x, LEAST: tl.constexpr):
    """``x``, at least ``LEAST``; NaN stays."""
    return tl.where(x <= LEAST, LEAST, x)


@triton.jit
@no_type_check
def lost(x):
    """``1 - exp(x)``, also where x is nearly zero."""
    series = 1.0 / 40320 + x * (1.0 / 362880)
    series = 1.0 / 5040 + x * series
    series = 1.0 / 720 + x * series
    series = 1.0 / 120 + x * series
    series = 1.0 / 24 + x * series
    series = 1.0 / 6 + x * series
    series = 0.5 + x * series
    return tl.where(tl.abs(x) < 0.5, -x * (1.0 + x * series), 1.0 - tl.exp(x))


@launched
@triton.jit
@no_type_check
def gates_kernel(
    log_decay,
    log_retention,
    obs_noise,
    prior,
    decay,
    retention,
    added,
    noise,
    floor,
    start,
    count,
    prior_var,
    ratio,
    H: tl.constexpr,
    K: tl.constexpr,
    BK: tl.constexpr,
    PARTS: tl.constexpr,
    LEAST: tl.constexpr,
    N: tl.constexpr,
    R: tl.constexpr,
):
    """Programs of N gates each, then of R rows of a head's start each, PARTS a head; of none with K = 0.

    ``log_retention`` and ``prior`` may be None.
    """
    tiles, pid = tl.cdiv(count, N), tl.program_id(0)
    if pid < tiles:
        at = pid.to(tl.int64) * N + tl.arange(0, N)
        live = at < count
        own = bounded(tl.load(log_decay + at, mask=live, other=0.0).to(tl.float32), LEAST)
        tl.store(decay + at, own, mask=live)
        if log_retention is not None:
            own = bounded(tl.load(log_retention + at, mask=live, other=0.0).to(tl.float32), LEAST)
        tl.store(retention + at, own, mask=live)
        gone = lost(2.0 * own)
        if prior is None:
            gone *= prior_var
        else:
            gone *= tl.load(prior + at % H)
        tl.store(added + at, gone, mask=live)
        tl.store(noise + at, tl.load(obs_noise + at, mask=live, other=1.0).to(tl.float32), mask=live)
    else:
        head, part = (pid - tiles) // PARTS, (pid - tiles) % PARTS
        p = prior_var * 1.0
        if prior is not None:
            p = tl.load(prior + head)
        if part == 0:
            tl.store(floor + head, ratio * p)
        if K > 0:
            row, column = part * R + tl.arange(0, R)[:, None], tl.arange(0, BK)[None, :]
            square = tl.where(row == column, p, 0.0)
            tl.store(start + head * (K * K) + row * K + column, square, mask=(row < K) & (column < K))


@launched
@triton.jit
@no_type_check
def gates_backward_kernel(
    d_decay,
    d_retention,
    d_added,
    d_noise,
    log_decay,
    log_retention,
    prior,
    retention,
    d_log_decay,
    d_log_retention,
    d_obs_noise,
    d_prior,
    count,
    prior_var,
    H: tl.constexpr,
    LEAST: tl.constexpr,
    N: tl.constexpr,
):
    """One program N gates; gradients that came as None are zero, ``d_prior`` is a part of the sum, ``[N, H]``."""
    at = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    live = at < count
    gone = lost(2.0 * tl.load(retention + at, mask=live, other=0.0))
    slope = tl.zeros([N], tl.float32)
    if d_retention is not None:
        slope += tl.load(d_retention + at, mask=live, other=0.0)
    if d_added is not None:
        more = tl.load(d_added + at, mask=live, other=0.0)
        kept = 2.0 * (1.0 - gone) * more
        if prior is None:
            slope -= prior_var * kept
        else:
            slope -= tl.load(prior + at % H) * kept
        if d_prior is not None:
            tl.store(d_prior + at, gone * more, mask=live)
    own = tl.zeros([N], tl.float32)
    if d_decay is not None:
        own += tl.load(d_decay + at, mask=live, other=0.0)
    if log_retention is None:
        own += slope
    else:
        given = tl.load(log_retention + at, mask=live, other=0.0).to(tl.float32)
        slope = tl.where(given > LEAST, slope, 0.0)
        tl.store(d_log_retention + at, slope.to(d_log_retention.dtype.element_ty), mask=live)
    given = tl.load(log_decay + at, mask=live, other=0.0).to(tl.float32)
    own = tl.where(given > LEAST, own, 0.0)
    tl.store(d_log_decay + at, own.to(d_log_decay.dtype.element_ty), mask=live)
    passed = tl.zeros([N], tl.float32)
    if d_noise is not None:
        passed += tl.load(d_noise + at, mask=live, other=0.0)
    tl.store(d_obs_noise + at, passed.to(d_obs_noise.dtype.element_ty), mask=live)


Gates = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def gates(
    log_decay: Tensor,
    log_retention: Tensor | None,
    obs_noise: Tensor,
    prior: Tensor | None,
    prior_var: float | int,
    ratio: float | int,
    key_dim: int,
) -> Gates:
    """Launch ``gates_kernel``.

    Args:
        log_decay: ``[B, T, H]``, contiguous, as the next two.
        log_retention: ``None`` for that of the decay.
        obs_noise: observation noise variance.
        prior: prior variance ``[H]`` float32, or ``None``.
        prior_var: prior variance of every head, without ``prior``.
        ratio: the floor's to the prior variance.
        key_dim: K of the start; 0 for none.

    Returns:
        Log decay, log retention, process noise and observation noise ``[N, H]``, the floor ``[H]``, and the start
        ``[1, H, K, K]``, all float32.
    """
    heads = log_decay.shape[-1]
    count = log_decay.numel()
    like = torch.float32
    made = [log_decay.new_empty(count // heads, heads, dtype=like) for _ in range(4)]
    floor = log_decay.new_empty(heads, dtype=like)
    start = log_decay.new_empty(1, heads, key_dim, key_dim, dtype=like)
    parts = max(cdiv(key_dim, ROWS), 1)
    gates_kernel[(cdiv(count, TILE) + heads * parts,)](
        log_decay,
        log_retention,
        obs_noise,
        prior,
        *made,
        floor,
        start,
        count,
        float(prior_var),
        float(ratio),
        H=heads,
        K=key_dim,
        BK=block(max(key_dim, 1)),
        PARTS=parts,
        LEAST=LOG_ZERO,
        N=TILE,
        R=ROWS,
    )
    return *made, floor, start  # type: ignore[return-value]


def gates_backward(
    gradients: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    log_decay: Tensor,
    log_retention: Tensor | None,
    noise_dtype: torch.dtype,
    prior: Tensor | None,
    prior_var: float | int,
    retention: Tensor,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Launch ``gates_backward_kernel``.

    Args:
        gradients: of decay, retention, process noise and observation noise, contiguous, or ``None``.
        log_decay: as in ``gates``; so the next, prior and prior_var.
        log_retention: where given.
        noise_dtype: of the observation noise that was given.
        prior: where given.
        prior_var: without it.
        retention: of ``gates``.

    Returns:
        Gradients of log decay, log retention (if given) and observation noise as they came, and what the process noise
        gives to that of the prior (if given), ``[H]``.
    """
    d_decay = torch.empty_like(log_decay)
    d_retention = None if log_retention is None else torch.empty_like(log_retention)
    d_noise = torch.empty_like(log_decay, dtype=noise_dtype)
    d_prior = None if prior is None or gradients[2] is None else torch.empty_like(retention)
    count = log_decay.numel()
    gates_backward_kernel[(cdiv(count, TILE),)](
        *gradients,
        log_decay,
        log_retention,
        prior,
        retention,
        d_decay,
        d_retention,
        d_noise,
        d_prior,
        count,
        float(prior_var),
        H=log_decay.shape[-1],
        LEAST=LOG_ZERO,
        N=TILE,
    )
    return d_decay, d_retention, d_noise, None if d_prior is None else d_prior.sum(0)

"""A first look at the covariance pass as one Triton kernel: what its factorisation and its precision cost.

Not shipped: docs/notes/003-kernels.md says what was learned. One program a (batch, head), P in registers,
chunks of C tokens, NB of which share one update of P; scalar retention, isotropic noise.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def eliminate(G, rows, cols, C: tl.constexpr):
    """LDL^T of a C x C block by unrolled elimination on [G | I]: returns L^{-1} and D."""
    U = tl.where(rows[:, None] == cols[None, :], 1.0, 0.0)
    D = tl.zeros((C,), dtype=tl.float32)
    for j in tl.static_range(C):
        here = rows[:, None] == j
        row = tl.sum(tl.where(here, G, 0.0), 0)
        urow = tl.sum(tl.where(here, U, 0.0), 0)
        col = tl.sum(tl.where(cols[None, :] == j, G, 0.0), 1)
        pivot = tl.sum(tl.where(cols == j, row, 0.0), 0)
        D = tl.where(rows == j, pivot, D)
        f = tl.where(rows > j, col / pivot, 0.0)
        G = G - f[:, None] * row[None, :]
        U = U - f[:, None] * urow[None, :]
    return U, D


@triton.jit
def eliminate2(G, rows, cols, C: tl.constexpr):
    """LDL^T without U (unit lower N), then the inverse by doubling."""
    D = tl.zeros((C,), dtype=tl.float32)
    L = tl.zeros((C, C), dtype=tl.float32)
    for j in tl.static_range(C):
        row = tl.sum(tl.where(rows[:, None] == j, G, 0.0), 0)
        col = tl.sum(tl.where(cols[None, :] == j, G, 0.0), 1)
        pivot = tl.sum(tl.where(cols == j, row, 0.0), 0)
        D = tl.where(rows == j, pivot, D)
        f = tl.where(rows > j, col / pivot, 0.0)
        G = G - f[:, None] * row[None, :]
        L = tl.where(cols[None, :] == j, f[:, None], L)
    eye = tl.where(rows[:, None] == cols[None, :], 1.0, 0.0)
    N2 = tl.dot(L, L, input_precision="tf32x3")
    N4 = tl.dot(N2, N2, input_precision="tf32x3")
    N8 = tl.dot(N4, N4, input_precision="tf32x3")
    U = tl.dot(eye - L, eye + N2, input_precision="tf32x3")
    U = tl.dot(U, eye + N4, input_precision="tf32x3")
    U = tl.dot(U, eye + N8, input_precision="tf32x3")
    return U, D


@triton.jit
def add8(a0, a1, a2, a3, a4, a5, a6, a7, b0, b1, b2, b3, b4, b5, b6, b7):
    """Eight sums in one reduction."""
    return a0 + b0, a1 + b1, a2 + b2, a3 + b3, a4 + b4, a5 + b5, a6 + b6, a7 + b7


@triton.jit
def pick(x, cols, j):
    """Entry j of a vector, to all threads."""
    return tl.sum(tl.where(cols == j, x, 0.0), 0)


@triton.jit
def eliminate4(G, rows, cols, C: tl.constexpr):
    """Four columns a step: one shared reduction fetches four rows of G and of U."""
    r2 = rows[:, None]
    c2 = cols[None, :]
    U = tl.where(r2 == c2, 1.0, 0.0)
    D = tl.zeros((C,), dtype=tl.float32)
    for b in tl.static_range(C // 4):
        j = 4 * b
        x0 = tl.sum(tl.where(c2 == j, G, 0.0), 1)
        x1 = tl.sum(tl.where(c2 == j + 1, G, 0.0), 1)
        x2 = tl.sum(tl.where(c2 == j + 2, G, 0.0), 1)
        x3 = tl.sum(tl.where(c2 == j + 3, G, 0.0), 1)
        y0, y1, y2, y3, u0, u1, u2, u3 = tl.reduce(
            (
                tl.where(r2 == j, G, 0.0),
                tl.where(r2 == j + 1, G, 0.0),
                tl.where(r2 == j + 2, G, 0.0),
                tl.where(r2 == j + 3, G, 0.0),
                tl.where(r2 == j, U, 0.0),
                tl.where(r2 == j + 1, U, 0.0),
                tl.where(r2 == j + 2, U, 0.0),
                tl.where(r2 == j + 3, U, 0.0),
            ),
            0,
            add8,
        )
        d0 = pick(y0, cols, j)
        l1 = pick(y0, cols, j + 1) / d0
        l2 = pick(y0, cols, j + 2) / d0
        l3 = pick(y0, cols, j + 3) / d0
        y1 -= l1 * y0
        x1 -= l1 * x0
        u1 -= l1 * u0
        d1 = pick(y1, cols, j + 1)
        m2 = pick(y1, cols, j + 2) / d1
        m3 = pick(y1, cols, j + 3) / d1
        y2 -= l2 * y0 + m2 * y1
        x2 -= l2 * x0 + m2 * x1
        u2 -= l2 * u0 + m2 * u1
        d2 = pick(y2, cols, j + 2)
        n3 = pick(y2, cols, j + 3) / d2
        y3 -= l3 * y0 + m3 * y1 + n3 * y2
        x3 -= l3 * x0 + m3 * x1 + n3 * x2
        u3 -= l3 * u0 + m3 * u1 + n3 * u2
        d3 = pick(y3, cols, j + 3)
        below = rows >= j + 4
        f0 = tl.where(below, x0 / d0, 0.0)[:, None]
        f1 = tl.where(below, x1 / d1, 0.0)[:, None]
        f2 = tl.where(below, x2 / d2, 0.0)[:, None]
        f3 = tl.where(below, x3 / d3, 0.0)[:, None]
        G -= f0 * y0[None, :] + f1 * y1[None, :] + f2 * y2[None, :] + f3 * y3[None, :]
        U -= f0 * u0[None, :] + f1 * u1[None, :] + f2 * u2[None, :] + f3 * u3[None, :]
        U = tl.where(
            r2 == j + 1, u1[None, :], tl.where(r2 == j + 2, u2[None, :], tl.where(r2 == j + 3, u3[None, :], U))
        )
        D = tl.where(
            rows == j, d0, tl.where(rows == j + 1, d1, tl.where(rows == j + 2, d2, tl.where(rows == j + 3, d3, D)))
        )
    return U, D


@triton.jit
def cov_fwd(
    k_ptr,
    ret_ptr,
    noise_ptr,
    obs_ptr,
    p0_ptr,
    gain_ptr,
    var_ptr,
    pT_ptr,
    T,
    H: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    NB: tl.constexpr,
    ELIM: tl.constexpr,
    PREC: tl.constexpr,
):
    """One program a (batch, head). NB blocks of C tokens share one update of P."""
    bh = tl.program_id(0)
    b = bh // H
    h = bh % H
    rk = tl.arange(0, K)
    rc = tl.arange(0, C)
    cc = tl.arange(0, C)
    P = tl.load(p0_ptr + bh * K * K + rk[:, None] * K + rk[None, :])
    lower = rc[:, None] >= cc[None, :]
    for start in range(0, T, C * NB):
        Racc = 0.0  # log retention since the super chunk began
        cacc = 0.0  # noise gathered since
        Pn = tl.zeros((K, K), dtype=tl.float32)
        W0 = tl.zeros((C, K), dtype=tl.float32)
        W1 = tl.zeros((C, K), dtype=tl.float32)
        W2 = tl.zeros((C, K), dtype=tl.float32)
        s0 = tl.zeros((C,), dtype=tl.float32)
        s1 = tl.zeros((C,), dtype=tl.float32)
        s2 = tl.zeros((C,), dtype=tl.float32)
        for i in tl.static_range(NB):
            t = start + i * C + rc
            inside = t < T
            k = tl.load(k_ptr + ((b * T + t[:, None]) * H + h) * K + rk[None, :], mask=inside[:, None], other=0.0).to(
                tl.float32
            )
            lr = tl.load(ret_ptr + bh * T + t, mask=inside, other=0.0)
            n = tl.load(noise_ptr + bh * T + t, mask=inside, other=0.0)
            r = tl.load(obs_ptr + bh * T + t, mask=inside, other=1.0)
            cum = tl.cumsum(lr, 0)
            # ratios R_s / R_j within the block, j <= s: sums over (j, s]
            diff = cum[:, None] - cum[None, :]
            ratio = tl.where(lower, tl.exp(diff), 0.0)
            R = tl.exp(cum)
            c = tl.sum(tl.where(lower, ratio * ratio * n[None, :], 0.0), 1)
            e2 = tl.exp(2 * Racc)
            kP = tl.dot(k, P, input_precision=PREC) * e2 + cacc * k
            if i > 0:
                kP -= tl.dot(tl.dot(k, tl.trans(W0), input_precision=PREC) * s0[None, :], W0, input_precision=PREC)
            if i > 1:
                kP -= tl.dot(tl.dot(k, tl.trans(W1), input_precision=PREC) * s1[None, :], W1, input_precision=PREC)
            if i > 2:
                kP -= tl.dot(tl.dot(k, tl.trans(W2), input_precision=PREC) * s2[None, :], W2, input_precision=PREC)
            kPk = tl.dot(kP, tl.trans(k), input_precision=PREC)
            kk = tl.dot(k, tl.trans(k), input_precision=PREC)
            # G_sj = R_s R_j kPk + (R_s/R_j) c_j kk for j <= s, and its mirror image
            low = ratio * c[None, :] * kk
            G = R[:, None] * R[None, :] * kPk + tl.where(lower, low, tl.trans(low))
            G += tl.where(rc[:, None] == cc[None, :], r[:, None], 0.0)
            if ELIM == 0:
                U, D = eliminate(G, rc, cc, C)
            elif ELIM == 1:
                U, D = eliminate2(G, rc, cc, C)
            elif ELIM == 4:
                U, D = eliminate4(G, rc, cc, C)
            else:
                U = tl.where(rc[:, None] == cc[None, :], 1.0, 0.0) + G * 1e-6
                D = tl.sum(G, 1)
            A1 = U * R[:, None] * R[None, :]
            A2 = U * ratio * c[None, :]
            W = tl.dot(A1, kP, input_precision=PREC) + tl.dot(A2, k, input_precision=PREC)
            gain = W / D[:, None]
            tl.store(
                gain_ptr + ((b * T + t[:, None]) * H + h) * K + rk[None, :],
                gain.to(gain_ptr.dtype.element_ty),
                mask=inside[:, None],
            )
            tl.store(var_ptr + bh * T + t, D, mask=inside)
            total = tl.sum(lr, 0)
            back = tl.exp(2 * (total - cum))  # (R_C / R_s)^2
            fade = tl.exp(2 * total)
            s0 *= fade
            s1 *= fade
            s2 *= fade
            sW = back / D
            c_end = tl.sum(tl.where(rc == C - 1, c, 0.0), 0)
            cacc = cacc * fade + c_end
            Racc += total
            if i == 0:
                W0 = W
                s0 = sW
            if i == 1:
                W1 = W
                s1 = sW
            if i == 2:
                W2 = W
                s2 = sW
            if i == NB - 1:
                Pn = tl.dot(tl.trans(W * sW[:, None]), W, input_precision=PREC)
        if NB > 1:
            Pn += tl.dot(tl.trans(W0 * s0[:, None]), W0, input_precision=PREC)
        if NB > 2:
            Pn += tl.dot(tl.trans(W1 * s1[:, None]), W1, input_precision=PREC)
        if NB > 3:
            Pn += tl.dot(tl.trans(W2 * s2[:, None]), W2, input_precision=PREC)
        P = P * tl.exp(2 * Racc) - Pn + tl.where(rk[:, None] == rk[None, :], cacc, 0.0)
    tl.store(pT_ptr + bh * K * K + rk[:, None] * K + rk[None, :], P)


def run(k, log_ret, noise, obs, P0, C=16, NB=1, elim=0, prec="tf32x3", warps=8, gain_dtype=torch.float32):
    """Gains ``[B, T, H, K]``, innovation variances ``[B, H, T]`` and the final covariance.

    ``elim``: 0 column by column on [G | I], 1 the factor and then its inverse by doubling, 4 four columns
    a step, 2 none at all (wrong on purpose: what is left is the floor of the other work).
    """
    B, T, H, K = k.shape
    gain = torch.empty(B, T, H, K, device=k.device, dtype=gain_dtype)
    var = torch.empty(B * H, T, device=k.device)
    PT = torch.empty_like(P0)
    cov_fwd[(B * H,)](k, log_ret, noise, obs, P0, gain, var, PT, T, H, K, C, NB, elim, prec, num_warps=warps)
    return gain, var.view(B, H, T), PT

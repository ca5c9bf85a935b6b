"""Gains of a covariance that stands before every token at one number a head, such as the prior of a reset.

Legend: k a key, p the variance, r the observation noise; gamma, sigma the gradients of the gain and of s:

    s = p |k|^2 + r      g = p k / s
    e = sigma - p (gamma . k) / s^2
    dk = p gamma / s + 2 p e k      dr = e      dp = gamma . k / s + e |k|^2
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from bayesmem.ops.triton.launched import launched
from bayesmem.ops.triton.sizes import block, cdiv

TILE = 4096  # numbers a program holds of each operand


@triton.jit
@no_type_check
def place_keys(k, row, rows, H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, BK: tl.constexpr):
    """The keys of a tile of (token, value head) rows in float32, where they lie in ``[N, H, K]``, and their mask."""
    col = tl.arange(0, BK)
    token, head = (row // H).to(tl.int64), row % H
    held = (row < rows)[:, None] & (col < K)[None, :]
    source = (token * G + head // (H // G))[:, None] * K + col[None, :]
    keys = tl.load(k + source, mask=held, other=0.0).to(tl.float32)
    return keys, row.to(tl.int64)[:, None] * K + col[None, :], held, head


@launched
@triton.jit
@no_type_check
def gain_kernel(
    k,
    noise,
    variance,
    gain,
    innovation_var,
    rows,
    H: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
    BK: tl.constexpr,
):
    """One program R rows."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    keys, at, held, head = place_keys(k, row, rows, H, G, K, BK)
    p = tl.load(variance + head)
    s = p * tl.sum(keys * keys, 1) + tl.load(noise + row, mask=row < rows, other=1.0)
    tl.store(innovation_var + row, s, mask=row < rows)
    tl.store(gain + at, (keys * (p / s)[:, None]).to(gain.dtype.element_ty), mask=held)


@launched
@triton.jit
@no_type_check
def gain_backward_kernel(
    k,
    innovation_var,
    variance,
    dgain,
    dinnovation_var,
    dk,
    dnoise,
    dvariance,
    rows,
    H: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
    BK: tl.constexpr,
):
    """One program R rows; ``dvariance`` is a part of the sum, ``[N, H]``."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    keys, at, held, head = place_keys(k, row, rows, H, G, K, BK)
    gamma = tl.load(dgain + at, mask=held, other=0.0).to(tl.float32)
    p = tl.load(variance + head)
    per_s = 1.0 / tl.load(innovation_var + row, mask=row < rows, other=1.0)
    along = tl.sum(gamma * keys, 1) * per_s
    e = -p * along * per_s
    if dinnovation_var is not None:
        e += tl.load(dinnovation_var + row, mask=row < rows, other=0.0)
    slope = (p * per_s)[:, None] * gamma + (2.0 * p * e)[:, None] * keys
    tl.store(dk + at, slope.to(dk.dtype.element_ty), mask=held)
    tl.store(dnoise + row, e, mask=row < rows)
    tl.store(dvariance + row, along + e * tl.sum(keys * keys, 1), mask=row < rows)


def _blocks(k: Tensor, noise: Tensor) -> tuple[int, dict[str, Any]]:
    width = block(k.shape[-1])
    sizes = {"H": noise.shape[1], "G": k.shape[1], "K": k.shape[-1], "R": max(TILE // width, 1), "BK": width}
    return noise.numel(), sizes


def constant_gain(k: Tensor, noise: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Launch ``gain_kernel``: gains ``[N, H, K]`` in the dtype of k, innovation variances ``[N, H]``.

    Args:
        k: ``[N, G, K]``, contiguous.
        noise: ``[N, H]`` float32.
        variance: ``[H]`` float32.
    """
    rows, sizes = _blocks(k, noise)
    gain, innovation_var = k.new_empty(*noise.shape, k.shape[-1]), torch.empty_like(noise)
    gain_kernel[(cdiv(rows, sizes["R"]),)](k, noise, variance, gain, innovation_var, rows, **sizes)
    return gain, innovation_var


def constant_gain_backward(
    k: Tensor, innovation_var: Tensor, variance: Tensor, dgain: Tensor, dinnovation_var: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch ``gain_backward_kernel``: gradients of k, a value head each, of noise and of variance."""
    rows, sizes = _blocks(k, innovation_var)
    dk = k.new_empty(*innovation_var.shape, k.shape[-1])
    dnoise, dvariance = torch.empty_like(innovation_var), torch.empty_like(innovation_var)
    grid = (cdiv(rows, sizes["R"]),)
    given = (dgain, dinnovation_var, dk, dnoise, dvariance)
    gain_backward_kernel[grid](k, innovation_var, variance, *given, rows, **sizes)
    return dk, dnoise, dvariance.sum(0)

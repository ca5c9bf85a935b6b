"""Textbook forms of what the zoo names, written from their definitions and not as filters. Axes as of ``filter``."""

import torch
from torch import Tensor


def proximal(q: Tensor, k: Tensor, v: Tensor, noise: Tensor) -> Tensor:
    """Longhorn: ``S_t = argmin |S - S_{t-1}|^2 + |v_t - S^T k_t|^2 / r_t``, by its normal equations.

    Liu et al., arXiv 2407.14207, section 3, before the diagonal approximation; their beta is 1 / r,
    here one a value channel ``[B, T, H, V]``.
    """
    memory = torch.zeros(*v.shape[::2], v.shape[-1], k.shape[-1], dtype=v.dtype)  # [B, H, V, K], a row a channel
    eye, out = torch.eye(k.shape[-1], dtype=v.dtype), []
    for t in range(q.shape[1]):
        key, weight = k[:, t, :, None, :], 1 / noise[:, t, :, :, None]
        square = eye + (weight[..., None] * key[..., :, None] * key[..., None, :])
        memory = torch.linalg.solve(square, memory + weight * v[:, t, :, :, None] * key)
        out.append((memory * q[:, t, :, None, :]).sum(-1))
    return torch.stack(out, 1)


def longhorn_diagonal(q: Tensor, k: Tensor, v: Tensor, noise: Tensor) -> Tensor:
    """Longhorn as released: ``S_t = (1 - eps_t k_t^2) S_{t-1} + eps_t k_t x_t`` elementwise, eps = 1 / (r + |k|^2).

    The paper's approximation of ``k k^T`` by its diagonal, which makes the recurrence elementwise.
    """
    memory = torch.zeros(*v.shape[::2], k.shape[-1], v.shape[-1], dtype=v.dtype)
    out = []
    for t in range(q.shape[1]):
        key = k[:, t, :, :, None]
        eps = 1 / (noise[:, t, :, None, :] + key.square().sum(-2, True))
        memory = (1 - eps * key**2) * memory + eps * key * v[:, t, :, None, :]
        out.append((memory * q[:, t, :, :, None]).sum(-2))
    return torch.stack(out, 1)


def projections(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Kaczmarz: the nearest memory that answers the newest key rightly, by the key's pseudo-inverse."""
    memory = torch.zeros(*v.shape[::2], k.shape[-1], v.shape[-1], dtype=v.dtype)
    out = []
    for t in range(q.shape[1]):
        row = k[:, t, :, None, :]
        memory = memory + torch.linalg.pinv(row) @ (v[:, t, :, None, :] - row @ memory)
        out.append((memory * q[:, t, :, :, None]).sum(-2))
    return torch.stack(out, 1)


def weighted_ridge(q: Tensor, k: Tensor, v: Tensor, weight: Tensor, log_discount: Tensor) -> Tensor:
    """``argmin sum_s gamma^(t-s) w_s |v_s - S^T k_s|^2 + gamma^t |S|^2``, anew for every t.

    gamma ``[H]``, w ``[B, T, H]``.
    """
    length, eye = q.shape[1], torch.eye(k.shape[-1], dtype=v.dtype)
    out = []
    for t in range(length):
        ages = torch.arange(t, -1, -1, dtype=v.dtype)[:, None]
        w = (ages * log_discount).exp() * weight[:, : t + 1]
        ridge = (log_discount * (t + 1)).exp()[:, None, None] * eye
        gram = torch.einsum("bsh,bshi,bshj->bhij", w, k[:, : t + 1], k[:, : t + 1]) + ridge
        moment = torch.einsum("bsh,bshi,bshv->bhiv", w, k[:, : t + 1], v[:, : t + 1])
        out.append((torch.linalg.solve(gram, moment) * q[:, t, :, :, None]).sum(-2))
    return torch.stack(out, 1)


def ornstein_uhlenbeck(q: Tensor, k: Tensor, v: Tensor, noise: Tensor, log_decay: Tensor) -> Tensor:
    """Dense Gaussian conditioning: ``cov(S_s, S_t) = prod(a) I``, so that of values is ``prod(a) k_s.k_t``."""
    time = log_decay.transpose(1, 2).cumsum(-1)
    kept = (time[..., :, None] - time[..., None, :]).tril().exp()
    kept = kept.tril() + kept.tril(-1).mT
    gram = kept * torch.einsum("bshk,bthk->bhst", k, k) + torch.diag_embed(noise.transpose(1, 2))
    cross = kept * torch.einsum("bthk,bshk->bhts", q, k)
    values, out = v.transpose(1, 2), []
    for t in range(1, q.shape[1] + 1):
        weights = torch.linalg.solve(gram[..., :t, :t], values[:, :, :t])
        out.append((cross[..., t - 1, :t, None] * weights).sum(-2))
    return torch.stack(out, 1)


def steady_gain(log_retention: Tensor, noise: Tensor, key_dim: int, steps: int = 4000) -> Tensor:
    """Gain on a unit key at the fixed point of (predict, trace-matched update), by iterating them."""
    kept, p = (2 * log_retention).exp(), torch.ones_like(noise)
    for _ in range(steps):
        after = p - p**2 / (key_dim * (p + noise))
        p = kept * after + (1 - kept)
    return p / (p + noise)

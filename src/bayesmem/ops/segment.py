"""What a segment of a sequence does to the belief that enters it, as an element that composes. docs/math.md 5.4.

Legend: rho retention, P covariance, M mean.

    full covariance   (A, C, J)       P' = A (I + P J)^{-1} P A^T + C    one call from mean I, cov 0, values 0
    diagonal          (a, b, c, d)    p' = (a p + b) / (c p + d)         a product of 2 x 2 matrices a channel
    mean              (Phi, b)        M' = Phi M + b                     one call from mean [I | 0], values [0 | V]

The calls are of ``bayesian_filter`` itself, on any back end. Elements are float64: they are small, and composing them
solves with sums over many tokens. Where a sequence begins with the segment (``through=False``) nothing that enters
matters: the element is constant, what the segment leaves behind of the prior.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from bayesmem.ops.api import Backend, bayesian_filter
from bayesmem.ops.assumptions import Additive, Assumptions, PriorMixing
from bayesmem.ops.problem import Problem
from bayesmem.ops.step import AffineNoise, symmetric
from bayesmem.types import Belief

Given = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Assumptions]


def unsupported(assumptions: Assumptions) -> str | None:
    """Why segments of such a memory have no element, in words that end a sentence, or ``None``."""
    if assumptions.dof is not None:
        return "under Student-t noise (dof) gains depend on the values"
    if assumptions.covariance == "isotropic":
        return "covariance='isotropic' matches a trace at every token, and such updates do not compose"
    if not isinstance(assumptions.process_noise, PriorMixing | Additive):
        return f"{type(assumptions.process_noise).__name__} works on precisions, for which no element is written"
    return None


def either(first: bool, x: Tensor, y: Tensor) -> Tensor:
    """``x`` or ``y``, with both in the autograd graph: the graph must not depend on the rank (see ``exchange``)."""
    return torch.where(x.new_full((), first, dtype=torch.bool), x, y)


def covariance_element(p: Problem, a: Assumptions, through: bool, backend: Backend) -> Float[Tensor, "3 B H K K"]:
    """``(A, C, J)`` of a full covariance, from one call whose mean decays by the retention.

    Of its K zero columns the innovations ``-(rho_t k_t)^T M_{t-1}`` are what the token before reads with the query
    ``rho_t k_t``, and so are their variances; ``J`` is their Gram matrix. It is formed in float64, or rounding in the
    directions often measured would pass for evidence in the others.

    Args:
        p: the segment; its initial covariance is the prior's where ``through`` is false.
        a: its assumptions.
        through: whether the sequence goes on from before the segment.
        backend: of ``bayesian_filter``.
    """
    assert isinstance(p.noise, AffineNoise) and p.initial.cov is not None
    k, added = p.k.transpose(1, 2), p.noise.variance
    eye = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device).expand_as(p.initial.cov)
    start = either(through, eye, torch.zeros_like(eye))
    kept = p.noise.log_retention.exp() * p.k
    coming = torch.cat([kept[:, :, 1:], torch.zeros_like(kept[:, :, :1])], 2)
    out = bayesian_filter(
        coming.transpose(1, 2),
        k,
        torch.zeros_like(k),
        _gate(p.noise.log_retention),
        p.obs_noise.transpose(1, 2) if p.measured else None,
        replace(a, process_noise=PriorMixing() if isinstance(a.process_noise, PriorMixing) else Additive(_gate(added))),
        initial_belief=Belief(start, either(through, torch.zeros_like(eye), p.initial.cov)),
        outputs=["final_belief", "predictive_var"],
        backend=backend,
        validate=False,
    )
    end, var = out.final_belief, out.predictive_var
    assert isinstance(end, Belief) and end.cov is not None and var is not None
    transition, fresh = end.mean.double(), end.cov.double()
    if not p.measured:
        return torch.stack([transition, fresh, torch.zeros_like(fresh)])
    seen = torch.cat([kept[:, :, :1] @ start, out.o.transpose(1, 2)[:, :, :-1]], 2).double()
    var = torch.cat([torch.zeros_like(p.obs_noise[:, :, :1]), var.transpose(1, 2)[:, :, :-1]], 2)
    innovation_var = var + (added * p.k**2).sum(-1) + p.obs_noise
    return torch.stack([transition, fresh, (seen / innovation_var[..., None]).mT @ seen])


def _gate(x: Float[Tensor, "B H T D"]) -> Tensor:
    """As ``bayesian_filter`` takes gates: ``[B, T, H]`` or ``[B, T, H, K]``."""
    x = x.transpose(1, 2)
    return x[..., 0] if x.shape[-1] == 1 else x


def through_covariance(element: Float[Tensor, "3 B H K K"], cov: Float[Tensor, "B H K K"]) -> Float[Tensor, "B H K K"]:
    """``A (I + P J)^{-1} P A^T + C``."""
    transition, fresh, information = element
    eye = torch.eye(cov.shape[-1], dtype=cov.dtype, device=cov.device)
    informed, _ = torch.linalg.solve_ex(eye + cov @ information, cov)
    return symmetric(transition @ informed @ transition.mT + fresh)


def moebius_element(p: Problem, through: bool) -> Float[Tensor, "4 B H K"]:
    """``(a, b, c, d)`` of a diagonal covariance's channels, all non-negative.

    A token's map is the matrix ``[[1, 0], [k^2 / r, 1]] [[rho^2, n], [0, 1]]``; they are multiplied in pairs.

    Args:
        p: the segment; its initial covariance is the prior's where ``through`` is false.
        through: whether the sequence goes on from before the segment.
    """
    assert isinstance(p.noise, AffineNoise) and p.initial.cov is not None
    k, start = p.k.double(), p.initial.cov.double()
    precision = k**2 / p.obs_noise[..., None]
    keep, add = (2 * p.noise.log_retention.double()).exp().expand_as(k), p.noise.variance.double().expand_as(k)
    rows = torch.stack([keep, add], -1), torch.stack([precision * keep, 1 + precision * add], -1)
    maps = torch.stack(rows, -2)  # B H T K 2 2
    while (length := maps.shape[2]) > 1:
        pairs = maps[:, :, 1::2] @ maps[:, :, : length - 1 : 2]
        pairs = pairs / pairs.detach().amax((-2, -1), keepdim=True)  # a Moebius map does not see its scale
        maps = torch.cat([pairs, maps[:, :, length - length % 2 :]], 2)
    element = maps[:, :, 0].flatten(-2).movedim(-1, 0)
    left = through_moebius(element, start)
    return either(through, element, torch.stack([0 * left, left, 0 * left, 0 * left + 1]))


def through_moebius(element: Float[Tensor, "4 B H K"], cov: Float[Tensor, "B H K"]) -> Float[Tensor, "B H K"]:
    """``(a p + b) / (c p + d)``."""
    a, b, c, d = element
    return (a * cov + b) / (c * cov + d)


def mean_element(given: Given, entering: Belief, through: bool, backend: Backend) -> Float[Tensor, "B H K F"]:
    """``[Phi | b]``, K + V columns, of any structure: under the covariance that enters, the mean is affine.

    Args:
        given: the segment, as of ``bayesian_filter``.
        entering: belief before the segment, of whose mean only the shape counts.
        through: whether the sequence goes on from before the segment.
        backend: of ``bayesian_filter``.
    """
    q, k, v, log_decay, obs_noise, assumptions = given
    values = torch.cat([v.new_zeros(*v.shape[:3], k.shape[-1]), v], -1)
    nothing = torch.zeros_like(entering.mean)
    eye = torch.eye(k.shape[-1], dtype=nothing.dtype, device=k.device).expand(*nothing.shape[:2], -1, -1)
    out = bayesian_filter(
        q,
        k,
        values,
        log_decay,
        obs_noise,
        assumptions,
        initial_belief=Belief(torch.cat([either(through, eye, torch.zeros_like(eye)), nothing], -1), entering.cov),
        outputs=["final_belief"],
        backend=backend,
        validate=False,
    )
    assert isinstance(out.final_belief, Belief)
    return out.final_belief.mean.double()


def through_mean(element: Float[Tensor, "B H K F"], mean: Float[Tensor, "B H K V"]) -> Float[Tensor, "B H K V"]:
    """``Phi M + b``."""
    size = mean.shape[-2]
    return element[..., :size] @ mean + element[..., size:]

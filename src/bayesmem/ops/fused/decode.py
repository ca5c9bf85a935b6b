"""One token, the belief updated where it lies, as a torch operator.

Declared by its schema: ``custom_op`` adds, in Python and at every call, more than one token's work.
"""

import torch
from torch import Tensor

from bayesmem.ops.triton.decode import decode_step

NAME = "bayesmem::decode_step"
torch.library.define(
    NAME,
    "(Tensor q, Tensor k, Tensor v, Tensor log_decay, Tensor? log_retention, Tensor? process_noise, Tensor obs_noise, "
    "Tensor? floor, Tensor(a!) mean, Tensor(b!)? cov, Tensor? prior_var, str covariance, bool want_var, "
    "bool want_evidence) -> (Tensor, Tensor, Tensor, Tensor)",
)


@torch.library.impl(NAME, "default")
def _decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    log_retention: Tensor | None,
    process_noise: Tensor | None,
    obs_noise: Tensor,
    floor: Tensor | None,
    mean: Tensor,
    cov: Tensor | None,
    prior_var: Tensor | None,
    covariance: str,
    want_var: bool,
    want_evidence: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``decode_step`` for ``torch.compile``: one token, the belief updated where it lies; no gradients.

    Returns:
        o ``[S, H, V]``, predictive variance, innovation variance and energy ``[S, H]``; empty where not asked for.
    """
    o, *rest = decode_step(
        q,
        k,
        v,
        log_decay,
        log_retention,
        process_noise,
        obs_noise,
        floor,
        mean,
        cov,
        prior_var,
        covariance,
        want_var,
        want_evidence,
    )
    var, innovation_var, energy = (obs_noise.new_empty(0) if x is None else x for x in rest)
    return o, var, innovation_var, energy


@torch.library.register_fake(NAME)
def _(q, k, v, log_decay, log_retention, process_noise, obs_noise, *rest):  # type: ignore[no-untyped-def]
    want_var, want_evidence = rest[-2:]
    asked = (want_var, want_evidence, want_evidence)
    return torch.empty_like(v), *(torch.empty_like(obs_noise) if x else obs_noise.new_empty(0) for x in asked)


decode_op = torch.ops.bayesmem.decode_step.default

"""A memory that follows one of several designs, nobody knows which: the evidence says. Experimental.

Each component is filtered by itself and the posterior is their mixture, with weights

    log w_t = kept * log w_{t-1} + log p(v_t | v_<t, component)      (normalised)

which is exact Bayesian model averaging at ``kept = 1`` (Magill 1965; docs/math.md section 1.3).
The prediction at a query is a mixture of Gaussians: its mean is the weighted mean, its variance that
within and between components.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from bayesmem.types import FilterOutput, MixtureBelief


def mix(
    parts: Sequence[FilterOutput],
    log_weights: Float[Tensor, "N H J"] | None,
    kept: float | int,
    cu_seqlens: Tensor | None,
    attention_mask: Tensor | None,
    outputs: Sequence[str],
) -> FilterOutput:
    """One output from those of the components.

    Args:
        parts: outputs of the J components with variance, evidence and final belief.
        log_weights: before the first token; ``None`` is uniform.
        kept: share of the log weights that each token keeps.
        cu_seqlens: offsets of packed sequences, each of which starts anew.
        attention_mask: 0 where a token is padding.
        outputs: which fields to return.
    """
    evidence = torch.stack([_given(part.log_evidence) for part in parts], -1)
    if log_weights is None:
        rows = evidence.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
        log_weights = evidence.new_zeros(rows, *evidence.shape[2:])
    total, joint, last = _weigh(evidence, log_weights.to(evidence.dtype), kept, cu_seqlens, attention_mask)
    weights = total.exp()
    means = torch.stack([part.o.to(weights.dtype) for part in parts], -1)
    mean = (weights[..., None, :] * means).sum(-1)
    # One variance a head: the spread between components, averaged over value channels, on top of that within.
    within = torch.stack([_given(part.predictive_var) for part in parts], -1)
    between = (means - mean[..., None]).square().mean(-2)
    var = (weights * (within + between)).sum(-1)
    beliefs = tuple(part.final_belief for part in parts)
    return FilterOutput(
        mean.to(parts[0].o.dtype),
        var if "predictive_var" in outputs else None,
        joint if "log_evidence" in outputs else None,
        MixtureBelief(beliefs, last) if "final_belief" in outputs else None,  # type: ignore[arg-type]
    )


def _weigh(
    evidence: Float[Tensor, "B T H J"],
    start: Float[Tensor, "N H J"],
    kept: float | int,
    cu_seqlens: Tensor | None,
    attention_mask: Tensor | None,
) -> tuple[Float[Tensor, "B T H J"], Float[Tensor, "B T H"], Float[Tensor, "N H J"]]:
    """Log weights after every token, the mixture's own log evidence, and the log weights at each end."""
    if cu_seqlens is not None:
        bounds = cu_seqlens.tolist()
        runs = [
            _weigh(evidence[:, i:j], start[n : n + 1], kept, None, None) for n, (i, j) in enumerate(pairwise(bounds))
        ]
        weights, joint, last = zip(*runs, strict=True)
        return torch.cat(weights, 1), torch.cat(joint, 1), torch.cat(last)
    current, over_time, joint_evidence = start.log_softmax(-1), [], []
    for t in range(evidence.shape[1]):
        before = (kept * current).log_softmax(-1)
        after = before + evidence[:, t]
        total = after.logsumexp(-1)
        moved = after - total[..., None]
        if attention_mask is not None:
            real = attention_mask[:, t].bool()[:, None]
            moved = torch.where(real[..., None], moved, current)
            total = torch.where(real, total, torch.zeros_like(total))
        current = moved
        over_time.append(current)
        joint_evidence.append(total)
    return torch.stack(over_time, 1), torch.stack(joint_evidence, 1), current


def _given(x: Tensor | None) -> Tensor:
    assert x is not None
    return x

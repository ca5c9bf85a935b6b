"""The words every part of bayesmem shares: beliefs, filter outputs and the axis legend.

Axes are single capitals: B batch, T time, H heads (value heads), K key dim, V value dim,
C chunk length, N chunks or packed sequences, D model width. Public tensors are laid out
``[B, T, H, ...]`` as in flash-linear-attention; inside ``ops`` heads come first, ``[B, H, T, ...]``.
Noises are variances, decays and retentions are natural logarithms (at most 0).
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Belief:
    """What a memory believes: ``S ~ MN(mean, cov, I_V)``, one covariance for all V columns.

    Attributes:
        mean: posterior mean, ``[B, H, K, V]``.
        cov: posterior covariance in the layout of its structure: full ``[B, H, K, K]``,
            diagonal ``[B, H, K]``, isotropic ``[B, H, 1]``, and ``None`` for the reset and
            steady-state structures, which carry no covariance from token to token.
    """

    mean: Float[Tensor, "B H K V"]
    cov: Float[Tensor, "B H 1"] | Float[Tensor, "B H K"] | Float[Tensor, "B H K K"] | None = None

    def detach(self) -> "Belief":
        """The same belief, cut out of the autograd graph."""
        return Belief(self.mean.detach(), None if self.cov is None else self.cov.detach())

    def rows(self, index: Tensor) -> "Belief":
        """The belief of the given batch rows, in that order."""
        return Belief(self.mean[index], None if self.cov is None else self.cov[index])


@dataclass(frozen=True, slots=True)
class MixtureBelief:
    """What a mixture of memories believes: one belief a component, and the weights.

    Attributes:
        parts: beliefs of the J components.
        log_weights: normalised, ``[B, H, J]``.
    """

    parts: tuple[Belief, ...]
    log_weights: Float[Tensor, "B H J"]

    def detach(self) -> "MixtureBelief":
        """The same belief, cut out of the autograd graph."""
        return MixtureBelief(tuple(part.detach() for part in self.parts), self.log_weights.detach())

    def rows(self, index: Tensor) -> "MixtureBelief":
        """The belief of the given batch rows, in that order."""
        return MixtureBelief(tuple(part.rows(index) for part in self.parts), self.log_weights[index])


@dataclass(frozen=True, slots=True)
class FilterOutput:
    """What ``bayesian_filter`` returns. Fields not asked for are ``None``.

    Attributes:
        o: predictive mean ``mean_t^T q_t``, the layer's output, ``[B, T, H, V]``, in v's dtype.
        predictive_var: ``q_t^T cov_t q_t``, variance of each output channel (before observation
            noise), ``[B, T, H]``, at least float32.
        log_evidence: ``log p(v_t | v_<t)`` in nats, summed over the V channels, ``[B, T, H]``.
        final_belief: belief after the last token (of every packed sequence).
        innovation_var: ``k_t^T cov_t|t-1 k_t + obs_noise_t``, variance with which each value channel was
            predicted, ``[B, T, H]``, at least float32.
        innovation_energy: mean over the V channels of the squared innovation over its variance,
            ``[B, T, H]``: 1 on average where the memory knows its errors, more where it is too sure.
    """

    o: Float[Tensor, "B T H V"]
    predictive_var: Float[Tensor, "B T H"] | None = None
    log_evidence: Float[Tensor, "B T H"] | None = None
    final_belief: Belief | MixtureBelief | None = None
    innovation_var: Float[Tensor, "B T H"] | None = None
    innovation_energy: Float[Tensor, "B T H"] | None = None

"""A filtering problem in the form both back ends take: checked, heads first, one working dtype."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from bayesmem.ops.assumptions import Covariance
from bayesmem.ops.step import AffineNoise, PrecisionNoise
from bayesmem.types import Belief


@dataclass(frozen=True, slots=True)
class Problem:
    """Evidence over time and the assumptions to filter it under, axes ``[B, H, T, ...]``.

    Attributes:
        q, k: ``[B, H, T, K]``.
        v: ``[B, H, T, V]``.
        log_decay: the mean's, ``[B, H, T, D]``, D = 1 or K.
        obs_noise: ``[B, H, T]``; of no meaning under the latent-input write.
        noise: how the covariance loses certainty.
        prior_var: diagonal of the prior covariance, ``[H, K]``.
        steady_var: given predicted variance of the steady-state structure, ``[H]``.
        initial: belief before the first token; ``cov`` in the structure's own layout.
        covariance: the structure.
        measured: False for the latent-input write.
        dof: degrees of freedom of the observation noise; ``None`` is Gaussian.
        half: whether q, k and v came in 16 bits.
        from_prior: whether the initial covariance is the prior's.
    """

    q: Float[Tensor, "B H T K"]
    k: Float[Tensor, "B H T K"]
    v: Float[Tensor, "B H T V"]
    log_decay: Float[Tensor, "B H T D"]
    obs_noise: Float[Tensor, "B H T"]
    noise: AffineNoise | PrecisionNoise
    prior_var: Float[Tensor, "H K"]
    steady_var: Float[Tensor, "H"] | None
    initial: Belief
    covariance: Covariance
    measured: bool
    dof: float | int | None = None
    half: bool = False
    from_prior: bool = False


@dataclass(frozen=True, slots=True)
class Solution:
    """What a back end returns, heads first; ``None`` where not asked for (evidence: where it is the innovation's)."""

    o: Float[Tensor, "B H T V"]
    final_belief: Belief | None
    predictive_var: Float[Tensor, "B H T"] | None = None
    innovation: Float[Tensor, "B H T V"] | None = None
    innovation_var: Float[Tensor, "B H T"] | None = None
    log_evidence: Float[Tensor, "B H T"] | None = None

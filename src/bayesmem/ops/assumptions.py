"""What a filter assumes of its memory: process noise, covariance structure, prior, write."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from torch import Tensor

Covariance = Literal["full", "diagonal", "isotropic", "reset", "steady_state", "none"]
Write = Literal["measurement", "latent_input"]

COVARIANCES: tuple[str, ...] = get_args(Covariance)
WRITES: tuple[str, ...] = get_args(Write)


@dataclass(frozen=True, slots=True)
class PriorMixing:
    """``P- = rho P rho + (1 - rho^2) P_0``: the covariance relaxes to the prior (the default).

    Attributes:
        log_retention: ``log rho``, ``[B, T, H]`` or ``[B, T, H, K]``; ``None`` takes ``log_decay``.
    """

    log_retention: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Additive:
    """``P- = A P A + diag(variance)``: a random walk on top of the decay.

    Attributes:
        variance: non-negative; a number, ``[B, T, H]`` (isotropic) or ``[B, T, H, K]`` (diagonal).
    """

    variance: Tensor | float | int = 0.0


@dataclass(frozen=True, slots=True)
class Discount:
    """``P-^{-1} = gamma P^{-1} + (1 - gamma) floor / p0``: exponential forgetting of evidence.

    With ``floor = 0`` this is the textbook ``P- = P / gamma``, whose variance winds up without
    bound in directions never written again. The floor is the precision, as a fraction of the
    prior's, that forgetting never goes below.

    Attributes:
        log_discount: ``log gamma``, at most 0, ``[B, T, H]``.
        floor: from 0 to 1; above 1, forgetting would add certainty.
    """

    log_discount: Tensor
    floor: float | int = 1e-4


@dataclass(frozen=True, slots=True)
class LogLinearMixing:
    """``P-^{-1} = gamma P^{-1} + (1 - gamma) P_0^{-1}`` and ``info- = gamma info`` (MesaNet).

    The geometric mixture of posterior and prior (stabilised forgetting, Kulhavy and Zarrop 1993).
    It moves the mean as well, so ``log_decay`` of the filter *is* ``log gamma``.
    """


ProcessNoise = PriorMixing | Additive | Discount | LogLinearMixing


@dataclass(frozen=True, slots=True)
class Assumptions:
    """The assumptions under which ``bayesian_filter`` filters.

    Attributes:
        covariance: how the covariance is carried. ``full`` exactly; ``diagonal`` and
            ``isotropic`` as mean-field projections; ``reset`` puts it back to the prior before
            every token (the delta rule); ``steady_state`` holds it at ``steady_var``; ``none``, under
            ``write="latent_input"`` only, computes the mean alone.
        process_noise: how certainty is lost between tokens.
        prior_var: prior variance ``p0`` of the memory: a number, ``[H]`` or ``[H, K]``.
        steady_var: for ``steady_state``, the constant predicted variance ``[H]``; ``None`` takes
            the mean-field fixed point of docs/math.md section 6.
        write: ``measurement`` (the token measures the memory through its key) or
            ``latent_input`` (the token's outer product drives the memory; nothing is measured).
        obs_noise_floor: observation noise is raised to at least this fraction of ``p0 |k|^2``, the
            prior's own variance along the key (not under ``reset``): it bounds what one token can
            tell, and with it the condition of the float32 factorisations.
        dof: degrees of freedom of a Student-t observation noise; ``None`` is Gaussian. Experimental:
            gains then depend on the values, so the recurrent back end computes it
            (``bayesmem.ops.student_t``).
    """

    covariance: Covariance = "full"
    process_noise: ProcessNoise = field(default_factory=PriorMixing)
    prior_var: Tensor | float | int = 1.0
    steady_var: Tensor | None = None
    write: Write = "measurement"
    obs_noise_floor: float | int = 1e-4
    dof: float | int | None = None

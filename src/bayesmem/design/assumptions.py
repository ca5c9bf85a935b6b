"""What a design may assume of its memory, one small frozen class a choice.

Quantities say where their numbers come from: ``"token"``, given (in a layer: learned) at every
token; ``"head"``, one number a head (in a layer: a parameter); or a plain number, fixed. ``per``
says whether a quantity is one number a head or one a key channel. No tensors here: those are given
to ``DesignModel.filter``, or made by the gates of ``DesignModel.layer``.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

Given = Literal["token", "head"] | float | int
Per = Literal["head", "channel"]
Covariance = Literal["full", "diagonal", "isotropic", "reset", "steady_state", "none"]

COVARIANCES: tuple[str, ...] = get_args(Covariance)
CARRIED = ("full", "diagonal", "isotropic")


def _check_given(
    owner: object, name: str, low: float | int, high: float | int, words: str, also: tuple[str, ...] = ()
) -> None:
    value, who = getattr(owner, name), type(owner).__name__
    named = ("token", "head", *also)
    if isinstance(value, str):
        if value not in named:
            raise ValueError(f"{who}.{name} is {value!r}; expected a number or one of {', '.join(map(repr, named))}.")
    elif not isinstance(value, float | int) or isinstance(value, bool):
        raise ValueError(f"{who}.{name} is {value!r}; expected a number or one of {', '.join(map(repr, named))}.")
    elif not (low <= value <= high and math.isfinite(value)):
        raise ValueError(f"{who}.{name} is {value}; expected {words}.")


def _check_choice(owner: object, name: str, allowed: tuple[str, ...]) -> None:
    value = getattr(owner, name)
    if value not in allowed:
        expected = ", ".join(map(repr, allowed))
        raise ValueError(f"{type(owner).__name__}.{name} is {value!r}; expected one of {expected}.")


@dataclass(frozen=True, slots=True)
class Prior:
    """``S_0 ~ MN(0, diag(var), I_V)``: the memory before anything is written.

    Attributes:
        var: prior variance p0, positive; a number, or ``"head"`` for one a head.
        per: ``"channel"`` for one a key channel (MesaNet's Lambda is its inverse).
    """

    var: Given = 1.0
    per: Per = "head"

    def __post_init__(self) -> None:
        if self.var == "token":
            raise ValueError("Prior.var is 'token'; the prior comes before all tokens: expected a number or 'head'.")
        _check_given(self, "var", 1e-30, 1e30, "a positive variance")
        _check_choice(self, "per", get_args(Per))


# Transitions -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Identity:
    """``S_t = S_{t-1} + W_t``: left alone, the memory stays as it is."""


@dataclass(frozen=True, slots=True)
class Decay:
    """``S_t = A_t S_{t-1} + W_t``, a factor in [0, 1] for the head or for each key channel.

    Attributes:
        factor: where the factor comes from; a number is the factor itself, not its logarithm.
        per: one factor a head (``A_t = a_t I``) or one a channel (``A_t = diag(a_t)``).
    """

    factor: Given = "token"
    per: Per = "head"

    def __post_init__(self) -> None:
        _check_given(self, "factor", 0, 1, "a factor between 0 and 1 (above 1 the memory would grow without bound)")
        _check_choice(self, "per", get_args(Per))


Transition = Identity | Decay

# Process noises ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NoNoise:
    """``P- = A P A``: nothing but the transition happens between tokens."""


@dataclass(frozen=True, slots=True)
class Additive:
    """``P- = A P A + diag(n_t)``: a random walk on top of the transition.

    Attributes:
        variance: where the variance ``n_t`` comes from.
        per: one a head (isotropic noise) or one a channel (diagonal noise).
    """

    variance: Given = "token"
    per: Per = "head"

    def __post_init__(self) -> None:
        _check_given(self, "variance", 0, 1e30, "a variance, 0 or more")
        _check_choice(self, "per", get_args(Per))


@dataclass(frozen=True, slots=True)
class PriorMixing:
    """``P- = rho P rho + (1 - rho^2) P_0``: the covariance relaxes to the prior.

    Attributes:
        retention: where rho comes from; ``"decay"`` is the transition's own factor.
        per: one a head or one a channel; with ``"decay"`` that of the transition.
    """

    retention: Literal["decay"] | Given = "token"
    per: Per = "head"

    def __post_init__(self) -> None:
        _check_given(
            self, "retention", 0, 1, "a retention between 0 and 1 (above 1 it would add certainty)", ("decay",)
        )
        _check_choice(self, "per", get_args(Per))


@dataclass(frozen=True, slots=True)
class Discount:
    """``P-^{-1} = gamma P^{-1} + (1 - gamma) floor P_0^{-1}``: exponential forgetting of evidence.

    Attributes:
        factor: where gamma comes from.
        floor: precision that forgetting leaves, as a fraction of the prior's, 0 to 1.
    """

    factor: Given = "token"
    floor: float | int = 1e-4

    def __post_init__(self) -> None:
        _check_given(self, "factor", 0, 1, "a discount between 0 and 1 (above 1 it would add certainty)")
        if isinstance(self.floor, str):
            raise ValueError(f"Discount.floor is {self.floor!r}; expected a number, 0 to 1.")
        _check_given(self, "floor", 0, 1, "a fraction of the prior precision, 0 to 1")
        if self.factor == 0 and self.floor == 0:
            raise ValueError("Discount(0, floor=0) leaves no precision at all; give it a floor, such as 1e-4.")


@dataclass(frozen=True, slots=True)
class LogLinearMixing:
    """``P-^{-1} = gamma P^{-1} + (1 - gamma) P_0^{-1}``, information vector ``gamma * info``: belief and prior mixed.

    It moves the mean by itself, so it stands with the identity transition.

    Attributes:
        factor: where gamma comes from.
    """

    factor: Given = "token"

    def __post_init__(self) -> None:
        _check_given(self, "factor", 0, 1, "a factor between 0 and 1 (above 1 it would add certainty)")


ProcessNoise = NoNoise | Additive | PriorMixing | Discount | LogLinearMixing

# Writes ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Measurement:
    """``v_t = S_t^T k_t + e_t``: the token measures the memory through its key.

    Attributes:
        obs_noise: where the variance r of ``e_t`` comes from.
        per_token: measurements a token, each with its own key, value and noise (DeltaProduct).
        dof: degrees of freedom of a Student-t ``e_t``; ``None`` is Gaussian. Experimental: the
            gain then shrinks for outlying innovations, token by token.
        unit_keys: whether a layer normalises its keys and queries.
    """

    obs_noise: Given = "token"
    per_token: int = 1
    dof: float | int | None = None
    unit_keys: bool = True

    def __post_init__(self) -> None:
        _check_given(self, "obs_noise", 1e-30, 1e30, "a positive variance (0 would make a token's word law)")
        if not isinstance(self.per_token, int) or self.per_token < 1:
            raise ValueError(f"Measurement.per_token is {self.per_token!r}; expected a whole number, at least 1.")
        if self.dof is not None and not 0 < self.dof < math.inf:
            raise ValueError(
                f"Measurement.dof is {self.dof}; expected positive degrees of freedom, or None (Gaussian)."
            )


@dataclass(frozen=True, slots=True)
class LatentInput:
    """``S_t = A_t S_{t-1} + b_t k_t v_t^T``: the token's evidence drives the memory; nothing is measured.

    Attributes:
        strength: ``b_t``: 1, or ``"token"`` for an input ``step`` at every token (Mamba-2's dt).
        key: ``"token"``, or ``"complement"`` for ``k_t = 1 - a_t``, what the decay makes room for (HGRN-2).
    """

    strength: Given = 1.0
    key: Literal["token", "complement"] = "token"

    def __post_init__(self) -> None:
        _check_given(self, "strength", 1e-30, 1e30, "a positive strength")
        if self.strength == "head":
            raise ValueError("LatentInput.strength is 'head'; expected a number or 'token'.")
        _check_choice(self, "key", ("token", "complement"))


Write = LatentInput | Measurement

# Read-outs ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mean:
    """``o = M^T q``, the predictive mean."""


@dataclass(frozen=True, slots=True)
class MeanAndVariance:
    """``o = M^T q`` with ``q^T P q`` beside it; a layer gives its standard deviation to the output projection."""


@dataclass(frozen=True, slots=True)
class PrecisionWeighted:
    """``o = M^T q * r / (r + q^T P q)``: the mean counts for as much as it is known against the noise (our choice)."""


@dataclass(frozen=True, slots=True)
class Information:
    """``o = (P^{-1} M)^T q``: the information vector, read without the precision (linear attention, in our reading)."""


@dataclass(frozen=True, slots=True)
class Expected:
    """``o = E[f(y)]`` over the prediction ``y ~ N(M^T q, q^T P q)``, in closed form. Experimental.

    Attributes:
        function: ``"relu"`` or ``"probit"`` (the normal distribution function, a squashing).
    """

    function: Literal["relu", "probit"] = "relu"

    def __post_init__(self) -> None:
        _check_choice(self, "function", ("relu", "probit"))


Readout = Mean | MeanAndVariance | PrecisionWeighted | Information | Expected

"""From assumptions to a recurrence: which passes, which gain rule, which inputs, how large a state. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from bayesmem.design import assumptions as a

if TYPE_CHECKING:
    from bayesmem.design.model import DesignModel


@dataclass(frozen=True, slots=True)
class Input:
    """A quantity that the recurrence needs besides q, k and v.

    Attributes:
        name: as ``DesignModel.filter`` takes it.
        axes: its shape, such as ``"B T H K"``; without B and T one number serves all tokens; N counts
            measurements, ``per_token`` times T.
        symbol: in the equations.
        meaning: in words.
    """

    name: str
    axes: str
    symbol: str
    meaning: str


@dataclass(frozen=True, slots=True)
class StateSize:
    """Numbers carried from token to token for one head; the mean and the covariance counted apart."""

    mean: int
    cov: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.mean + self.cov


@dataclass(frozen=True, slots=True)
class Recurrence:
    """What follows from a ``DesignModel``.

    Attributes:
        passes: the passes of ``bayesmem.ops`` that compute it, in order.
        gain_rule: how the gain is found; ``None`` where nothing is measured.
        inputs: quantities needed besides q, k, v (fixed numbers are not among them).
        covariance: structure of the carried covariance.
        exact: whether this is the exact filter of a memory, in words.
        experimental: computed token by token or outside the linear-Gaussian family.
    """

    passes: tuple[str, ...]
    gain_rule: str | None
    inputs: tuple[Input, ...]
    covariance: a.Covariance
    exact: str
    experimental: bool

    def state_size(self, key_dim: int, value_dim: int) -> StateSize:
        """Numbers a head carries: K V for the mean, and what the covariance takes.

        Raises:
            ValueError: sizes below 1.
        """
        if key_dim < 1 or value_dim < 1:
            raise ValueError(f"key_dim is {key_dim} and value_dim {value_dim}; expected at least 1 of each.")
        # A full covariance is counted as it is stored, K x K, though symmetry would allow half.
        cov = {"full": key_dim**2, "diagonal": key_dim, "isotropic": 1}.get(self.covariance, 0)
        return StateSize(key_dim * value_dim, cov)


@cache
def derive(model: DesignModel) -> Recurrence:
    """The recurrence that follows from a design's assumptions.

    Args:
        model: a design; it has refused contradictions when it was made.

    Source: docs/math.md sections 1 to 5.
    """
    measured = isinstance(model.write, a.Measurement)
    expected = isinstance(model.readout, a.Expected)
    heavy = isinstance(model.write, a.Measurement) and model.write.dof is not None
    rule = model.covariance if measured and model.covariance != "none" else None
    return Recurrence(
        passes=_passes(model, heavy),
        gain_rule=rule,
        inputs=tuple(_inputs(model)),
        covariance=model.covariance,
        exact=_exactness(model),
        experimental=heavy or expected,
    )


def _passes(m: DesignModel, heavy: bool) -> tuple[str, ...]:
    if heavy:
        return ("token loop",)
    if m.covariance == "none":
        return ("additive write",)
    if m.covariance == "full" and isinstance(m.process_noise, a.Discount):
        return ("precision pass", "mean pass")
    if m.covariance == "full" and isinstance(m.process_noise, a.LogLinearMixing):
        return ("precision pass", "additive write")
    return ("covariance pass" if m.covariance == "full" else f"{m.covariance} gains", "mean pass")


def _inputs(m: DesignModel) -> list[Input]:
    found: list[Input] = []

    def add(given: object, name: str, symbol: str, meaning: str, per: str = "head") -> None:
        if given in ("token", "head"):
            axes = ("B T H" if given == "token" else "H") + (" K" if per == "channel" else "")
            found.append(Input(name, axes, symbol, meaning))

    if isinstance(m.transition, a.Decay):
        add(m.transition.factor, "log_decay", "a", "log of the mean's transition", m.transition.per)
    noise, write = m.process_noise, m.write
    if isinstance(noise, a.PriorMixing):
        add(noise.retention, "log_retention", "ρ", "log of the covariance's retention", noise.per)
    if isinstance(noise, a.Additive):
        add(noise.variance, "process_noise", "n", "variance of the process noise", noise.per)
    if isinstance(noise, a.Discount | a.LogLinearMixing):
        add(noise.factor, "log_discount", "γ", "log of the share of precision kept")
    if isinstance(write, a.Measurement):
        add(write.obs_noise, "obs_noise", "r", "variance of the observation noise")
        if write.per_token > 1 and write.obs_noise == "token":
            found[-1] = replace(found[-1], axes="B N H", meaning="variance of each measurement's noise")
    else:
        add(write.strength, "step", "b", "strength of the write")
    add(m.prior.var, "prior_var", "p₀", "variance of the prior", m.prior.per)
    return found


def _exactness(m: DesignModel) -> str:
    """Section 2.2 and 2.3 of docs/math.md, in a sentence."""
    if isinstance(m.write, a.LatentInput):
        return "exact: the mean of a memory that its inputs drive"
    if isinstance(m.write, a.Measurement) and m.write.dof is not None:
        return "variational: each token's noise scale and the memory are taken as independent"
    if m.covariance in ("diagonal", "isotropic"):
        kept = "one variance" if m.covariance == "isotropic" else "its diagonal"
        return f"mean field: the posterior is projected to {kept} at every token"
    if m.covariance == "reset":
        often = "measurement" if isinstance(m.write, a.Measurement) and m.write.per_token > 1 else "token"
        return f"exact for the memory whose noise refills the prior at every {often}, Q = P₀ − A P A"
    if m.covariance == "steady_state":
        return "a gain held at the mean-field fixed point for unit keys; one key channel settles to it"
    if m.covariance == "none":
        return "exact information vector; the read-out leaves the precision out"
    per_channel = isinstance(m.transition, a.Decay) and m.transition.per == "channel"
    noise = m.process_noise
    if isinstance(noise, a.PriorMixing) and noise.retention != "decay" and (noise.per == "channel" or per_channel):
        return "exact where retention and decay are proportional; else a gain rule with a proper covariance"
    if isinstance(noise, a.Discount) and per_channel:
        return "exact where the discount refills what the decay removes; else a gain rule with a proper covariance"
    return "exact: the Kalman filter of the memory stated"

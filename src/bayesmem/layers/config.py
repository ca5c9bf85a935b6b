"""Every choice of a layer, in one place."""

from dataclasses import dataclass
from typing import Literal, get_args

from bayesmem.ops import COVARIANCES, Covariance

Retention = Literal["learned", "decay", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BayesianLayerConfig:
    """A mixer's size and assumptions. The same module is three layers.

    ====================  ===================  ===============================
    layer                 covariance           decay
    ====================  ===================  ===============================
    DeltaNet              ``"reset"``          ``False``
    Gated DeltaNet        ``"reset"``          ``True``
    Bayesian Layer        ``"full"``           ``True`` (forgets) or ``False``
    ====================  ===================  ===============================

    Attributes:
        hidden_size: model width D.
        num_heads: query and key heads G.
        head_dim: key dim K.
        value_dim: value dim V of each value head; default K.
        num_value_heads: value heads H, a multiple of G; default G.
        conv_size: taps of the short causal convolution over q, k, v; 0 leaves it out.
        covariance: the filter's covariance structure.
        decay: whether the mean has a learned decay (False: it never fades).
        retention: what the covariance keeps: ``learned`` by its own gate, the mean's ``decay``,
            or everything (``none``: nothing is ever lost; with full covariance, least squares).
        retention_init: starting ``rho^2`` of the learned gate.
        norm_eps: epsilon of the output's RMS norm.
    """

    hidden_size: int
    num_heads: int = 4
    head_dim: int = 64
    value_dim: int | None = None
    num_value_heads: int | None = None
    conv_size: int = 4
    covariance: Covariance = "full"
    decay: bool = True
    retention: Retention = "learned"
    retention_init: float | int = 0.999
    norm_eps: float | int = 1e-5

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1.")
        for name in ("value_dim", "num_value_heads"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1, or None for the default.")
        if self.value_heads % self.num_heads:
            raise ValueError(
                f"num_value_heads is {self.value_heads}; expected a multiple of num_heads {self.num_heads}."
            )
        if self.conv_size < 0:
            raise ValueError(f"conv_size is {self.conv_size}; expected 0 (none) or more.")
        if self.covariance not in COVARIANCES:
            raise ValueError(f"covariance is {self.covariance!r}; expected one of {', '.join(map(repr, COVARIANCES))}.")
        if self.retention not in get_args(Retention):
            raise ValueError(f"retention is {self.retention!r}; expected one of {get_args(Retention)}.")
        if not 0 < self.retention_init < 1:
            raise ValueError(f"retention_init is {self.retention_init}; expected rho^2 between 0 and 1, ends excluded.")

    @property
    def value_heads(self) -> int:
        """Value heads H."""
        return self.num_value_heads or self.num_heads

    @property
    def value_head_dim(self) -> int:
        """Value dim V of a head."""
        return self.value_dim or self.head_dim

    @property
    def carries_cov(self) -> bool:
        """Whether a covariance travels from token to token."""
        return self.covariance in ("full", "diagonal", "isotropic")

    @property
    def state_size(self) -> int:
        """Numbers a sequence's belief takes, mean and covariance counted; convolution tails apart."""
        key_dim = self.head_dim
        cov = {"full": key_dim**2, "diagonal": key_dim, "isotropic": 1}.get(self.covariance, 0)
        return self.value_heads * (key_dim * self.value_head_dim + cov)

"""Every choice of a layer, in one place."""

from dataclasses import dataclass
from typing import Any

from bayesmem.design import Design, DesignModel, LatentInput, Mean, Measurement, MixtureModel, from_dict, named

OUTPUT_GATES = ("silu", "sigmoid", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class BayesianLayerConfig:
    """A mixer's size, and the design it is the filter of. The same module is every layer of the zoo.

    Attributes:
        hidden_size: model width D.
        num_heads: query and key heads G.
        head_dim: key dim K.
        value_dim: value dim V of each value head; default K.
        num_value_heads: value heads H, a multiple of G; default G.
        conv_size: taps of the short causal convolution over q, k, v; 0 leaves it out.
        conv_bias: whether the convolution adds a bias.
        design: a name of the zoo (``bayesmem designs`` lists them), a design, or one as plain data.
        retention_init: starting share of certainty kept at every token, where it is learned:
            ``rho^2`` of prior mixing, ``gamma`` of a discount or log-linear mixing.
        decay_init: starting share of the mean kept at every token, the same for all heads and channels, where a
            decay is learned; ``None``: drawn as Mamba-2's, or RetNet's where it is one number a head. A draw of
            Mamba-2's keeps between 0.2 and 0.999 a token: one head alone may start with a memory of a few tokens.
        norm_eps: epsilon of the output's RMS norm.
        output_gate: what gates the normalised output: ``silu`` or ``sigmoid`` of a projection, or ``none``.
        allow_neg_eigval: let beta reach 2, so that a write may flip what was stored (Grazzi et al.,
            arXiv 2411.12537). No observation noise is so small: a delta rule (covariance reset, unit
            keys) only, and then without variance or evidence.
    """

    hidden_size: int
    num_heads: int = 4
    head_dim: int = 64
    value_dim: int | None = None
    num_value_heads: int | None = None
    conv_size: int = 4
    conv_bias: bool = False
    design: Design | str | dict[str, Any] = "bayesian"
    retention_init: float | int = 0.999
    decay_init: float | None = None
    norm_eps: float | int = 1e-5
    output_gate: str = "silu"
    allow_neg_eigval: bool = False

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
        if not 0 < self.retention_init < 1:
            raise ValueError(f"retention_init is {self.retention_init}; expected a share within (0, 1).")
        if self.decay_init is not None and not 0 < self.decay_init < 1:
            raise ValueError(f"decay_init is {self.decay_init}; expected a share within (0, 1), or None.")
        if self.output_gate not in OUTPUT_GATES:
            raise ValueError(
                f"output_gate is {self.output_gate!r}; expected one of {', '.join(map(repr, OUTPUT_GATES))}."
            )
        if self.conv_bias and not self.conv_size:
            raise ValueError("conv_bias is set and conv_size is 0; give the convolution taps, or leave out its bias.")
        model = self.model  # an unknown design is refused now
        delta_rule = self.meets_beta and self.evidence.covariance == "reset"
        if self.allow_neg_eigval and not (delta_rule and isinstance(self.evidence.readout, Mean)):
            raise ValueError(
                f"allow_neg_eigval with design {model.name}: a beta above 1 is no measurement's; it goes with the "
                "covariance reset, unit keys and the mean read out, such as design='gated_deltanet' or 'deltanet'."
            )

    @property
    def model(self) -> Design:
        """The design itself."""
        if isinstance(self.design, DesignModel | MixtureModel):
            return self.design
        return named(self.design) if isinstance(self.design, str) else from_dict(self.design)

    @property
    def evidence(self) -> DesignModel:
        """The design whose write and read-out shape the projections: a mixture's components share them."""
        model = self.model
        return model.components[0] if isinstance(model, MixtureModel) else model

    @property
    def measurements(self) -> int:
        """Measurements a token."""
        write = self.evidence.write
        return write.per_token if isinstance(write, Measurement) else 1

    @property
    def tied_keys(self) -> bool:
        """Whether the decay gives the keys, so that none are projected."""
        write = self.evidence.write
        return isinstance(write, LatentInput) and write.key == "complement"

    @property
    def unit_keys(self) -> bool:
        """Whether keys and queries are normalised."""
        write = self.evidence.write
        return isinstance(write, Measurement) and write.unit_keys

    @property
    def meets_beta(self) -> bool:
        """Whether a first write, or under reset every write, has the gain ``beta k``, beta given at every token."""
        design = self.model
        if not isinstance(design, DesignModel) or design.covariance not in ("full", "reset") or not self.unit_keys:
            return False
        return design.prior.var == 1 and isinstance(design.write, Measurement) and design.write.obs_noise == "token"

    @property
    def value_heads(self) -> int:
        """Value heads H."""
        return self.num_value_heads or self.num_heads

    @property
    def value_head_dim(self) -> int:
        """Value dim V of a head."""
        return self.value_dim or self.head_dim

    @property
    def state_size(self) -> int:
        """Numbers a sequence's belief takes, mean and covariance counted; convolution tails apart."""
        return self.value_heads * self.model.recurrence.state_size(self.head_dim, self.value_head_dim).total

"""``MixtureModel``: a memory that follows one of several designs; the evidence weighs them. Experimental."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bayesmem.design import assumptions as a
from bayesmem.design.derive import Recurrence, StateSize
from bayesmem.design.describe import mixture_latex, mixture_text
from bayesmem.design.model import DesignModel, Filtering


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureModel(Filtering):
    """A non-Gaussian memory: a mixture of the Gaussian memories of several designs.

    Attributes:
        name: what it is called.
        components: two designs or more, which measure. Inputs of one name are shared.
        evidence_kept: share of the log weights that each token keeps, in (0, 1]; 1 is exact model
            averaging, less lets the weights change with the times.
        equals: what it is exactly equal to, in words.
        source: where it comes from.

    Raises:
        ValueError: components that cannot be weighed against each other.
    """

    name: str
    components: tuple[DesignModel, ...]
    evidence_kept: float | int = 1.0
    equals: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        if len(self.components) < 2:
            raise ValueError(f"{self.name}: {len(self.components)} component(s); expected two or more to weigh.")
        for component in self.components:
            if component.recurrence.gain_rule is None:
                raise ValueError(
                    f"{self.name}: {component.name} measures nothing and so has no evidence to be weighed by; "
                    "use components with write=Measurement() and a covariance."
                )
        if not 0 < self.evidence_kept <= 1:
            raise ValueError(f"{self.name}: evidence_kept is {self.evidence_kept}; expected more than 0, at most 1.")
        for name in ("write", "readout"):
            if len({_shared(getattr(c, name)) for c in self.components}) > 1:
                raise ValueError(f"{self.name}: components differ in their {name}; expected one kind for all.")
        if not isinstance(self.components[0].readout, a.Mean):
            readout = self.components[0].readout
            raise ValueError(f"{self.name}: {readout!r} read-outs of components cannot be mixed; use Mean().")
        inputs = {x for c in self.components for x in c.recurrence.inputs}
        if len({x.name for x in inputs}) < len(inputs):
            raise ValueError(f"{self.name}: components take inputs of one name in different shapes.")

    @property
    def recurrence(self) -> MixtureRecurrence:
        """What follows: all components side by side."""
        parts = tuple(c.recurrence for c in self.components)
        inputs = tuple(dict.fromkeys(x for part in parts for x in part.inputs))
        exact = "exact model averaging of its components, as exact as they are"
        exact = exact if self.evidence_kept == 1 else "weights forget old evidence"
        passes = tuple(dict.fromkeys(p for part in parts for p in part.passes))
        return MixtureRecurrence(passes, "mixture", inputs, "full", exact, True, parts)

    def describe(self, form: str = "text") -> str:
        """Components and weights, as ``"text"`` or ``"latex"``.

        Raises:
            ValueError: another form.
        """
        forms = {"text": mixture_text, "latex": mixture_latex}
        if form not in forms:
            raise ValueError(f"form is {form!r}; expected 'text' or 'latex'.")
        return forms[form](self)

    def __str__(self) -> str:
        return self.describe()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a JSON file; ``design.from_dict`` reads it back."""
        return {
            "name": self.name,
            "components": [c.to_dict() for c in self.components],
            "evidence_kept": self.evidence_kept,
            "equals": self.equals,
            "source": self.source,
        }


@dataclass(frozen=True, slots=True)
class MixtureRecurrence(Recurrence):
    """Recurrences side by side.

    Attributes:
        parts: one for each component.
    """

    parts: tuple[Recurrence, ...] = ()

    def state_size(self, key_dim: int, value_dim: int) -> StateSize:
        """All components' means and covariances; the weights, one number a component, with the latter."""
        sizes = [part.state_size(key_dim, value_dim) for part in self.parts]
        return StateSize(sum(s.mean for s in sizes), sum(s.cov for s in sizes) + len(sizes))


def _shared(choice: object) -> tuple[object, ...]:
    """What of a write must agree for components to share keys and values."""
    if isinstance(choice, a.Measurement):
        return choice.per_token, choice.unit_keys
    return (type(choice),)

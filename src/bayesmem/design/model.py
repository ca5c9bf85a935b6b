"""``DesignModel``: what is assumed of a memory, stated once; contradictions are refused with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from bayesmem.design import assumptions as a
from bayesmem.design.contradictions import contradictions
from bayesmem.design.derive import Recurrence, derive
from bayesmem.design.describe import as_latex, as_text

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bayesmem.types import Belief, FilterOutput

CHOICES: dict[str, tuple[type, ...]] = {
    "prior": (a.Prior,),
    "transition": (a.Identity, a.Decay),
    "process_noise": (a.NoNoise, a.Additive, a.PriorMixing, a.Discount, a.LogLinearMixing),
    "write": (a.LatentInput, a.Measurement),
    "readout": (a.Mean, a.MeanAndVariance, a.PrecisionWeighted, a.Information, a.Expected),
}


class Filtering:
    """What every design can do once ``layers`` meets it with tensors.

    The two imports below are the only ones in the package that point up: a convenience for users,
    who hold a design and want its filter or its layer.
    """

    __slots__ = ()

    def filter(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor,
        *,
        initial_belief: Belief | None = None,
        cu_seqlens: Tensor | None = None,
        attention_mask: Tensor | None = None,
        outputs: Sequence[str] = (),
        backend: Any = "auto",
        **inputs: Tensor,
    ) -> FilterOutput:
        """Filter tensors under these assumptions (``bayesmem.layers.filtering.filter_design``).

        Args:
            q: queries ``[B, T, G, K]``, unscaled.
            k: keys ``[B, T, G, K]``, with ``per_token`` n ``[B, T n, G, K]``; ``None`` where the design ties them.
            v: values ``[B, T, H, V]``, with ``per_token`` n ``[B, T n, H, V]``.
            initial_belief: belief before the first token.
            cu_seqlens: offsets of packed sequences, in tokens.
            attention_mask: ``[B, T]``, 0 where a token is padding, which then changes nothing.
            outputs: as of ``bayesian_filter``.
            backend: as of ``bayesian_filter``.
            inputs: what ``recurrence.inputs`` names, in those shapes.

        Raises:
            ValueError: inputs missing, unknown or refused by the filter.
        """
        from bayesmem.layers.filtering import FilterContext, filter_design

        if isinstance(outputs, str):
            raise ValueError(f"outputs is the string {outputs!r}; expected a sequence, such as ({outputs!r},).")
        context = FilterContext(initial_belief, cu_seqlens, attention_mask, tuple(outputs), backend)
        return filter_design(self, q, k, v, inputs, context)  # type: ignore[arg-type]

    def layer(self, hidden_size: int, **options: Any) -> nn.Module:
        """A trainable ``BayesianLayer`` of this design.

        Args:
            hidden_size: model width D.
            options: of ``BayesianLayerConfig``, such as ``num_heads`` and ``head_dim``.

        Raises:
            ValueError: options that do not fit.
        """
        from bayesmem.layers import BayesianLayer, BayesianLayerConfig

        config = BayesianLayerConfig(hidden_size=hidden_size, design=self, **options)  # type: ignore[arg-type]
        return BayesianLayer(config)


@dataclass(frozen=True, slots=True, kw_only=True)
class DesignModel(Filtering):
    """A sequence layer as the assumptions it is the filter of.

    Attributes:
        name: what it is called.
        prior: the memory before anything is written.
        transition: what a step of time does to the memory.
        process_noise: how certainty is lost between tokens.
        write: how a token's evidence enters.
        covariance: how the covariance is carried: ``full``, ``diagonal``, ``isotropic``, ``reset``
            (back to the prior before every token), ``steady_state``, or ``none`` where no gain needs it.
        readout: what a query gets.
        equals: what the recurrence is exactly equal to, in words.
        source: where it was published.

    Raises:
        ValueError: assumptions that contradict, or numbers out of range; the message says how to mend it.
    """

    name: str
    prior: a.Prior = a.Prior()
    transition: a.Transition = a.Identity()
    process_noise: a.ProcessNoise = a.NoNoise()
    write: a.Write = a.Measurement()
    covariance: a.Covariance = "full"
    readout: a.Readout = a.Mean()
    equals: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        for field, kinds in CHOICES.items():
            value = getattr(self, field)
            if not isinstance(value, kinds):
                expected = ", ".join(f"{kind.__name__}()" for kind in kinds)
                raise ValueError(f"{self.name}: {field} is {value!r}; expected one of {expected} of bayesmem.design.")
        if self.covariance not in a.COVARIANCES:
            allowed = ", ".join(map(repr, a.COVARIANCES))
            raise ValueError(f"{self.name}: covariance is {self.covariance!r}; expected one of {allowed}.")
        for problem in contradictions(self):
            raise ValueError(f"{self.name}: {problem}")

    @property
    def recurrence(self) -> Recurrence:
        """What follows from the assumptions: ``derive(self)``."""
        return derive(self)

    def describe(self, form: str = "text") -> str:
        """Assumptions, update, inputs and state size, as ``"text"``, or the update alone as ``"latex"``.

        Raises:
            ValueError: another form.
        """
        forms = {"text": as_text, "latex": as_latex}
        if form not in forms:
            raise ValueError(f"form is {form!r}; expected 'text' or 'latex'.")
        return forms[form](self)

    def __str__(self) -> str:
        return self.describe()

    def but(self, **changes: Any) -> DesignModel:
        """The same design with some assumptions changed; claims of what it equals do not carry over."""
        return replace(self, **{"equals": "", "source": "", **changes})

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a JSON file; ``from_dict`` reads it back."""
        data: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in CHOICES:
            choice = data[name]
            data[name] = {"kind": type(choice).__name__} | {f.name: getattr(choice, f.name) for f in fields(choice)}
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> DesignModel:
        """The design that ``to_dict`` wrote.

        Raises:
            ValueError: kinds or keys that no design has, or assumptions that contradict.
        """
        given = dict(data)
        for name, kinds in CHOICES.items():
            if not isinstance(given.get(name, {"kind": ""}), dict):
                raise ValueError(f"{name} is {given[name]!r}; expected a dict with its 'kind'.")
            if name in given:
                choice = dict(given[name])
                kind = choice.pop("kind", None)
                known = {k.__name__: k for k in kinds}
                if kind not in known:
                    raise ValueError(f"{name} is of kind {kind!r}; expected one of {', '.join(known)}.")
                given[name] = _built(known[kind], choice, name)
        return _built(cls, given, "design")


def _built(kind: type, options: dict[str, Any], what: str) -> Any:
    known = {field.name for field in fields(kind)}
    if unknown := sorted(set(options) - known):
        raise ValueError(f"{what} has unknown keys {unknown}; {kind.__name__} knows {', '.join(sorted(known))}.")
    if kind is DesignModel and "name" not in options:
        raise ValueError("design has no name; give it one.")
    return kind(**options)

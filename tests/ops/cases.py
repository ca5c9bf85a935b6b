"""Filtering problems for the tests of ops: designs, random inputs, and one way to run them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bayesmem.ops import Additive, Assumptions, Backend, Discount, LogLinearMixing, PriorMixing, bayesian_filter
from bayesmem.types import Belief, FilterOutput

OVER_TIME = ("q", "k", "v", "log_decay", "obs_noise", "log_retention", "variance", "log_discount")
STREAMS = ("q", "k", "v")
FLOOR = 0.1  # of Discount: well above its default, so that a lost floor shows


@dataclass(frozen=True)
class Design:
    """A permitted combination of covariance structure, process noise and write."""

    covariance: str
    noise: str
    write: str = "measurement"
    given_steady_var: bool = False

    def __str__(self) -> str:
        extra = "-given" if self.given_steady_var else ""
        return f"{self.covariance}-{self.noise}{extra}" + ("-latent" if self.write == "latent_input" else "")

    @property
    def carries(self) -> bool:
        """Whether a covariance is carried from token to token."""
        return self.covariance in ("full", "diagonal", "isotropic")

    @property
    def outputs(self) -> tuple[str, ...]:
        if self.covariance == "none":
            return ("final_belief",)
        measured = self.write == "measurement"
        return ("predictive_var", "final_belief", *(["log_evidence"] if measured else []))


CARRIED = [
    Design(covariance, noise)
    for covariance in ("full", "diagonal", "isotropic")
    for noise in ("prior_mixing", "additive", "discount", "log_linear")
]
CONSTANT = [
    Design("reset", "prior_mixing"),
    Design("steady_state", "prior_mixing"),
    Design("steady_state", "prior_mixing", given_steady_var=True),
]
DRIVEN = Design("none", "prior_mixing", "latent_input")  # a mean alone
LATENT = [Design("full", noise, "latent_input") for noise in ("prior_mixing", "additive")]
MEASURED = CARRIED + CONSTANT
DESIGNS = MEASURED + LATENT
BACKENDS = (Backend("recurrent"), Backend("chunk", 3))


def each_design(designs: Sequence[Design] = DESIGNS) -> list[tuple[Design, bool]]:
    """Every design with decays per head, then (where it has any) per channel."""
    pairs = [(design, channels) for design in designs for channels in (False, True)]
    return [(design, channels) for design, channels in pairs if not (channels and design.noise == "log_linear")]


def label(value: object) -> str | None:
    """Test ids: designs by name, back ends by name, ``channels`` in words."""
    if isinstance(value, bool):
        return "channels" if value else "heads"
    if isinstance(value, Backend):
        return value.name
    return str(value) if isinstance(value, Design) else None


@dataclass(frozen=True)
class Case:
    """A design with the tensors it filters, each by name."""

    design: Design
    tensors: Mapping[str, Tensor]

    def with_(self, **tensors: Tensor | None) -> "Case":
        """The same case with some tensors put in place of its own; ``None`` takes one away."""
        merged = {**self.tensors, **tensors}
        return replace(self, tensors={name: x for name, x in merged.items() if x is not None})

    def between(self, start: int, stop: int | None = None) -> "Case":
        """The tokens from ``start`` to ``stop`` only."""
        return self.with_(**{name: x[:, start:stop] for name, x in self.tensors.items() if name in OVER_TIME})

    def after(self, belief: Belief | None) -> "Case":
        """The same case with ``belief`` before its first token."""
        assert belief is not None
        return self.with_(mean=belief.mean, cov=belief.cov)

    def rows(self, start: int, stop: int) -> "Case":
        """The initial beliefs of these rows only."""
        return self.with_(**{name: self.tensors[name][start:stop] for name in ("mean", "cov") if name in self.tensors})

    def to(self, dtype: torch.dtype) -> "Case":
        return self.with_(**{name: x.to(dtype) for name, x in self.tensors.items()})

    def leaves(self) -> "Case":
        """The same case with fresh tensors that require gradients."""
        return self.with_(**{name: x.detach().clone().requires_grad_() for name, x in self.tensors.items()})

    def run(
        self,
        backend: str | Backend = "recurrent",
        *,
        outputs: Sequence[str] | None = None,
        cu_seqlens: Tensor | None = None,
        assumptions: Assumptions | None = None,
    ) -> FilterOutput:
        """Filter; by default everything that the design can give is asked for."""
        x = self.tensors
        return bayesian_filter(
            x["q"],
            x["k"],
            x["v"],
            x.get("log_decay"),
            x.get("obs_noise"),
            assumptions or self.assumptions(),
            initial_belief=Belief(x["mean"], x.get("cov")) if "mean" in x else None,
            cu_seqlens=cu_seqlens,
            outputs=self.design.outputs if outputs is None else outputs,
            backend=backend,
        )

    def assumptions(self) -> Assumptions:
        x = self.tensors
        noise = {
            "prior_mixing": lambda: PriorMixing(x.get("log_retention")),
            "additive": lambda: Additive(x["variance"]),
            "discount": lambda: Discount(x["log_discount"], FLOOR),
            "log_linear": LogLinearMixing,
        }[self.design.noise]()
        return Assumptions(
            covariance=self.design.covariance,
            process_noise=noise,
            prior_var=x.get("prior_var", 1.0),
            steady_var=x.get("steady_var"),
            write=self.design.write,
        )


def make_case(
    design: Design,
    *,
    channels: bool = False,
    batch: int = 1,
    length: int = 7,
    groups: int = 1,
    heads: int = 2,
    key_dim: int = 3,
    value_dim: int = 2,
    rows: int | None = None,
    seed: int = 0,
) -> Case:
    """A random case in float64: keys of any norm, every gate its own, a dense initial belief.

    ``channels`` takes decays, retentions and added noise per channel; ``rows`` initial beliefs are
    made (a packed row needs one a sequence).
    """
    rng = torch.Generator().manual_seed(seed)

    def uniform(*shape: int, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=rng, dtype=torch.float64)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    head_gate = (batch, length, heads)
    gate = (*head_gate, key_dim) if channels else head_gate
    tensors = {
        "q": normal(batch, length, groups, key_dim),
        "k": normal(batch, length, groups, key_dim),
        "v": normal(batch, length, heads, value_dim),
        "log_decay": uniform(*gate, low=-0.4, high=-0.01),
        "prior_var": uniform(heads, key_dim, low=0.5, high=1.5),
        "mean": normal(rows or batch, heads, key_dim, value_dim),
    }
    if design.write == "measurement":
        tensors["obs_noise"] = uniform(*head_gate, low=0.1, high=1.1)
    if design.noise == "prior_mixing":
        tensors["log_retention"] = uniform(*gate, low=-0.4, high=-0.01)
    if design.noise == "additive":
        tensors["variance"] = uniform(*gate, low=0.01, high=0.3)
    if design.noise == "discount":
        tensors["log_discount"] = uniform(*head_gate, low=-0.4, high=-0.01)
    if design.given_steady_var:
        tensors["steady_var"] = uniform(heads, low=0.3, high=1.0)
    if design.covariance == "full":
        root = normal(rows or batch, heads, key_dim, key_dim)
        tensors["cov"] = root @ root.mT / key_dim + 0.1 * torch.eye(key_dim, dtype=root.dtype)
    elif design.carries:
        width = key_dim if design.covariance == "diagonal" else 1
        tensors["cov"] = uniform(rows or batch, heads, width, low=0.3, high=1.0)
    return Case(design, tensors)


def fields(output: FilterOutput) -> dict[str, Tensor]:
    """What an output holds, by name, the final belief taken apart."""
    belief = output.final_belief
    named = {
        "o": output.o,
        "predictive_var": output.predictive_var,
        "log_evidence": output.log_evidence,
        "mean": belief.mean if belief else None,
        "cov": belief.cov if belief else None,
    }
    return {name: x for name, x in named.items() if x is not None}


def assert_close(actual: Tensor, expected: Tensor, rtol: float, name: str = "") -> None:
    """Equal to ``rtol``, with an ``atol`` of 1e-12 of the largest entry for the entries near 0."""
    atol = 1e-12 * expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol, msg=lambda text: f"{name}: {text}")


def assert_same(actual: FilterOutput, expected: FilterOutput, rtol: float = 1e-9) -> None:
    """All fields of two outputs ``assert_close``."""
    left, right = fields(actual), fields(expected)
    assert left.keys() == right.keys()
    for name in left:
        assert_close(left[name], right[name], rtol, name)

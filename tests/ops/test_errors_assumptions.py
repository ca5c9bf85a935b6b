"""Bad assumptions and initial beliefs are refused with a ``ValueError`` that says what was expected."""

import math
from dataclasses import fields as fields_of
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bayesmem.ops import Additive, Assumptions, Backend, Discount, LogLinearMixing, PriorMixing
from bayesmem.types import Belief
from ops.refusals import B, G, H, K, T, V, good, refused, run, unchecked, zeros

ASSUMPTIONS = {
    "retention-heads": (Assumptions(process_noise=PriorMixing(zeros(B, T, G))), "log_retention", "axis H is 2"),
    "retention-above-0": (Assumptions(process_noise=PriorMixing(zeros(B, T, H) + 0.5)), "log_retention", "at most 0"),
    "retention-nan": (Assumptions(process_noise=PriorMixing(zeros(B, T, H) - math.nan)), "log_retention holds NaN"),
    "variance-time": (Assumptions(process_noise=Additive(zeros(B, 1, H))), "process noise variance", "axis T is 1"),
    "variance-flat": (Assumptions(process_noise=Additive(zeros(H))), "process noise variance", "[B, T, H]"),
    "variance-below-0": (Assumptions(process_noise=Additive(-0.1)), "process noise variance is -0.1", "non-negative"),
    "variance-nan": (Assumptions(process_noise=Additive(math.nan)), "process noise variance is nan", "non-negative"),
    "variances-below-0": (
        Assumptions(process_noise=Additive(zeros(B, T, H) - 1)),
        "process noise variance must be non-negative",
        "-1",
    ),
    "discount-channels": (Assumptions(process_noise=Discount(zeros(B, T, H, K))), "log_discount", "[B, T, H]"),
    "discount-above-0": (Assumptions(process_noise=Discount(zeros(B, T, H) + 0.5)), "log_discount", "at most 0", "0.5"),
    "discount-floor": (Assumptions(process_noise=Discount(zeros(B, T, H), -1.0)), "floor is -1.0", "0 to 1"),
    "discount-floor-above-1": (Assumptions(process_noise=Discount(zeros(B, T, H), 1.5)), "floor is 1.5", "0 to 1"),
    "discount-floor-nan": (Assumptions(process_noise=Discount(zeros(B, T, H), math.nan)), "floor is nan", "0 to 1"),
    "prior-0": (Assumptions(prior_var=0.0), "prior_var is 0.0", "positive"),
    "prior-below-0": (Assumptions(prior_var=-1.0), "prior_var is -1.0", "positive"),
    "prior-inf": (Assumptions(prior_var=math.inf), "prior_var is inf", "finite"),
    "prior-past-the-dtype": (Assumptions(prior_var=1e39), "prior_var", "finite"),
    "priors-0": (Assumptions(prior_var=zeros(H)), "prior_var must be positive", "0"),
    "priors-heads": (Assumptions(prior_var=torch.ones(G)), "prior_var", "axis H is 2, expected 4"),
    "priors-channels": (Assumptions(prior_var=torch.ones(H, K + 1)), "prior_var", "axis K is 4, expected 3"),
    "priors-scalar": (Assumptions(prior_var=torch.tensor(1.0)), "prior_var has shape ()", "[H]"),
    "steady-heads": (Assumptions("steady_state", steady_var=torch.ones(G)), "steady_var", "axis H is 2, expected 4"),
    "steady-0": (Assumptions("steady_state", steady_var=zeros(H)), "steady_var must be positive", "0"),
    "steady-unused": (Assumptions("full", steady_var=torch.ones(H)), "steady_var", "covariance='steady_state'", "full"),
    "floor-below-0": (Assumptions(obs_noise_floor=-1.0), "obs_noise_floor is -1.0", "non-negative"),
    "floor-nan": (Assumptions(obs_noise_floor=math.nan), "obs_noise_floor is nan", "non-negative"),
    "floor-inf": (Assumptions(obs_noise_floor=math.inf), "obs_noise_floor is inf", "finite"),
}
for structure in ("reset", "steady_state"):
    for noise in (Additive(0.1), Discount(zeros(B, T, H)), LogLinearMixing()):
        title = type(noise).__name__
        ASSUMPTIONS[f"{structure}-{title}"] = (Assumptions(structure, noise), title, structure, "no covariance")
for structure in ("diagonal", "isotropic", "reset", "steady_state"):
    made = Assumptions(structure, write="latent_input")
    ASSUMPTIONS[f"latent-{structure}"] = (made, "latent_input", "covariance='full'", structure)
for noise in (Discount(zeros(B, T, H)), LogLinearMixing()):
    made = Assumptions("full", noise, write="latent_input")
    ASSUMPTIONS[f"latent-{type(noise).__name__}"] = (made, "latent_input", "PriorMixing or Additive")


@pytest.mark.parametrize("name", ASSUMPTIONS)
def test_assumptions(name: str):
    assumptions, *words = ASSUMPTIONS[name]
    refused(lambda: run(assumptions=assumptions), *words)


def test_latent_input_takes_no_observation_noise():
    latent = Assumptions(write="latent_input")
    refused(lambda: run(assumptions=latent), "latent_input", "obs_noise=None")
    refused(lambda: run(assumptions=latent, obs_noise=None, outputs=("log_evidence",)), "latent_input", "log_evidence")


def test_log_linear_mixing_takes_one_decay_a_head():
    mixing = Assumptions(process_noise=LogLinearMixing())
    refused(lambda: run(assumptions=mixing, log_decay=zeros(B, T, H, K)), "LogLinearMixing", "[B, T, H]", "per channel")


@pytest.mark.parametrize(("option", "value"), [("covariance", "ful"), ("write", "write"), ("process_noise", None)])
def test_unknown_assumptions(option: str, value: object):
    defaults = Assumptions()
    chosen = {field.name: getattr(defaults, field.name) for field in fields_of(Assumptions)}
    expected = "PriorMixing()" if option == "process_noise" else repr(chosen[option])
    made = unchecked(Assumptions, **{**chosen, option: value})
    refused(lambda: run(assumptions=made), option, repr(value), expected)


def test_dtypes_of_what_is_assumed():
    wide = {"prior_var": torch.ones(H).double(), "process_noise": PriorMixing(zeros(B, T, H).double())}
    for name, value in wide.items():
        words = ("prior_var" if name == "prior_var" else "log_retention", "torch.float64", "expected torch.float32")
        refused(lambda name=name, value=value: run(assumptions=Assumptions(**{name: value})), *words)
    belief = Belief(zeros(B, H, K, V).half())
    refused(lambda: run(initial_belief=belief), "initial_belief.mean", "torch.float16", "expected torch.float32")


def belief(mean: Tensor, cov: Tensor | None = None) -> Belief:
    return unchecked(Belief, mean=mean, cov=cov)


MEAN = zeros(B, H, K, V)
BELIEFS = {
    "mean-turned": ("full", belief(zeros(B, H, V, K)), "initial_belief.mean", "axis K is 5, expected 3"),
    "mean-heads": ("full", belief(zeros(B, G, K, V)), "initial_belief.mean", "axis H is 2, expected 4"),
    "mean-rows": ("full", belief(zeros(1, H, K, V)), "initial_belief.mean", "axis B is 1, expected 2"),
    "mean-flat": ("full", belief(zeros(B, H, K)), "initial_belief.mean", "[B, H, K, V]"),
    "full-diagonal": ("full", belief(MEAN, zeros(B, H, K)), "initial_belief.cov", "[B, H, K, K]"),
    "full-keys": ("full", belief(MEAN, zeros(B, H, V, V)), "initial_belief.cov", "axis K is 5, expected 3"),
    "full-heads": ("full", belief(MEAN, zeros(B, G, K, K)), "initial_belief.cov", "axis H is 2, expected 4"),
    "diagonal-full": ("diagonal", belief(MEAN, zeros(B, H, K, K)), "initial_belief.cov", "[B, H, K]"),
    "diagonal-one": ("diagonal", belief(MEAN, zeros(B, H, 1)), "initial_belief.cov", "axis K is 1, expected 3"),
    "isotropic-diagonal": ("isotropic", belief(MEAN, zeros(B, H, K)), "initial_belief.cov", "axis 1 is 3, expected 1"),
    "reset": ("reset", belief(MEAN, zeros(B, H, K, K)), "initial_belief.cov", "reset", "Belief(mean, None)"),
    "steady": (
        "steady_state",
        belief(MEAN, zeros(B, H, 1)),
        "initial_belief.cov",
        "steady_state",
        "Belief(mean, None)",
    ),
    "nan": ("full", belief(MEAN + math.nan), "initial_belief.mean holds NaN"),
    "cov-inf": ("full", belief(MEAN, zeros(B, H, K, K) + math.inf), "initial_belief.cov holds infinity"),
}


@pytest.mark.parametrize("name", BELIEFS)
def test_initial_belief(name: str):
    covariance, given, *words = BELIEFS[name]
    refused(lambda: run(assumptions=Assumptions(covariance), initial_belief=given), *words)


def test_packed_rows_want_a_belief_a_sequence():
    row = {name: x[:1] for name, x in good().items()}
    given = Belief(zeros(1, H, K, V))
    call = {**row, "cu_seqlens": torch.tensor([0, 1, 4]), "initial_belief": given}
    refused(lambda: run(**call), "initial_belief.mean", "axis B is 1, expected 2")


@pytest.mark.parametrize("noise", [Discount(zeros(B, T, H)), LogLinearMixing()])
def test_precision_chunks_want_a_positive_definite_covariance(noise: Discount | LogLinearMixing):
    """Certainty has no finite precision."""
    given = Belief(MEAN, zeros(B, H, K, K))
    call = {"assumptions": Assumptions(process_noise=noise), "initial_belief": given, "backend": "chunk"}
    refused(lambda: run(**call), "initial_belief.cov", "positive definite")


def test_a_spoilt_copy_of_defaults_is_what_was_tested():
    """``unchecked`` builds what the constructor would."""
    assert unchecked(Backend, name="auto", chunk_size=None) == replace(Backend())

"""Defaults, shorthands and units: different ways to say the same, and what they may not change."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bayesmem.ops import COVARIANCES, Additive, Assumptions, Backend, PriorMixing, bayesian_filter
from bayesmem.types import FilterOutput
from ops.cases import BACKENDS, CARRIED, DESIGNS, Design, assert_close, fields, label, make_case

DEFAULT = Design("full", "prior_mixing")
EVERY = DEFAULT.outputs


def identical(left: FilterOutput, right: FilterOutput) -> bool:
    pairs = zip(fields(left).items(), fields(right).items(), strict=True)
    return all(name == other and torch.equal(x, y) for (name, x), (other, y) in pairs)


def test_defaults_are_a_unit_prior_retained_as_the_mean_decays():
    x = make_case(DEFAULT).tensors
    arguments = [x[name] for name in ("q", "k", "v", "log_decay", "obs_noise")]
    spelled = Assumptions("full", PriorMixing(x["log_decay"]), torch.ones(2, 3, dtype=torch.float64))
    default = bayesian_filter(*arguments, outputs=EVERY)
    assert identical(default, bayesian_filter(*arguments, spelled, outputs=EVERY, backend="chunk"))
    bare = bayesian_filter(*arguments)
    assert (bare.predictive_var, bare.log_evidence, bare.final_belief) == (None, None, None)


def test_no_decay_is_a_decay_of_one():
    case = make_case(DEFAULT)
    still = torch.zeros_like(case.tensors["log_decay"])
    assert identical(case.with_(log_decay=None).run(), case.with_(log_decay=still).run())


@pytest.mark.parametrize("design", DESIGNS, ids=label)
def test_a_prior_may_be_a_number_or_one_a_head(design: Design):
    case = make_case(design).with_(cov=None)
    ones = torch.ones(2, dtype=torch.float64)
    everywhere = case.with_(prior_var=0.7 * ones[:, None].expand(2, 3).contiguous()).run()
    number = replace(case.assumptions(), prior_var=0.7)
    for same in (case.with_(prior_var=0.7 * ones).run(), case.run(assumptions=number)):
        for name, field in fields(everywhere).items():
            assert_close(fields(same)[name], field, 1e-13, name)


@pytest.mark.parametrize("covariance", ["full", "diagonal", "isotropic"])
def test_added_noise_may_be_a_number(covariance: str):
    case = make_case(Design(covariance, "additive"))
    spread = case.with_(variance=torch.full_like(case.tensors["variance"], 0.2))
    assert identical(case.run(assumptions=replace(case.assumptions(), process_noise=Additive(0.2))), spread.run())


@pytest.mark.parametrize("backend", BACKENDS, ids=label)
@pytest.mark.parametrize("design", CARRIED, ids=label)
def test_a_belief_without_covariance_takes_the_priors(design: Design, backend):
    case = make_case(design)
    prior = case.tensors["prior_var"]
    layouts = {"full": torch.diag_embed(prior), "diagonal": prior, "isotropic": prior.mean(-1, True)}
    assert identical(case.with_(cov=None).run(backend), case.with_(cov=layouts[design.covariance][None]).run(backend))


@pytest.mark.parametrize("covariance", [name for name in COVARIANCES if name != "none"])
def test_observation_noise_has_a_floor_unless_reset(covariance: str):
    """The floor is a fraction of the mean prior variance; a released delta rule must pass below it."""
    case = make_case(Design(covariance, "prior_mixing"))
    keys, prior = case.tensors["k"], case.tensors["prior_var"]
    case = case.with_(k=keys / keys.norm(dim=-1, keepdim=True))
    assumptions = replace(case.assumptions(), obs_noise_floor=0.3)

    def run(obs_noise: Tensor) -> FilterOutput:
        return case.with_(obs_noise=obs_noise).run(assumptions=assumptions)

    below = torch.full_like(case.tensors["obs_noise"], 1e-3)
    low, raised = fields(run(below)), fields(run((0.3 * prior.mean(-1)).expand_as(below)))
    same = all(torch.allclose(low[name], raised[name], rtol=1e-12, atol=0) for name in low)
    assert same is (covariance != "reset")


@pytest.mark.parametrize("unit", [2.0**-40, 2.0**40])
@pytest.mark.parametrize("backend", BACKENDS, ids=label)
@pytest.mark.parametrize("design", DESIGNS, ids=label)
def test_variances_have_no_unit(design: Design, backend, unit: float):
    """All variances in another unit: the same means, and no overflow, in float32."""
    case = make_case(design).to(torch.float32)
    names = {"prior_var", "variance", "obs_noise", "steady_var", "cov"} & set(case.tensors)
    turned = case.with_(**{name: unit * case.tensors[name] for name in names}).run(backend)
    for name, expected in fields(case.run(backend)).items():
        scale = {"predictive_var": unit, "cov": unit}.get(name, 1.0)
        if name != "log_evidence":  # a density, which has one
            torch.testing.assert_close(fields(turned)[name] / scale, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS, ids=label)
def test_a_mean_alone_is_that_of_the_open_loop(backend: Backend):
    case = make_case(Design("full", "prior_mixing", "latent_input"))
    alone = case.with_(cov=None, prior_var=None, log_retention=None)
    assumptions = Assumptions(covariance="none", write="latent_input")
    whole, mean = case.run(backend), alone.run(backend, outputs=("final_belief",), assumptions=assumptions)
    assert torch.equal(mean.o, whole.o) and torch.equal(mean.final_belief.mean, whole.final_belief.mean)
    assert mean.final_belief.cov is None

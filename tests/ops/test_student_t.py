"""Student-t observations: the limits, the evidence bound against quadrature, and what an outlier does."""

import numpy as np
import pytest
import torch
from scipy import stats

from bayesmem.ops import Assumptions, bayesian_filter
from bayesmem.ops.student_t import explain_outlier
from bayesmem.types import Belief

STRUCTURES = ("full", "diagonal", "isotropic", "reset", "steady_state")


def problem(length=12, value_dim=3, seed=0):
    rng = torch.Generator().manual_seed(seed)
    q, k = torch.nn.functional.normalize(torch.randn(2, 1, length, 2, 4, generator=rng, dtype=torch.float64), dim=-1)
    v = torch.randn(1, length, 2, value_dim, generator=rng, dtype=torch.float64)
    return q, k, v, torch.full((1, length, 2), -0.05, dtype=torch.float64), torch.full_like(v[..., 0], 0.1)


@pytest.mark.parametrize("covariance", STRUCTURES)
def test_many_degrees_of_freedom_are_gaussian(covariance):
    x, asked = problem(), ("predictive_var", "log_evidence", "final_belief")
    gauss = bayesian_filter(*x, Assumptions(covariance), outputs=asked)
    heavy = bayesian_filter(*x, Assumptions(covariance, dof=1e9), outputs=asked)
    for name in ("o", "predictive_var", "log_evidence"):
        torch.testing.assert_close(getattr(heavy, name), getattr(gauss, name), rtol=1e-6, atol=1e-6)


def one_write(value, dof, spread=1.0, obs_noise=0.1):
    """Gain and evidence bound of one value written under a unit key to a memory of this variance."""
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    belief = Belief(torch.zeros(1, 1, 1, 1, dtype=torch.float64), spread * one[..., None])
    noise, bound = explain_outlier(belief, one, value * one, obs_noise * one[..., 0], dof)
    return spread / (spread + noise).item(), bound.item()


@pytest.mark.parametrize("dof", [1.0, 4.0])
@pytest.mark.parametrize("spread", [0.01, 0.1])
def test_gain_shrinks_for_outlying_innovations(dof, spread):
    gains = [one_write(value, dof, spread)[0] for value in (0.1, 1.0, 3.0, 10.0, 30.0)]
    assert gains == sorted(gains, reverse=True)
    gaussian = spread / (spread + 0.1)
    assert gains[0] > 0.8 * gaussian and gains[-1] < 0.02 * gaussian


@pytest.mark.parametrize("value", [0.0, 0.5, 2.0, 8.0])
@pytest.mark.parametrize("dof", [1.0, 4.0, 20.0])
def test_evidence_bound_and_gain_against_quadrature(value, dof):
    """One channel: the weight is integrated out numerically. The bound is below, by less than .5 nats;
    the gain within .15, which is what taking memory and weight as independent costs at most (dof 1)."""
    spread, obs_noise = 0.3, 0.1
    weights = np.exp(np.linspace(-25, 8, 200_001))
    prior = stats.gamma(0.5 * dof, scale=2 / dof).pdf(weights)
    likelihood = stats.norm(0, np.sqrt(spread + obs_noise / weights)).pdf(value)
    evidence = np.trapezoid(prior * likelihood, weights)
    exact_gain = np.trapezoid(prior * likelihood * spread / (spread + obs_noise / weights), weights) / evidence
    gain, bound = one_write(value, dof, spread, obs_noise)
    assert np.log(evidence) - 0.5 < bound <= np.log(evidence) + 1e-9
    assert abs(gain - exact_gain) < (0.16 if dof == 1 else 0.07)


def test_the_fixed_point_is_reached(monkeypatch):
    """With one value channel: what twenty sweeps leave is below 1e-3 of the gain."""
    from bayesmem.ops import student_t

    cases = [(value, dof, spread) for value in (0.1, 1.0, 5.0, 20.0) for dof in (2.0, 4.0, 10.0) for spread in (0.1, 1)]
    found = [one_write(*case)[0] for case in cases]
    monkeypatch.setattr(student_t, "SWEEPS", 400)
    settled = [one_write(*case)[0] for case in cases]
    assert np.abs(np.array(found) / np.array(settled) - 1).max() < 1e-3


def test_one_bad_value_does_less_harm():
    """A key written ten times, once with a value 50 standard deviations off."""
    k = torch.ones(1, 10, 1, 1, dtype=torch.float64)
    v = 1 + 0.1 * torch.randn(1, 10, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v[0, 6] += 5.0
    noise = torch.full((1, 10, 1), 0.01, dtype=torch.float64)
    error = {
        dof: abs(bayesian_filter(k, k, v, None, noise, Assumptions(dof=dof)).o[0, -1].item() - 1) for dof in (None, 4.0)
    }
    assert error[None] > 0.4 and error[4.0] < 0.1


def test_gradients_are_those_of_differences():
    x = problem(length=3, value_dim=2)

    def run(*tensors):
        out = bayesian_filter(*tensors, Assumptions(dof=4.0), outputs=("log_evidence", "predictive_var"))
        return out.o, out.log_evidence, out.predictive_var

    assert torch.autograd.gradcheck(run, tuple(t.requires_grad_() for t in x))


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match="a Student-t gain waits"):
        bayesian_filter(*problem(), Assumptions(dof=4.0), backend="chunk")
    with pytest.raises(ValueError, match="dof is 0"):
        bayesian_filter(*problem(), Assumptions(dof=0))
    with pytest.raises(ValueError, match="dof is 4"):
        bayesian_filter(*problem()[:4], None, Assumptions(write="latent_input", dof=4))

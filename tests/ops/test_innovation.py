"""The innovation's variance and energy: what the evidence is made of, by every back end."""

import math

import pytest
import torch

from bayesmem.ops import Assumptions, Backend
from ops.cases import BACKENDS, MEASURED, Design, assert_close, each_design, label, make_case

OUTPUTS = ("log_evidence", "innovation_var", "innovation_energy")


@pytest.mark.parametrize("backend", BACKENDS, ids=label)
@pytest.mark.parametrize(("design", "channels"), each_design(MEASURED), ids=label)
def test_the_evidence_is_made_of_them(design: Design, channels: bool, backend: Backend):
    """``log p = -V/2 (log 2 pi s + e)``; and what is not asked for is not there."""
    case = make_case(design, channels=channels, value_dim=5)
    out = case.run(backend, outputs=OUTPUTS)
    var, energy = out.innovation_var, out.innovation_energy
    assert_close(-2.5 * ((2 * math.pi * var).log() + energy), out.log_evidence, 1e-12)
    for name in OUTPUTS:
        some = case.run(backend, outputs=(name,))
        assert {other for other in OUTPUTS if getattr(some, other) is not None} == {name}
        assert_close(getattr(some, name), getattr(out, name), 1e-12)


@pytest.mark.parametrize("backend", BACKENDS, ids=label)
def test_the_first_innovation_is_the_value_itself(backend: Backend):
    """Against nothing but the prior: ``s = p0 |k|^2 + r`` and ``e = |v|^2 / (V s)``."""
    case = make_case(Design("reset", "prior_mixing"), heads=1, length=1)
    case = case.with_(mean=torch.zeros_like(case.tensors["mean"]))
    out = case.run(backend, outputs=OUTPUTS, assumptions=Assumptions(covariance="reset"))
    var = case.tensors["k"].square().sum(-1) + case.tensors["obs_noise"]
    assert_close(out.innovation_var, var, 1e-12)
    assert_close(out.innovation_energy, case.tensors["v"].square().mean(-1) / var, 1e-12)


@pytest.mark.parametrize("name", OUTPUTS)
def test_latent_inputs_have_none(name: str):
    with pytest.raises(ValueError, match=f"ask for no {name}"):
        make_case(Design("full", "prior_mixing", "latent_input")).run("chunk", outputs=(name,))

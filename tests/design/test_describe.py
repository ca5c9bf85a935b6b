"""Descriptions against golden files, which ``python tests/design/test_describe.py`` writes anew: read the diff."""

from pathlib import Path

import pytest

from bayesmem.design import (
    ZOO,
    Additive,
    Decay,
    Discount,
    Expected,
    Information,
    LogLinearMixing,
    Measurement,
    MixtureModel,
    PrecisionWeighted,
    Prior,
    PriorMixing,
)

GOLDEN = Path(__file__).parent / "golden"
STATIC, BAYESIAN = ZOO["bayesian_static"], ZOO["bayesian"]
# What no design of the zoo shows: a description for every branch.
OTHERS = [
    BAYESIAN.but(name="per_channel", transition=Decay(per="channel"), process_noise=PriorMixing("decay")),
    BAYESIAN.but(name="fixed", transition=Decay(0.9), process_noise=PriorMixing(0.95), write=Measurement(0.3)),
    BAYESIAN.but(name="random_walk", transition=Decay(per="channel"), process_noise=Additive(0.01), prior=Prior(2.0)),
    STATIC.but(name="floored", process_noise=Discount(0.99), readout=PrecisionWeighted()),
    STATIC.but(name="diagonal_mixing", process_noise=LogLinearMixing(), covariance="diagonal"),
    STATIC.but(name="leaky_information", process_noise=LogLinearMixing(), covariance="none", readout=Information()),
    BAYESIAN.but(
        name="averaged", transition=Decay(per="channel"), process_noise=PriorMixing("decay"), covariance="isotropic"
    ),
    STATIC.but(name="heavy_reset", write=Measurement(dof=3), covariance="reset"),
    STATIC.but(name="heavy_mixing", write=Measurement(dof=3, per_token=2), process_noise=LogLinearMixing()),
    STATIC.but(name="squashed", readout=Expected("probit")),
    MixtureModel(name="restless", components=(STATIC, ZOO["deltanet"]), evidence_kept=0.9),
]
DESIGNS = [*ZOO.values(), *OTHERS]


def description(design):
    return f"{design}\n\n{design.describe('latex')}\n"


@pytest.mark.parametrize("design", DESIGNS, ids=lambda x: x.name)
def test_description(design):
    assert description(design) == (GOLDEN / f"{design.name}.txt").read_text(encoding="utf-8")


def test_no_golden_file_is_left_over():
    assert {path.stem for path in GOLDEN.iterdir()} == {design.name for design in DESIGNS}


@pytest.mark.parametrize("design", [ZOO["gla"], ZOO["mixture"]], ids=lambda x: x.name)
def test_other_forms_are_refused(design):
    with pytest.raises(ValueError, match="form is 'html'; expected 'text' or 'latex'"):
        design.describe("html")


if __name__ == "__main__":
    for each in DESIGNS:
        (GOLDEN / f"{each.name}.txt").write_text(description(each), encoding="utf-8")

"""What a design refuses, what follows from it, and its way to a file and back."""

import json
from dataclasses import FrozenInstanceError

import pytest

from bayesmem.design import (
    ZOO,
    Additive,
    Decay,
    DesignModel,
    Discount,
    Expected,
    Information,
    LatentInput,
    LogLinearMixing,
    Mean,
    Measurement,
    MixtureModel,
    Prior,
    PriorMixing,
    derive,
    from_dict,
    named,
)

LATENT = {"write": LatentInput(), "covariance": "none"}
CONTRADICTIONS = {
    "latent and a covariance": ({"write": LatentInput()}, "nothing is measured, so there is no gain"),
    "latent and noise": (LATENT | {"process_noise": Additive()}, "noise would change no output"),
    "latent and variance": (LATENT | {"readout": Expected()}, "carries a mean only"),
    "latent and a prior": (LATENT | {"prior": Prior(2.0)}, "the mean starts at 0 whatever its variance"),
    "tied keys without channels": (LATENT | {"write": LatentInput(key="complement")}, r"Decay\(per='channel'\)"),
    "measured without gain": ({"covariance": "none"}, "a measurement's gain needs a covariance"),
    "information with a gain": ({"readout": Information()}, "the information vector alone needs none"),
    "information with decay": (
        {"covariance": "none", "readout": Information(), "transition": Decay()},
        "only with transition=Identity",
    ),
    "information and Student-t": (
        {"covariance": "none", "readout": Information(), "write": Measurement(dof=3)},
        "weighs evidence by the belief",
    ),
    "log-linear and decay": ({"process_noise": LogLinearMixing(), "transition": Decay()}, "moves the mean"),
    "tied retention, no decay": ({"process_noise": PriorMixing("decay")}, "without a decay keeps everything"),
    "reset and noise": ({"covariance": "reset", "process_noise": PriorMixing()}, "has no effect"),
    "steady without mixing": (
        {"covariance": "steady_state", "process_noise": Additive()},
        "fixed point of PriorMixing",
    ),
    "steady, several measurements": (
        {"covariance": "steady_state", "process_noise": PriorMixing(), "write": Measurement(per_token=2)},
        "balances one measurement a token",
    ),
    "isotropic, prior per channel": ({"covariance": "isotropic", "prior": Prior(per="channel")}, "one variance a head"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradictions_are_refused_with_the_reason(case):
    options, reason = CONTRADICTIONS[case]
    with pytest.raises(ValueError, match=reason):
        DesignModel(name="bad", **options)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Decay(1.01), "Decay.factor is 1.01; expected a factor between 0 and 1"),
        (lambda: PriorMixing(1.5), "PriorMixing.retention is 1.5; expected a retention between 0 and 1"),
        (lambda: PriorMixing("tokens"), "'tokens'; expected a number or one of 'token', 'head', 'decay'"),
        (lambda: Discount(-0.1), "Discount.factor is -0.1"),
        (lambda: Discount(floor=2.0), "Discount.floor is 2.0"),
        (lambda: Discount(floor="token"), "Discount.floor is 'token'"),
        (lambda: Discount(0.0, floor=0.0), "leaves no precision at all"),
        (lambda: LogLinearMixing(float("nan")), "LogLinearMixing.factor is nan"),
        (lambda: Additive(-1.0), "Additive.variance is -1.0"),
        (lambda: Measurement(0.0), "Measurement.obs_noise is 0.0; expected a positive variance"),
        (lambda: Measurement(per_token=0), "per_token is 0"),
        (lambda: Measurement(dof=-1), "dof is -1"),
        (lambda: Prior(0.0), "Prior.var is 0.0"),
        (lambda: Prior("token"), "the prior comes before all tokens"),
        (lambda: LatentInput("head"), "strength is 'head'"),
        (lambda: LatentInput(key="free"), "'free'; expected one of 'token', 'complement'"),
        (lambda: Decay(per="row"), "'row'; expected one of 'head', 'channel'"),
        (lambda: Expected("tanh"), "'tanh'"),
        (lambda: DesignModel(name="bad", covariance="fulll"), "'fulll'; expected one of 'full'"),
        (lambda: DesignModel(name="bad", transition="decay"), r"transition is 'decay'; expected one of Identity\(\)"),
        (lambda: named("deltanets"), "'deltanets'; expected a DesignModel or one of linear_attention"),
        (lambda: MixtureModel(name="bad", components=(ZOO["gla"], ZOO["kda"])), "gla measures nothing"),
        (lambda: MixtureModel(name="bad", components=(ZOO["kda"],)), "1 component"),
        (lambda: MixtureModel(name="bad", components=(ZOO["kda"], ZOO["bayesian"])), "one name in different shapes"),
        (lambda: MixtureModel(name="bad", components=(ZOO["deltanet"], ZOO["longhorn"])), "differ in their write"),
        (lambda: MixtureModel(name="bad", components=(ZOO["rls"],) * 2, evidence_kept=0), "evidence_kept is 0"),
        (lambda: derive(ZOO["gla"]).state_size(0, 4), "key_dim is 0"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_numbers_and_names_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize(
    ("name", "passes", "rule", "inputs", "numbers"),
    [
        ("linear_attention", ("additive write",), None, {}, 64 * 32),
        ("mamba2", ("additive write",), None, {"log_decay": "B T H", "step": "B T H"}, 64 * 32),
        ("gla", ("additive write",), None, {"log_decay": "B T H K"}, 64 * 32),
        ("retnet", ("additive write",), None, {"log_decay": "H"}, 64 * 32),
        ("deltanet", ("reset gains", "mean pass"), "reset", {"obs_noise": "B T H"}, 64 * 32),
        ("deltaproduct", None, "reset", {"log_decay": "B T H", "obs_noise": "B N H"}, 64 * 32),
        ("kalman_diagonal", None, "diagonal", None, 64 * 32 + 64),
        ("kalman_isotropic", None, "isotropic", None, 64 * 32 + 1),
        ("mesanet", ("precision pass", "additive write"), "full", None, 64 * 32 + 64**2),
        ("rls", ("precision pass", "mean pass"), "full", {"log_discount": "H", "obs_noise": "H"}, 64 * 32 + 64**2),
        ("bayesian", ("covariance pass", "mean pass"), "full", None, 64 * 32 + 64**2),
        ("student_t", ("token loop",), "full", None, 64 * 32 + 64**2),
        ("mixture", None, "mixture", {"log_decay": "B T H", "obs_noise": "B T H"}, 2 * (64 * 32 + 64**2) + 2),
    ],
)
def test_what_follows(name, passes, rule, inputs, numbers):
    found = ZOO[name].recurrence
    assert passes in (None, found.passes)
    assert found.gain_rule == rule
    assert inputs in (None, {x.name: x.axes for x in found.inputs})
    assert found.state_size(64, 32).total == numbers


@pytest.mark.parametrize("design", ZOO.values(), ids=lambda x: x.name)
def test_a_design_survives_a_file(design):
    assert from_dict(json.loads(json.dumps(design.to_dict()))) == design


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"covariance": "full"}, "design has no name"),
        ({"name": "x", "covarianc": "full"}, "unknown keys .'covarianc'"),
        (
            {"name": "x", "write": {"kind": "Guess"}},
            "write is of kind 'Guess'; expected one of LatentInput, Measurement",
        ),
        ({"name": "x", "write": {"kind": "Measurement", "noise": 1}}, "write has unknown keys .'noise'"),
        ({"name": "x", "write": "Measurement"}, "expected a dict with its 'kind'"),
        ({"name": "x", "components": [], "kept": 1}, "mixture: .*'kept'"),
    ],
)
def test_damaged_data_is_refused(data, said):
    with pytest.raises(ValueError, match=said):
        from_dict(data)


def test_designs_are_frozen_values():
    with pytest.raises(FrozenInstanceError):
        ZOO["gla"].covariance = "full"
    assert len(set(ZOO.values())) == len(ZOO)
    changed = ZOO["deltanet"].but(name="mine", readout=Mean())
    assert changed.equals == "" and changed.covariance == "reset"

"""First rung: the token loop against dense conditioning, statsmodels and formulas written in numpy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import oracles
from bayesmem.ops import Backend, Discount
from bayesmem.types import FilterOutput
from ops.cases import BACKENDS, CARRIED, FLOOR, LATENT, Case, Design, each_design, label, make_case
from oracles import Array, Linear, Posterior

RTOL = 1e-10
HEADS = [(0, 0), (0, 1), (1, 0), (1, 1)]
FULL = "full"


def close(actual: Tensor, expected: Array) -> None:
    """Equal to 1e-10, with an ``atol`` of 1e-12 of the largest entry for the entries near 0."""
    np.testing.assert_allclose(actual.numpy(), expected, rtol=RTOL, atol=1e-12 * np.abs(expected).max())


def one_head(case: Case, row: int, head: int) -> dict[str, Array]:
    """One head's inputs as the oracles take them: decays and noises as factors, over all channels."""
    x = {name: tensor.numpy() for name, tensor in case.tensors.items()}
    key_dim, value_heads, groups = x["k"].shape[-1], x["v"].shape[2], x["k"].shape[2]
    group = head * groups // value_heads
    out = {"q": x["q"][row, :, group], "k": x["k"][row, :, group], "v": x["v"][row, :, head]}
    for name in ("log_decay", "log_retention", "variance", "log_discount"):
        if name in x:
            gate = x[name][row, :, head].reshape(len(out["k"]), -1)
            out[name] = np.broadcast_to(gate, out["k"].shape)
    out["decay"] = np.exp(out["log_decay"])
    out["retention"] = np.exp(out.get("log_retention", out["log_decay"]))
    if "obs_noise" in x:
        out["obs_noise"] = x["obs_noise"][row, :, head]
    out["prior"] = x["prior_var"][head]
    if case.design.covariance == "isotropic":
        out["prior"] = np.full(key_dim, out["prior"].mean())
    out["mean"] = x["mean"][row, head]
    cov = x["cov"][row, head] if "cov" in x else out["prior"]
    out["cov"] = cov if case.design.covariance == FULL else np.diag(np.broadcast_to(cov, key_dim))
    if "steady_var" in x:
        out["steady_var"] = x["steady_var"][head]
    return out


def linear_model(case: Case, row: int, head: int) -> Linear:
    x = one_head(case, row, head)
    if case.design.noise == "additive":
        noise = np.stack([np.diag(n) for n in x["variance"]])
    else:
        noise = oracles.exact_process_noise(x["k"], x["decay"], x["retention"], x["prior"], x["obs_noise"], x["cov"])
    return Linear(x["k"], x["v"], x["decay"], noise, x["obs_noise"], x["mean"], x["cov"])


EXACT_CASES = {
    "mixing-own-retention": ("prior_mixing", False, {}),
    "mixing-own-retention-channels": ("prior_mixing", True, {}),
    "mixing-tied": ("prior_mixing", False, {"log_retention": None}),
    "mixing-tied-channels": ("prior_mixing", True, {"log_retention": None}),
    "additive": ("additive", False, {}),
    "additive-channels": ("additive", True, {}),
    "no-noise": ("additive", False, {"variance": torch.zeros(2, 5, 2, dtype=torch.float64)}),
}


@pytest.fixture(scope="module", params=EXACT_CASES)
def exact(request: pytest.FixtureRequest) -> tuple[Case, FilterOutput, list[FilterOutput]]:
    """A case of the exact filter, its run, and the runs of its first 1 .. T tokens."""
    noise, channels, changed = EXACT_CASES[request.param]
    case = make_case(Design(FULL, noise), channels=channels, batch=2, length=5, key_dim=3, value_dim=2).with_(**changed)
    prefixes = [case.between(0, stop).run() for stop in range(1, 6)]
    return case, case.run(), prefixes


@pytest.mark.parametrize("textbook", [oracles.dense_conditioning, oracles.statsmodels_filter])
@pytest.mark.parametrize(("row", "head"), HEADS)
def test_exact_filter_is_gaussian_conditioning(exact, textbook, row: int, head: int):
    case, whole, prefixes = exact
    model = linear_model(case, row, head)
    expected: Posterior = textbook(model)
    queries = one_head(case, row, head)["q"]
    value_dim = model.v.shape[1]
    eye = torch.eye(value_dim, dtype=torch.float64)
    for t, prefix in enumerate(prefixes):
        close(prefix.final_belief.mean[row, head], expected.mean[t])
        # One K x K covariance serves every value channel: the Kronecker closure.
        close(torch.kron(prefix.final_belief.cov[row, head], eye), expected.cov[t])
        close(whole.o[row, t, head], expected.mean[t].T @ queries[t])
        read = np.kron(queries[t][None], np.eye(value_dim))
        close(whole.predictive_var[row, t, head] * eye, read @ expected.cov[t] @ read.T)
    close(whole.log_evidence[row, :, head], expected.log_evidence)


def predict_rule(case: Case, x: dict[str, Array]) -> oracles.Predict:
    """What a design lets time do to a belief, in dense matrices."""
    design, ridge = case.design, np.diag(1 / x["prior"])

    def predict(t: int, mean: Array, cov: Array) -> tuple[Array, Array]:
        decay, moved = x["decay"][t], x["decay"][t][:, None] * mean
        if design.covariance == "reset":
            return moved, np.diag(x["prior"])
        if design.covariance == "steady_state":
            return moved, x["steady_var"] * np.eye(len(decay))
        if design.noise == "prior_mixing":
            keep = x["retention"][t]
            predicted = np.outer(keep, keep) * cov + np.diag((1 - keep**2) * x["prior"])
        elif design.noise == "additive":
            predicted = np.outer(decay, decay) * cov + np.diag(x["variance"][t])
        elif design.noise == "discount":
            gamma = np.exp(x["log_discount"][t, 0])
            predicted = np.linalg.inv(gamma * np.linalg.inv(cov) + (1 - gamma) * FLOOR * ridge)
        else:
            information = np.linalg.inv(cov)
            predicted = np.linalg.inv(decay[0] * information + (1 - decay[0]) * ridge)
            moved = predicted @ (decay[0] * information @ mean)
        if design.covariance == "isotropic":  # decays per channel would leave the family: its trace is kept
            predicted = np.eye(len(decay)) * np.trace(predicted) / len(decay)
        return moved, predicted

    return predict


CORRECT = {"diagonal": oracles.mean_field_posterior, "isotropic": oracles.trace_matched_posterior}
GIVEN_STEADY = Design("steady_state", "prior_mixing", given_steady_var=True)
LOOPED = [*CARRIED, Design("reset", "prior_mixing"), GIVEN_STEADY]


@pytest.mark.parametrize(("design", "channels"), each_design(LOOPED), ids=label)
def test_every_structure_is_its_formula(design: Design, channels: bool):
    case = make_case(design, channels=channels, batch=2, heads=4, groups=2, key_dim=4)
    out = case.run()
    for row, head in [(0, 0), (0, 3), (1, 1), (1, 2)]:
        x = one_head(case, row, head)
        correct = CORRECT.get(design.covariance, oracles.exact_posterior)
        stream = (x["q"], x["k"], x["v"], x["obs_noise"], x["mean"], x["cov"])
        expected = oracles.reduced_filter(*stream, predict_rule(case, x), correct)
        close(out.o[row, :, head], expected.o)
        close(out.predictive_var[row, :, head], expected.predictive_var)
        close(out.log_evidence[row, :, head], expected.log_evidence)
        close(out.final_belief.mean[row, head], expected.mean)
        if not design.carries:
            assert out.final_belief.cov is None
            continue
        cov = out.final_belief.cov[row, head]
        close(cov if design.covariance == FULL else torch.diag(cov.expand(4)), expected.cov)


@pytest.mark.parametrize("channels", [False, True], ids=label)
@pytest.mark.parametrize("unit", [True, False], ids=["unit-keys", "any-keys"])
def test_reset_is_the_gated_delta_rule(unit: bool, channels: bool):
    """A released model's beta logit b is the observation noise exp(-b), unit keys and unit prior."""
    case = make_case(Design("reset", "prior_mixing"), channels=channels).with_(prior_var=None, log_retention=None)
    keys = case.tensors["k"]
    case = case.with_(k=keys / keys.norm(dim=-1, keepdim=True) if unit else keys)
    logit = torch.linspace(-6, 12, case.tensors["obs_noise"].numel(), dtype=torch.float64)
    case = case.with_(obs_noise=(-logit).exp().view_as(case.tensors["obs_noise"]))
    out = case.run()
    for head in range(2):
        x = one_head(case.with_(prior_var=torch.ones(2, 3)), 0, head)
        released = 1 / (1 + np.exp(-logit.numpy().reshape(-1, 2)[:, head]))
        beta = released if unit else 1 / (x["obs_noise"] + (x["k"] ** 2).sum(-1))
        o, memory = oracles.delta_rule(x["q"], x["k"], x["v"], x["decay"], beta, x["mean"])
        close(out.o[0, :, head], o)
        close(out.final_belief.mean[0, head], memory)


@pytest.mark.parametrize("channels", [False, True], ids=label)
def test_steady_state_solves_its_fixed_point(channels: bool):
    case = make_case(Design("steady_state", "prior_mixing"), channels=channels, length=9)
    keys = case.tensors["k"] / case.tensors["k"].norm(dim=-1, keepdim=True)
    # A unit query across the key is read with the predicted variance itself.
    across = torch.linalg.cross(keys, case.tensors["q"])
    case = case.with_(k=keys, q=across / across.norm(dim=-1, keepdim=True))
    out = case.run()
    for head in range(2):
        x = one_head(case, 0, head)
        p, r, prior = out.predictive_var[0, :, head].numpy(), x["obs_noise"], x["prior"].mean()
        keep = (x["retention"] ** 2).mean(-1)
        posterior = p - p**2 / (3 * (p + r))
        np.testing.assert_allclose(keep * posterior + (1 - keep) * prior, p, rtol=RTOL)
        o, _ = oracles.delta_rule(x["q"], x["k"], x["v"], x["decay"], p / (p + r), x["mean"])
        close(out.o[0, :, head], o)


@pytest.mark.parametrize("backend", BACKENDS, ids=label)
def test_discount_without_a_floor_divides_the_covariance(backend: Backend):
    case = make_case(Design(FULL, "discount"))
    assumptions = replace(case.assumptions(), process_noise=Discount(case.tensors["log_discount"], floor=0.0))
    out = case.run(backend, assumptions=assumptions)
    for head in range(2):
        x = one_head(case, 0, head)
        gamma = np.exp(x["log_discount"][:, 0])

        def predict(t: int, mean: Array, cov: Array, x=x, gamma=gamma) -> tuple[Array, Array]:
            return x["decay"][t][:, None] * mean, cov / gamma[t]

        stream = (x["q"], x["k"], x["v"], x["obs_noise"], x["mean"], x["cov"])
        expected = oracles.reduced_filter(*stream, predict, oracles.exact_posterior)
        close(out.o[0, :, head], expected.o)
        close(out.predictive_var[0, :, head], expected.predictive_var)
        close(out.log_evidence[0, :, head], expected.log_evidence)
        close(out.final_belief.cov[0, head], expected.cov)


def test_log_linear_mixing_is_mesa_net():
    case = make_case(Design(FULL, "log_linear"), length=12)
    out = case.run()
    for head in range(2):
        x = one_head(case, 0, head)
        ridge, start = 1 / x["prior"], np.linalg.inv(x["cov"])
        # Their H is our precision above the ridge, and the initial belief's share of it fades alike.
        memory, info = start - np.diag(ridge), start @ x["mean"]
        expected = oracles.mesa_net(x["q"], x["k"], x["v"], x["decay"][:, 0], x["obs_noise"], ridge, memory, info)
        close(out.o[0, :, head], expected)


@pytest.mark.parametrize(("design", "channels"), each_design(LATENT), ids=label)
def test_latent_input_adds_and_measures_nothing(design: Design, channels: bool):
    case = make_case(design, channels=channels)
    out = case.run()
    for head in range(2):
        x = one_head(case, 0, head)
        predict, mean, cov = predict_rule(case, x), x["mean"], x["cov"]
        for t in range(len(x["k"])):
            mean, cov = predict(t, mean, cov)
            mean = mean + np.outer(x["k"][t], x["v"][t])
            close(out.o[0, t, head], x["q"][t] @ mean)
            close(out.predictive_var[0, t, head], x["q"][t] @ cov @ x["q"][t])
        close(out.final_belief.mean[0, head], mean)
        close(out.final_belief.cov[0, head], cov)

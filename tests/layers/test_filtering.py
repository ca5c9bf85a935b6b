"""Designs met with tensors: read-outs, mixtures, several measurements, and what is refused."""

import math

import pytest
import torch
from torch.distributions import Normal

from bayesmem.design import ZOO, Expected, Measurement, MixtureModel, PrecisionWeighted, PriorMixing
from bayesmem.ops import Assumptions, Backend, bayesian_filter
from bayesmem.ops import PriorMixing as GivenPriorMixing

B, T, H, K, V = 2, 11, 2, 4, 3
ASKED = ("predictive_var", "log_evidence", "final_belief")
STATIC, BAYESIAN = ZOO["bayesian_static"], ZOO["bayesian"]


def tensors(measurements=1, seed=0):
    """q, k, v and every input that a measured design of the zoo may take."""
    rng = torch.Generator().manual_seed(seed)

    def uniform(*shape, low, high):
        return low + (high - low) * torch.rand(*shape, generator=rng, dtype=torch.float64)

    def unit(*shape):
        return torch.nn.functional.normalize(torch.randn(*shape, generator=rng, dtype=torch.float64), dim=-1)

    count = measurements * T
    q, k, v = unit(B, T, H, K), unit(B, count, H, K), torch.randn(B, count, H, V, generator=rng, dtype=torch.float64)
    gates = {
        "log_decay": uniform(B, T, H, low=-0.3, high=0),
        "log_retention": uniform(B, T, H, low=-0.3, high=0),
        "obs_noise": uniform(B, count, H, low=0.1, high=1),
    }
    return q, k, v, gates


def test_a_design_is_the_filter_under_its_assumptions():
    q, k, v, gates = tensors()
    out = BAYESIAN.filter(q, k, v, outputs=ASKED, **gates)
    noise = GivenPriorMixing(gates["log_retention"])
    direct = bayesian_filter(
        q, k, v, gates["log_decay"], gates["obs_noise"], Assumptions(process_noise=noise), outputs=ASKED
    )
    assert torch.equal(out.o, direct.o) and torch.equal(out.log_evidence, direct.log_evidence)
    fixed = BAYESIAN.but(name="fixed", write=Measurement(0.3), process_noise=PriorMixing(math.exp(-0.1)))
    out = fixed.filter(q, k, v, log_decay=gates["log_decay"])
    given = BAYESIAN.filter(
        q,
        k,
        v,
        log_decay=gates["log_decay"],
        log_retention=torch.full_like(gates["log_decay"], -0.1),
        obs_noise=torch.full_like(gates["log_decay"], 0.3),
    )
    torch.testing.assert_close(out.o, given.o)


@pytest.mark.parametrize("backend", ["recurrent", Backend("chunk", 4)])
def test_several_measurements_a_token_are_several_updates(backend):
    """Of one prediction, by the textbook equations; the evidence of a token is that of all its measurements."""
    q, k, v, gates = tensors(measurements=3)
    design = BAYESIAN.but(name="thrice", write=Measurement(per_token=3))
    out = design.filter(q, k, v, outputs=ASKED, backend=backend, **gates)
    mean, cov = torch.zeros(B, H, K, V, dtype=q.dtype), torch.eye(K, dtype=q.dtype).expand(B, H, K, K)
    for t in range(T):
        kept = (2 * gates["log_retention"][:, t]).exp()[..., None, None]
        mean = gates["log_decay"][:, t].exp()[..., None, None] * mean
        cov = kept * cov + (1 - kept) * torch.eye(K, dtype=q.dtype)
        evidence = torch.zeros(B, H, dtype=q.dtype)
        for i in range(3 * t, 3 * t + 3):
            key, spread = k[:, i], (cov @ k[:, i, ..., None])[..., 0]
            total = (key * spread).sum(-1) + gates["obs_noise"][:, i]
            error = v[:, i] - (mean.mT @ key[..., None])[..., 0]
            evidence = evidence + Normal(0.0, total.sqrt()[..., None]).log_prob(error).sum(-1)
            mean = mean + spread[..., :, None] * error[..., None, :] / total[..., None, None]
            cov = cov - spread[..., :, None] * spread[..., None, :] / total[..., None, None]
        torch.testing.assert_close(out.o[:, t], (mean.mT @ q[:, t, ..., None])[..., 0])
        torch.testing.assert_close(out.log_evidence[:, t], evidence)
        torch.testing.assert_close(out.predictive_var[:, t], torch.einsum("bhk,bhkl,bhl->bh", q[:, t], cov, q[:, t]))
    torch.testing.assert_close(out.final_belief.cov, cov)


@pytest.mark.parametrize("function", ["relu", "probit"])
def test_expected_read_out_is_the_integral(function):
    q, k, v, gates = tensors()
    plain = BAYESIAN.filter(q, k, v, outputs=("predictive_var",), **gates)
    out = BAYESIAN.but(name="nonlinear", readout=Expected(function)).filter(q, k, v, **gates)
    assert out.predictive_var is None
    standard = torch.linspace(-8, 8, 20_001, dtype=torch.float64)
    weights = Normal(0.0, 1.0).log_prob(standard).exp()
    values = plain.o[..., None] + plain.predictive_var.sqrt()[..., None, None] * standard
    f = {"relu": torch.relu, "probit": torch.special.ndtr}[function]
    expected = torch.trapezoid(f(values) * weights, standard, dim=-1)
    torch.testing.assert_close(out.o, expected, rtol=1e-6, atol=1e-7)


def test_rectified_is_relu_where_the_memory_is_sure():
    _, k, v, gates = tensors()
    gates |= {name: torch.zeros_like(gates[name]) for name in ("log_decay", "log_retention")}
    # Every key written 200 times: almost nothing is left to be unsure of.
    many = {name: x.repeat(1, 200, 1) for name, x in gates.items()}
    args = [x.repeat(1, 200, 1, 1) for x in (k, k, v)]
    sure, plain = ZOO["rectified"].filter(*args, **many), BAYESIAN.filter(*args, **many)
    assert (sure.o[:, -T:] - plain.o[:, -T:].relu()).abs().max() < 0.03


def test_precision_weighted_read_out():
    q, k, v, gates = tensors()
    plain = BAYESIAN.filter(q, k, v, outputs=("predictive_var",), **gates)
    out = BAYESIAN.but(name="weighted", readout=PrecisionWeighted()).filter(q, k, v, **gates)
    share = gates["obs_noise"] / (gates["obs_noise"] + plain.predictive_var)
    torch.testing.assert_close(out.o, plain.o * share[..., None])


class TestMixture:
    MIXTURE = ZOO["mixture"]

    def gates(self, gates):
        return {name: gates[name] for name in ("log_decay", "obs_noise")}

    def test_weights_are_the_posterior_of_the_design(self):
        """By the definition: every component's evidence of the whole past, normalised at each token."""
        q, k, v, gates = tensors()
        gates = self.gates(gates)
        out = self.MIXTURE.filter(q, k, v, outputs=ASKED, **gates)
        forgetting = ZOO["bayesian_forgetting"].filter(q, k, v, outputs=ASKED, **gates)
        static = STATIC.filter(q, k, v, outputs=ASKED, obs_noise=gates["obs_noise"])
        evidence = torch.stack([static.log_evidence, forgetting.log_evidence], -1).cumsum(1)
        weights = evidence.softmax(-1)
        means = torch.stack([static.o, forgetting.o], -1)
        mean = (weights[:, :, :, None] * means).sum(-1)
        torch.testing.assert_close(out.o, mean)
        torch.testing.assert_close(out.log_evidence.cumsum(1), (evidence - math.log(2)).logsumexp(-1))
        second = torch.stack([static.predictive_var, forgetting.predictive_var], -1) + means.square().mean(-2)
        torch.testing.assert_close(out.predictive_var, (weights * second).sum(-1) - mean.square().mean(-1))
        torch.testing.assert_close(out.final_belief.log_weights, weights[:, -1].log())

    @pytest.mark.parametrize("kept", [1.0, 0.8])
    def test_split_is_whole_and_packed_is_separate(self, kept):
        q, k, v, gates = tensors()
        gates = self.gates(gates)
        model = MixtureModel(name="m", components=self.MIXTURE.components, evidence_kept=kept)
        whole = model.filter(q, k, v, outputs=ASKED, **gates)

        def run(start, stop, belief=None):
            part = {name: x[:, start:stop] for name, x in gates.items()}
            cut = (x[:, start:stop] for x in (q, k, v))
            return model.filter(*cut, outputs=ASKED, initial_belief=belief, **part)

        first = run(0, 5)
        second = run(5, T, first.final_belief)
        torch.testing.assert_close(torch.cat([first.o, second.o], 1), whole.o)
        torch.testing.assert_close(second.final_belief.log_weights, whole.final_belief.log_weights)
        one = {name: x[:1] for name, x in gates.items()}
        packed = model.filter(q[:1], k[:1], v[:1], cu_seqlens=torch.tensor([0, 5, T]), outputs=ASKED, **one)
        torch.testing.assert_close(packed.o[:, 5:], run(5, T).o[:1])
        torch.testing.assert_close(packed.final_belief.log_weights[1:], run(5, T).final_belief.log_weights[:1])

    def test_the_evidence_finds_the_design_that_made_the_data(self):
        """Data drawn from the static memory, and from the forgetting one: its own design wins."""
        rng = torch.Generator().manual_seed(1)
        tokens, decay = 400, 0.95
        k = torch.nn.functional.normalize(torch.randn(1, tokens, 1, K, generator=rng, dtype=torch.float64), dim=-1)
        won = []
        for drifts in (False, True):
            memory, values = torch.randn(K, V, generator=rng, dtype=torch.float64), []
            for t in range(tokens):
                if drifts:
                    step = torch.randn(K, V, generator=rng, dtype=torch.float64)
                    memory = decay * memory + (1 - decay**2) ** 0.5 * step
                noise = 0.1**0.5 * torch.randn(V, generator=rng, dtype=torch.float64)
                values.append(memory.T @ k[0, t, 0] + noise)
            v = torch.stack(values)[None, :, None]
            log_decay = torch.full((1, tokens, 1), math.log(decay), dtype=torch.float64)
            noise = torch.full((1, tokens, 1), 0.1, dtype=torch.float64)
            out = self.MIXTURE.filter(k, k, v, outputs=("final_belief",), log_decay=log_decay, obs_noise=noise)
            won.append(out.final_belief.log_weights.exp().argmax().item())
        assert won == [0, 1]

    def test_a_belief_of_another_kind_is_refused(self):
        q, k, v, gates = tensors()
        gates = self.gates(gates)
        one = STATIC.filter(q, k, v, outputs=ASKED, obs_noise=gates["obs_noise"]).final_belief
        two = self.MIXTURE.filter(q, k, v, outputs=ASKED, **gates).final_belief
        with pytest.raises(ValueError, match="carries a MixtureBelief of 2"):
            self.MIXTURE.filter(q, k, v, initial_belief=one, **gates)
        with pytest.raises(ValueError, match="is a mixture's; bayesian_static carries one"):
            STATIC.filter(q, k, v, initial_belief=two, obs_noise=gates["obs_noise"])
        with pytest.raises(ValueError, match=r"no use for .'log_retention'"):
            self.MIXTURE.filter(q, k, v, log_retention=gates["log_decay"], **gates)


def refusals():
    q, k, v, gates = tensors()
    noise, decay = gates["obs_noise"], gates["log_decay"]
    zoo = ZOO
    return {
        "missing": (zoo["kda"], (q, k, v), {"obs_noise": noise}, r"kda needs log_decay \[B, T, H, K\] \(log of"),
        "unknown": (zoo["deltanet"], (q, k, v), gates, "deltanet has no use for .'log_decay', 'log_retention'"),
        "shape": (zoo["deltanet"], (q, k, v), {"obs_noise": noise[:, 1:]}, "obs_noise has shape"),
        "per channel": (zoo["kda"], (q, k, v), {"obs_noise": noise, "log_decay": decay}, "expected 4 axes"),
        "no key": (zoo["deltanet"], (q, None, v), {"obs_noise": noise}, "k is None for deltanet"),
        "a key": (zoo["hgrn2"], (q, k, v), {"log_decay": decay[..., None].expand_as(k)}, "pass k=None"),
        "few keys": (zoo["deltaproduct"], (q, k, v), {"log_decay": decay, "obs_noise": noise}, "expected 22"),
        "negative step": (
            zoo["mamba2"],
            (q, k, v),
            {"log_decay": decay, "step": -noise},
            "step must be positive",
        ),
        "key dtype": (zoo["deltanet"], (q, k.float(), v), {"obs_noise": noise}, "k is torch.float32"),
        "negative": (zoo["deltanet"], (q, k, v), {"obs_noise": -noise}, "obs_noise must be positive"),
        "growing": (zoo["retnet"], (q, k, v), {"log_decay": torch.ones(H, dtype=q.dtype)}, "at most 0"),
        "NaN": (zoo["deltanet"], (q, k, v * torch.nan), {"obs_noise": noise}, "NaN"),
    }


@pytest.mark.parametrize("case", refusals())
def test_bad_tensors_are_refused(case):
    design, streams, inputs, said = refusals()[case]
    with pytest.raises(ValueError, match=said):
        design.filter(*streams, **inputs)


@pytest.mark.parametrize("name", ["bayesian_static", "mixture"])
def test_unknown_outputs_are_refused(name):
    q, k, v, gates = tensors()
    gates = {x.name: gates[x.name] for x in ZOO[name].recurrence.inputs}
    with pytest.raises(ValueError, match="outputs is 'nonsense'"):
        ZOO[name].filter(q, k, v, outputs=("nonsense",), **gates)
    with pytest.raises(ValueError, match="outputs is the string"):
        ZOO[name].filter(q, k, v, outputs="predictive_var", **gates)


def test_variance_of_a_mean_alone_is_refused():
    q, k, v, _ = tensors()
    with pytest.raises(ValueError, match="predictive_var of linear_attention"):
        ZOO["linear_attention"].filter(q, k, v, outputs=("predictive_var",))


def test_the_floor_below_the_noise_is_off_under_reset():
    """A released delta rule may have beta up to 1: the reset takes its noise as it is."""
    _, k, v, _ = tensors()
    tiny = torch.full((B, T, H), 1e-9, dtype=torch.float64)
    out = ZOO["deltanet"].filter(k, k, v, obs_noise=tiny)
    torch.testing.assert_close(out.o, v, rtol=1e-6, atol=1e-7)

"""Random measured designs against a loop written from the equations that they print. Float64, one head at a time."""

import math
import random

import pytest
import torch
from torch import Tensor

from bayesmem.design import (
    Additive,
    Decay,
    DesignModel,
    Discount,
    Identity,
    LogLinearMixing,
    Mean,
    Measurement,
    NoNoise,
    PrecisionWeighted,
    Prior,
    PriorMixing,
)
from bayesmem.ops import Backend

H, K, V, FLOOR = 2, 3, 2, 1e-4  # the filter raises the noise to FLOOR p0 |k|^2 except under reset


def drawn(count: int) -> list[DesignModel]:
    """Designs of choices drawn at random; those that contradict are refused and drawn again."""
    rng, found = random.Random(0), []

    def given(number):
        return rng.choice(["token", "head", number])

    def per():
        return rng.choice(["head", "channel"])

    while len(found) < count:
        mixing = PriorMixing(rng.choice(["token", "head", 0.8, "decay"]), per())
        noises = [NoNoise(), Additive(given(0.1), per()), mixing, Discount(given(0.9), rng.choice([0.0, 0.1, 1.0]))]
        choices = {
            "prior": Prior(rng.choice([1.0, 2.0, "head"]), per()),
            "transition": rng.choice([Identity(), Decay(given(0.9), per())]),
            "process_noise": rng.choice([*noises, LogLinearMixing(given(0.9))]),
            "write": Measurement(given(0.3), per_token=rng.choice([1, 2])),
            "covariance": rng.choice(["full", "diagonal", "isotropic", "reset", "steady_state"]),
            "readout": rng.choice([Mean(), PrecisionWeighted()]),
        }
        try:
            found.append(DesignModel(name=f"drawn_{len(found)}", **choices))
        except ValueError:
            continue
    return found


class Loop:
    """One head's memory under a design, by the textbook."""

    def __init__(self, design: DesignModel, prior: Tensor):
        self.design, self.prior = design, prior
        self.mean, self.cov = torch.zeros(K, V, dtype=prior.dtype), torch.diag(prior)

    def predict(self) -> None:
        noise, eye = self.design.process_noise, torch.eye(K, dtype=self.prior.dtype)
        a = self.at("log_decay", self.design.transition, "factor").exp()
        averaged = self.design.covariance == "isotropic"
        if isinstance(noise, Discount | LogLinearMixing):
            gamma = self.at("log_discount", noise, "factor").exp()[0]
            floor = noise.floor if isinstance(noise, Discount) else 1.0
            before = torch.linalg.inv(self.cov)
            self.cov = torch.linalg.inv(gamma * before + (1 - gamma) * floor * torch.diag(1 / self.prior))
            moved = a[:, None] * self.mean
            self.mean = moved if isinstance(noise, Discount) else gamma * self.cov @ before @ self.mean
            return
        kept, added = a, self.at("process_noise", noise, "variance")
        if isinstance(noise, PriorMixing):
            kept = a if noise.retention == "decay" else self.at("log_retention", noise, "retention").exp()
            added = (1 - kept**2) * self.prior
        self.kept, self.mean = kept, a[:, None] * self.mean
        if averaged:
            self.cov = (kept**2).mean() * self.cov + added.mean() * eye
        else:
            self.cov = kept[:, None] * self.cov * kept + torch.diag(added)

    def update(self, key: Tensor, value: Tensor, noise: Tensor) -> None:
        structure = self.design.covariance
        if structure != "reset":
            noise = torch.maximum(noise, FLOOR * self.prior.mean() * key @ key)
        before = torch.diag(self.prior) if structure == "reset" else self.cov
        if structure == "steady_state":
            before = self.steady(noise) * torch.eye(K, dtype=key.dtype)
        total = key @ before @ key + noise
        gain = before @ key / total
        self.mean = self.mean + torch.outer(gain, value - self.mean.T @ key)
        if structure == "diagonal":
            self.cov = torch.diag(1 / (1 / torch.diag(before) + key**2 / noise))
        elif structure == "isotropic":
            p = before[0, 0]
            self.cov = (p - p**2 * (key @ key) / (K * total)) * torch.eye(K, dtype=key.dtype)
        else:
            self.cov = before - total * torch.outer(gain, gain)

    def steady(self, noise: Tensor) -> Tensor:
        lost, prior = 1 - (self.kept**2).mean(), self.prior.mean()
        p = prior.clone()
        for _ in range(2000):
            p = (1 - lost) * (p - p**2 / (K * (p + noise))) + lost * prior
        return p


@pytest.mark.parametrize("design", drawn(60), ids=lambda x: x.name)
def test_the_filter_is_what_it_prints(design: DesignModel):
    length, count = 6, design.write.per_token
    rng = torch.Generator().manual_seed(1)
    sizes = {"B": 1, "T": length, "N": count * length, "H": H, "K": K}

    def uniform(*shape, low, high):
        return low + (high - low) * torch.rand(*shape, generator=rng, dtype=torch.float64)

    inputs = {}
    for x in design.recurrence.inputs:
        shape = [sizes[axis] for axis in x.axes.split()]
        logs = x.name.startswith("log")
        inputs[x.name] = -uniform(*shape, low=0.01, high=0.4) if logs else uniform(*shape, low=0.3, high=1.0)
    q, k = (torch.randn(1, n, 1, K, generator=rng, dtype=torch.float64) for n in (length, count * length))
    v = torch.randn(1, count * length, H, V, generator=rng, dtype=torch.float64)
    for backend in (Backend("chunk", 4), Backend("recurrent")):
        out = design.filter(q, k, v, outputs=("predictive_var",), backend=backend, **inputs)
        for head in range(H):
            memory = Loop(design, prior_of(design, inputs, head))
            for t in range(length):
                memory.at = at_token(inputs, t, head)
                memory.predict()
                for i in range(count * t, count * (t + 1)):
                    noise = memory.at("obs_noise", design.write, "obs_noise", i)[0]
                    memory.update(k[0, i, 0], v[0, i, head], noise)
                var = q[0, t, 0] @ memory.cov @ q[0, t, 0]
                o = memory.mean.T @ q[0, t, 0]
                if isinstance(design.readout, PrecisionWeighted):
                    o = o * noise / (noise + var)
                torch.testing.assert_close(out.o[0, t, head], o, rtol=1e-8, atol=1e-10)
                torch.testing.assert_close(out.predictive_var[0, t, head], var, rtol=1e-8, atol=1e-10)


def at_token(inputs: dict[str, Tensor], t: int, head: int):
    """What a quantity is at one token and head, ``[K]``, whether given a token, a head or as a number."""

    def at(name: str, owner: object, field: str, index: int | None = None) -> Tensor:
        value = getattr(owner, field, 1.0 if name.startswith("log") else 0.0)
        if not isinstance(value, str):
            number = math.log(value) if name.startswith("log") else value
            return torch.full((K,), number, dtype=torch.float64)
        x = inputs[name]
        at_head = x[0, t if index is None else index, head] if x.ndim > 2 else x[head]
        return at_head.expand(K)

    return at


def prior_of(design: DesignModel, inputs: dict[str, Tensor], head: int) -> Tensor:
    given = inputs.get("prior_var")
    return torch.full((K,), float(design.prior.var), dtype=torch.float64) if given is None else given[head].expand(K)

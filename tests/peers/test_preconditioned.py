"""Preconditioned DeltaNet: why it is not in the zoo, and how far from it the nearest designs are.

Its gain is ``beta M k`` with unit keys, ``M = x^(-softsign(log A - c))`` for each channel (x = 1.5,
c = -0.2) and ``A`` the discounted sum of ``beta_atk k^2``, this token's among it.
"""

import pytest
import torch

from bayesmem.design import ZOO, Decay, DesignModel, Discount, LogLinearMixing, Prior
from bayesmem.types import Belief
from peers.cases import noise_of, scaled
from peers.draws import Draw, off
from peers.released import lifted, naive_recurrent_precond_gated_delta_rule


class Preconditioned:
    """Random inputs, the peer's outputs and its M of every token; beta a sigmoid of normals, times ``most``."""

    def __init__(self, seed: int, most: float = 1.0, batch: int = 16, length: int = 128, key_dim: int = 16):
        draw, heads = Draw(seed), (batch, length, 2)
        self.q, self.k, self.v = draw.unit(*heads, key_dim), draw.unit(*heads, key_dim), draw.normal(*heads, 4)
        self.g, self.beta = draw.decay(-0.1, *heads), most * draw.normal(*heads).sigmoid()
        strength = draw.normal(*heads).sigmoid()
        with lifted():
            self.o = naive_recurrent_precond_gated_delta_rule(
                self.q, self.k, self.v, self.g, self.g, strength, self.beta
            )[0]
        gathered, every = torch.zeros(batch, 2, key_dim, dtype=torch.float64), []
        for t in range(length):
            gathered = gathered * self.g[:, t, :, None].exp() + strength[:, t, :, None] * self.k[:, t] ** 2
            depth = torch.log(gathered + 1e-6) + 0.2
            every.append(1.5 ** (-depth / (1 + depth.abs())))
        self.m = torch.stack(every, 1)
        self.spread = (self.m * self.k**2).sum(-1)


@pytest.mark.parametrize("seed", range(3))
def test_step_is_a_measurement_while_beta_is_small(seed: int):
    """With predicted covariance M and noise ``1 / beta - k^T M k``, our reset step a token gives its outputs."""
    x = Preconditioned(seed, most=0.6, batch=1, length=24)
    noise = 1 / x.beta - x.spread
    assert noise.min() > 0  # k^T M k <= x = 1.5, so that any beta below 2 / 3 will do
    reset = ZOO["gated_deltanet"].but(name="given covariance", prior=Prior("head", per="channel"))
    belief = None
    for t in range(24):
        now = slice(t, t + 1)
        gates = {"log_decay": x.g[:, now], "obs_noise": noise[:, now], "prior_var": x.m[0, t]}
        out = reset.filter(
            scaled(x.q[:, now]), x.k[:, now], x.v[:, now], initial_belief=belief, outputs=("final_belief",), **gates
        )
        torch.testing.assert_close(out.o, x.o[:, now], rtol=1e-9, atol=1e-12)
        belief = Belief(out.final_belief.mean, None)


def test_not_a_filter_at_every_token():
    """Noise positive for 98% of tokens; process noise ``M_t - a^2 P_{t-1}`` not negative for 75%."""
    x = Preconditioned(0)
    assert 0.975 < (x.beta * x.spread < 1).double().mean() < 0.99
    gain = x.m * x.k
    after = torch.diag_embed(x.m) - x.beta[..., None, None] * gain[..., :, None] * gain[..., None, :]
    kept = (2 * x.g[:, 1:]).exp()[..., None, None]
    least = torch.linalg.eigvalsh(torch.diag_embed(x.m[:, 1:]) - kept * after[:, :-1])[..., 0]
    assert 0.74 < (least >= 0).double().mean() < 0.77


def test_nearest_designs():
    """Gated DeltaNet, M = 1, is 13% off; our diagonal covariance 32% (discount) and 45% (log-linear mixing).

    The bounded M stays near 1, where a Kalman filter's variance falls with everything written.
    """
    x = Preconditioned(0)
    args, noise = (scaled(x.q), x.k, x.v), noise_of(x.beta)
    discount = DesignModel(name="discount", transition=Decay(), process_noise=Discount(), covariance="diagonal")
    mixing = DesignModel(name="mixing", process_noise=LogLinearMixing(), covariance="diagonal")
    plain = ZOO["gated_deltanet"].filter(*args, log_decay=x.g, obs_noise=noise).o
    discounted = discount.filter(*args, log_decay=x.g, log_discount=x.g, obs_noise=noise).o
    mixed = mixing.filter(*args, log_discount=x.g, obs_noise=noise).o
    found = [off(o, x.o) for o in (plain, discounted, mixed)]
    assert found == pytest.approx([0.13, 0.32, 0.45], rel=0.05)

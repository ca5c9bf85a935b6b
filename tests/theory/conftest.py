"""What the predictions are held against: the real filter, in float64, fed unit impulses.

Recall is linear in the values. Writing the T columns of the identity instead of values therefore returns
the weight of every write in every recall, and from weights the expectation over values and their
noise follows exactly, without sampling.
"""

import pytest
import torch

from bayesmem.ops import Assumptions, PriorMixing, bayesian_filter


def filtered(design, q, k, v, *, obs_noise=None, beta=None, retention=None, decay=None, prior_var=1.0, outputs=()):
    """Run one design of the theory: ``bayesian``, ``delta_rule`` or ``linear_attention``."""
    steps = (*k.shape[:2], 1)

    def gate(x):
        return None if x is None else torch.full(steps, x, dtype=torch.float64)

    def log_gate(x):
        return None if x is None else gate(x).log()

    if design == "linear_attention":
        assumptions, noise = Assumptions(write="latent_input"), None
    elif design == "delta_rule":  # the delta rule's step is that of a reset covariance
        assumptions = Assumptions(covariance="reset", prior_var=prior_var)
        noise = gate(prior_var * (1 - beta) / beta)
    else:  # retention of the covariance; none is the static memory
        mixing = PriorMixing(log_gate(1.0 if retention is None else retention))
        assumptions, noise = (
            Assumptions(process_noise=mixing, prior_var=prior_var, obs_noise_floor=0.0),
            gate(obs_noise),
        )
    return bayesian_filter(q, k, v, log_gate(decay), noise, assumptions, outputs=outputs)


@pytest.fixture
def run():
    return filtered


@pytest.fixture
def recall_weights():
    """Weight of write s in the recall after write t, ``[B, t, s]``."""

    def weights(design, q, k, **settings):
        rows, length = k.shape[:2]
        impulses = torch.eye(length, dtype=torch.float64)[None, :, None].expand(rows, -1, -1, -1)
        return filtered(design, q, k, impulses, **settings).o[:, :, 0]

    return weights


@pytest.fixture
def random_keys():
    def keys(rows, length, key_dim, seed):
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(rows, length, 1, key_dim, generator=generator, dtype=torch.float64)
        return torch.nn.functional.normalize(drawn, dim=-1)

    return keys

"""How a difference between two covariances goes through the same tokens, and how soon it is forgotten (math.md 5.5)."""

import math

import torch
from torch.nn.functional import normalize

from bayesmem.ops.step import AffineNoise, predict, update
from bayesmem.types import Belief

KEY_DIM, TOKENS = 16, 200


def test_what_is_forgotten_of_a_difference():
    source = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64)

    keys = normalize(normal(TOKENS, 1, 1, KEY_DIM), dim=-1)
    forgotten, noise, spread = 0.02, 0.02, 0.5
    model = AffineNoise(torch.full((1, 1, 1), -forgotten / 2).double(), torch.full((1, 1, 1), noise).double())
    eye, root = torch.eye(KEY_DIM, dtype=torch.float64), normal(1, 1, KEY_DIM, KEY_DIM)
    values = torch.zeros(1, 1, 1, dtype=torch.float64)
    covs = [0.3 * eye.expand(1, 1, -1, -1), root @ root.mT / KEY_DIM]
    first = carried = covs[0] - covs[1]
    for k in keys:
        gains, afters = [], []
        for cov in covs:
            given = predict(Belief(values.expand(1, 1, KEY_DIM, 1), cov), torch.zeros(1, 1, 1).double(), model)
            written = update(given, k, values, torch.full((1, 1), spread).double())
            gains.append(written.gain)
            afters.append(written.belief.cov)
        covs = afters
        kept = [math.exp(-forgotten / 2) * (eye - g[..., :, None] * k[..., None, :]) for g in gains]
        carried = kept[0] @ carried @ kept[1].mT
    torch.testing.assert_close(covs[0] - covs[1], carried, rtol=0, atol=1e-12)
    assert carried.norm() > 1e-7  # not yet rounding

    p = 0.3  # the steady state of the average over directions, and the slope there
    for _ in range(2000):
        p = math.exp(-forgotten) * p + noise - p * p / (p + spread) / KEY_DIM
    rate = forgotten + (1 - (spread / (p + spread)) ** 2) / KEY_DIM
    known = covs[0].diagonal(dim1=-2, dim2=-1).mean().item()
    assert abs(known / p - 1) < 0.4  # chance lets some directions wait
    seen = -math.log((carried.norm() / first.norm()).item()) / TOKENS
    assert 0.9 < seen / rate < 1.5  # at first, from far apart, sooner

"""How many tokens forget a guess of the covariance, against the rate of docs/math.md 5.5. On a CPU, in float32.

    python benchmarks/forgetting.py FILE

Two covariances go through the same tokens: one of a long history, one from the steady state on average. For every
kind of memory (unit keys in all directions, prior mixing) and seed: after how many tokens no entry of them differs by
more than 2^-20 of the root of its diagonal entries' product, how many e-folds of the rate those are, and how near the
two come at last. Rows go to FILE, one record a line.
"""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bayesmem.report.records import Records

AGREE, BEFORE = 2.0**-20, 1500
SEEDS = range(3)


@dataclass(frozen=True, slots=True)
class Memory:
    """Sizes and gates: log retention uniform from minus ``forgetting`` to 0, noise uniform between two bounds."""

    K: int
    forgetting: float
    least_noise: float
    most_noise: float
    tokens: int


MEMORIES = (
    Memory(128, 0.01, 0.1, 1.1, 1200),
    Memory(64, 0.01, 0.1, 1.1, 1000),
    Memory(128, 0.05, 0.1, 1.1, 600),
    Memory(128, 0.001, 0.1, 1.1, 2500),
    Memory(128, 0.01, 0.01, 0.05, 1000),
    Memory(64, 0.1, 0.5, 1.0, 400),
)


def after(cov: Tensor, k: Tensor, kept: Tensor, noise: Tensor, spread: Tensor) -> Tensor:
    """The covariance after one token."""
    cov = kept * cov + noise * torch.eye(len(k))
    reached = cov @ k
    return cov - reached[:, None] * (reached / (k @ reached + spread))


def steady(memory: Memory, forgotten: float, noise: float, spread: Tensor) -> tuple[float, float]:
    """The variance of a direction on average, and the rate at which a difference is forgotten there."""
    p = noise / (forgotten + 1 / memory.K)
    for _ in range(100):
        p = (p * noise / (forgotten + (p / (p + spread)).mean().item() / memory.K)) ** 0.5
    return p, forgotten + (1 - (spread / (p + spread)).square()).mean().item() / memory.K


def forgotten(memory: Memory, seed: int) -> dict[str, float | int | None]:
    """What is seen of one memory."""
    source, count = torch.Generator().manual_seed(seed), BEFORE + memory.tokens
    keys = normalize(torch.randn(count, memory.K, generator=source), dim=-1)
    log_retention = -memory.forgetting * torch.rand(count, generator=source)
    spread = memory.least_noise + (memory.most_noise - memory.least_noise) * torch.rand(count, generator=source)
    kept, noise = (2 * log_retention).exp(), -torch.expm1(2 * log_retention)
    p, rate = steady(memory, (-2 * log_retention).mean().item(), noise.mean().item(), spread)
    known, guess, tokens, apart = torch.eye(memory.K), p * torch.eye(memory.K), None, 0.0
    for now in range(count):
        gates = (keys[now], kept[now], noise[now], spread[now])
        known = after(known, *gates)
        if now < BEFORE:
            continue
        guess = after(guess, *gates)
        if now % 4 == 3:
            root = known.diagonal().sqrt()
            apart = ((known - guess).abs() / (root[:, None] * root)).max().item()
            if tokens is None and apart < AGREE:
                tokens = now - BEFORE + 1
    return {"tokens": tokens, "e_folds": tokens and round(tokens * rate, 2), "rate": rate, "apart_at_last": apart}


def main() -> None:
    """Every memory and seed."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python benchmarks/forgetting.py FILE")
    records = Records(Path(sys.argv[1]))
    for memory in MEMORIES:
        for seed in SEEDS:
            figures = forgotten(memory, seed)
            records.add("forgetting", "guess", asdict(memory) | {"seed": seed}, figures)
            print(memory, seed, figures, flush=True)


if __name__ == "__main__":
    main()

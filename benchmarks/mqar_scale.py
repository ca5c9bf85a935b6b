"""A check at scale: one model on MQAR with 8192 tokens and up to 64 trained pairs, asked for up to 256.

Not the study of MQAR (one seed, one learning rate): it shows that the layer as shipped trains at
the size of docs/math.md's claims. A GPU takes minutes: ``python benchmarks/mqar_scale.py --mixer bayes``.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import torch

from bayesmem.experiments.common import Rows, build, sizes
from bayesmem.report.records import Records
from bayesmem.tasks import mqar
from bayesmem.train import TrainConfig, train

MIXERS = {
    "bayes": {"head_dim": 64, "design": "bayesian"},
    "bayes, no decay": {"head_dim": 64, "design": "bayesian_prior_mixing"},
    "bayes, static": {"head_dim": 64, "design": "bayesian_static"},
    "delta, K=V=96": {"head_dim": 96, "design": "deltanet"},
    "gated delta, K=V=96": {"head_dim": 96, "design": "gated_deltanet"},
}
TRAINED = ((64, 4), (128, 8), (256, 16), (256, 32), (256, 64))
TESTED = ((256, 64), (512, 64), (512, 128), (1024, 128), (1024, 256))
VOCAB, WIDTH = 8192, 64


def rows_of(segments: tuple[tuple[int, int], ...], count: int, seed: int) -> Rows:
    """All segments, shorter rows filled up at the end with the filler, which asks nothing."""
    longest = max(length for length, _ in segments)
    inputs, targets = [], []
    for i, (length, pairs) in enumerate(segments):
        batch = mqar.make(mqar.MQARConfig(VOCAB, length, pairs, count), seed + i)
        width = ((0, 0), (0, longest - length))
        inputs.append(np.pad(batch.inputs, width))
        targets.append(np.pad(batch.targets, width, constant_values=mqar.IGNORED))
    return Rows(np.concatenate(inputs), np.concatenate(targets))


@torch.no_grad()
def accuracy(model: torch.nn.Module, rows: Rows, device: torch.device, size: int = 32) -> float:
    """Share of queries answered rightly."""
    right = asked = 0
    for start in range(0, len(rows), size):
        inputs, targets = (x[start : start + size].to(device) for x in (rows.inputs, rows.targets))
        where = targets != mqar.IGNORED
        right += (model(inputs, use_cache=False).logits.argmax(-1) == targets)[where].sum().item()
        asked += where.sum().item()
    return right / asked


def main() -> None:
    """Train, test, record, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mixer", choices=MIXERS, required=True)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/mqar_scale"))
    options = parser.parse_args()
    config = TrainConfig(
        steps=options.steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        save_every=500,
        log_every=100,
        seed=options.seed,
    )
    mixer = {"num_heads": 1} | MIXERS[options.mixer]
    model = build(options.seed, vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=0, mixer=mixer)
    folder = options.out / options.mixer.replace(", ", "-").replace(" ", "-").replace("=", "")
    result = train(model, rows_of(TRAINED, options.rows, options.seed), config, folder, options.mixer)
    model.eval()
    device = next(model.parameters()).device
    scores = [[*s, accuracy(model, rows_of((s,), 100, 10_000 + i), device)] for i, s in enumerate(TESTED)]
    figures = {"accuracy": scores, "losses": result.losses[::5], "seconds": result.seconds, **sizes(model)}
    settings = dataclasses.asdict(config) | {"rows": options.rows, "mixer": mixer, "hidden_size": WIDTH}
    Records(options.out / "records.jsonl").add("mqar_scale", options.mixer, settings, figures)
    print(options.mixer, f"{result.seconds:.0f} s", [(n, round(a, 3)) for _, n, a in scores], flush=True)


if __name__ == "__main__":
    main()

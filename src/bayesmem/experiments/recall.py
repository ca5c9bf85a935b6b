"""Recall: layers of equal state learn MQAR, and are asked for more pairs than they trained on."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bayesmem.experiments.common import Rows, build, matched_mixers, sizes
from bayesmem.models import BayesMemForCausalLM
from bayesmem.report import BAYESIAN
from bayesmem.report.records import records_in
from bayesmem.tasks import mqar
from bayesmem.train import TrainConfig, train

EXPERIMENT = "recall"
DECILES = 10


@dataclass(frozen=True, slots=True)
class RecallConfig:
    """Settings of the recall experiment; the defaults take half a minute a model on two cores.

    Attributes:
        vocab_size: tokens of the MQAR data.
        hidden_size: model width.
        num_layers: blocks, each a mixer without MLP, as in Zoology's comparison.
        head_dim: K = V of the Bayesian Layer's one head; the others are matched to its state.
        trained: (length, pairs) segments to train on.
        tested: segments to test on, in and beyond the trained range.
        rows: training rows a segment.
        test_rows: test rows a segment.
        train: how to train.
    """

    vocab_size: int = 64
    hidden_size: int = 64
    num_layers: int = 2
    head_dim: int = 12
    trained: tuple[tuple[int, int], ...] = ((32, 2), (32, 4), (32, 8))
    tested: tuple[tuple[int, int], ...] = ((32, 4), (32, 8), (64, 10), (64, 12), (64, 15))
    rows: int = 8000
    test_rows: int = 200
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=1200, batch_size=64, learning_rate=3e-3))

    def segment(self, length: int, pairs: int, rows: int) -> mqar.MQARConfig:
        """The data of one segment."""
        return mqar.MQARConfig(self.vocab_size, length, pairs, rows)

    def __post_init__(self) -> None:
        for length, pairs in (*self.trained, *self.tested):
            mqar.with_strangers(self.segment(length, pairs, 1), 0)  # refuses what cannot be made, before training
        if len({length for length, _ in self.trained}) != 1:
            raise ValueError(f"trained segments {self.trained} differ in length; batches need one length.")


def run(config: RecallConfig, out: Path) -> None:
    """Train and test all models; finished parts are taken from the records in ``out``."""
    records = records_in(out)
    settings = asdict(config)
    for name, mixer in matched_mixers(1, config.head_dim).items():
        if records.find(EXPERIMENT, name, settings):
            continue
        model = build(
            config.train.seed,
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            intermediate_size=0,
            mixer=mixer,
        )
        data = [mqar.make(config.segment(*s, config.rows), config.train.seed + i) for i, s in enumerate(config.trained)]
        rows = Rows(np.concatenate([b.inputs for b in data]), np.concatenate([b.targets for b in data]))
        folder = out / "checkpoints" / f"recall-{name.replace(' ', '-').lower()}"
        result = train(model, rows, config.train, folder, f"recall, {name}")
        figures = {"losses": result.losses, "seconds": round(result.seconds, 1), **sizes(model)}
        figures |= _test(model, config, certain=name == BAYESIAN)
        records.add(EXPERIMENT, name, settings, figures)


def _test(model: BayesMemForCausalLM, config: RecallConfig, certain: bool) -> dict[str, Any]:
    """Accuracy a segment and, of the Bayesian Layer, what its predictive variance tells."""
    seed = config.train.seed + 10_000
    answers = {}
    for i, (length, pairs) in enumerate(config.tested):
        batch = mqar.make(config.segment(length, pairs, config.test_rows), seed + i)
        predicted, variance = _asked(model, batch.inputs, batch.targets)
        answers[length, pairs] = predicted == batch.targets[batch.targets != mqar.IGNORED], variance
    figures: dict[str, Any] = {"accuracy": [[*segment, float(right.mean())] for segment, (right, _) in answers.items()]}
    if not certain:
        return figures
    # The layer to read is chosen on rows of their own, and reported on others.
    strange = {segment: _strangers(model, config, segment, seed + 500) for segment in config.trained}
    kind, variance = (np.concatenate(parts) for parts in zip(*strange.values(), strict=True))
    layer = int(np.argmax([auroc(column, kind == 1) for column in variance.T]))
    figures["variance_layer"] = layer
    figures["stranger_auroc"] = []
    for segment in config.tested:
        kind, variance = _strangers(model, config, segment, seed + 1000)
        figures["stranger_auroc"].append([*segment, auroc(variance[:, layer], kind == 1)])
    trained = max(pairs for _, pairs in config.trained)
    beyond = [answer for (_, pairs), answer in answers.items() if pairs > trained] or list(answers.values())
    right, variance = (np.concatenate(parts) for parts in zip(*beyond, strict=True))
    order = np.argsort(variance[:, layer], kind="stable")
    figures["error_auroc"] = auroc(variance[:, layer], ~right)
    figures["by_variance"] = [
        [float(variance[part, layer].mean()), float(right[part].mean()), len(part)]
        for part in np.array_split(order, DECILES)
    ]
    return figures


def _strangers(
    model: BayesMemForCausalLM, config: RecallConfig, segment: tuple[int, int], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """For every query 1 if its key was never shown, and each layer's predictive variance there."""
    inputs, kind = mqar.with_strangers(config.segment(*segment, config.test_rows), seed)
    return kind[kind != mqar.IGNORED], _asked(model, inputs, kind)[1]


@torch.no_grad()
def _asked(
    model: BayesMemForCausalLM, inputs: np.ndarray, targets: np.ndarray, rows: int = 50
) -> tuple[np.ndarray, np.ndarray]:
    """At every position that is asked: the predicted token ``[Q]`` and the predictive variances ``[Q, layers]``."""
    model.eval()
    predicted, variance = [], []
    for start in range(0, len(inputs), rows):
        part = slice(start, start + rows)
        out = model(torch.from_numpy(inputs[part]), output_uncertainty=True, use_cache=False)
        asked = torch.from_numpy(targets[part] != mqar.IGNORED)
        predicted.append(out.logits.argmax(-1)[asked])
        assert out.predictive_var is not None
        variance.append(torch.stack([layer.mean(-1)[asked] for layer in out.predictive_var], -1))
    return torch.cat(predicted).numpy(), torch.cat(variance).numpy()


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive scores above a negative, ties counted half; 0.5 without both."""
    if positive.all() or not positive.any():
        return 0.5
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    hits = positive.sum()
    return float((ranks[positive].sum() - hits * (hits + 1) / 2) / (hits * (~positive).sum()))

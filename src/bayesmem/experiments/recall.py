"""Recall: two layers of equal state learn MQAR, and are asked for more pairs than they trained on."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bayesmem.experiments.common import BAYESIAN, Rows, build, matched_mixers, records_in, sizes
from bayesmem.models import BayesMemForCausalLM
from bayesmem.tasks import mqar
from bayesmem.train import TrainConfig, train

EXPERIMENT = "recall"
DECILES = 10


@dataclass(frozen=True, slots=True)
class RecallConfig:
    """Settings of the recall experiment; the defaults take about a minute a model on two cores.

    Attributes:
        vocab_size: tokens of the MQAR data.
        hidden_size: model width.
        num_layers: blocks, each a mixer without MLP, as in Zoology's comparison.
        head_dim: K = V of the Bayesian Layer's one head; Gated DeltaNet's is matched to its state.
        trained: (length, pairs) segments to train on.
        tested: segments to test on, in and beyond the trained range.
        rows: training rows a segment.
        test_rows: test rows a segment.
        train: how to train.
    """

    vocab_size: int = 256
    hidden_size: int = 64
    num_layers: int = 2
    head_dim: int = 24
    trained: tuple[tuple[int, int], ...] = ((64, 4), (64, 8), (64, 16))
    tested: tuple[tuple[int, int], ...] = ((64, 4), (64, 8), (64, 16), (128, 24), (128, 32), (256, 48))
    rows: int = 8000
    test_rows: int = 200
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=900, batch_size=64, learning_rate=6e-3))

    def segment(self, length: int, pairs: int, rows: int) -> mqar.MQARConfig:
        """The data of one segment."""
        return mqar.MQARConfig(self.vocab_size, length, pairs, rows)

    def __post_init__(self) -> None:
        for length, pairs in (*self.trained, *self.tested):
            self.segment(length, pairs, 1)  # refuses what cannot be made, before anything trains
        if len({length for length, _ in self.trained}) != 1:
            raise ValueError(f"trained segments {self.trained} differ in length; batches need one length.")


def run(config: RecallConfig, out: Path) -> None:
    """Train and test both models; finished parts are taken from the records in ``out``."""
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
    """Accuracy a segment and, of the Bayesian Layer, how it goes with the predictive variance."""
    seed = config.train.seed + 10_000
    answers = {
        (length, pairs): _answers(model, mqar.make(config.segment(length, pairs, config.test_rows), seed + i))
        for i, (length, pairs) in enumerate(config.tested)
    }
    figures: dict[str, Any] = {"accuracy": [[*segment, float(right.mean())] for segment, (right, _) in answers.items()]}
    if not certain:
        return figures
    # The layer that recalls is chosen on rows of their own, and reported on the test rows.
    beyond = [s for s in config.tested if s[1] > max(pairs for _, pairs in config.trained)] or list(config.tested)
    spare = [
        _answers(model, mqar.make(config.segment(*s, config.test_rows), seed + 500 + i)) for i, s in enumerate(beyond)
    ]
    right, variance = (np.concatenate(parts) for parts in zip(*spare, strict=True))
    layer = int(np.argmax([auroc(variance[:, i], ~right) for i in range(variance.shape[1])]))
    right, variance = (np.concatenate(parts) for parts in zip(*(answers[s] for s in beyond), strict=True))
    order = np.argsort(variance[:, layer], kind="stable")
    figures["by_variance"] = [
        [float(variance[part, layer].mean()), float(right[part].mean()), len(part)]
        for part in np.array_split(order, DECILES)
    ]
    figures["error_auroc"] = auroc(variance[:, layer], ~right)
    figures["variance_layer"] = layer
    return figures


@torch.no_grad()
def _answers(model: BayesMemForCausalLM, batch: mqar.Batch, rows: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """Whether each query was answered rightly, and each layer's predictive variance there."""
    model.eval()
    right, variance = [], []
    for start in range(0, len(batch.inputs), rows):
        inputs = torch.from_numpy(batch.inputs[start : start + rows])
        targets = torch.from_numpy(batch.targets[start : start + rows])
        out = model(inputs, output_uncertainty=True, use_cache=False)
        asked = targets != mqar.IGNORED
        right.append((out.logits.argmax(-1) == targets)[asked])
        assert out.predictive_var is not None
        variance.append(torch.stack([layer.mean(-1)[asked] for layer in out.predictive_var], -1))
    return torch.cat(right).numpy(), torch.cat(variance).numpy()


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive scores above a negative, ties counted half; 0.5 without both."""
    if positive.all() or not positive.any():
        return 0.5
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    hits = positive.sum()
    return float((ranks[positive].sum() - hits * (hits + 1) / 2) / (hits * (~positive).sum()))

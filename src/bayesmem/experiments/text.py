"""Real text: byte-level models of both mixers, held-out bits per byte, and where one was unsure."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from bayesmem.experiments.common import Rows, build, matched_mixers, sizes
from bayesmem.models import BayesMemForCausalLM
from bayesmem.report import BAYESIAN, GATED_DELTA
from bayesmem.report.records import records_in
from bayesmem.tasks import text
from bayesmem.train import TrainConfig, train

EXPERIMENT = "text"


@dataclass(frozen=True, slots=True)
class TextConfig:
    """Settings of the text experiment; the defaults take about a minute a model on two cores.

    Attributes:
        path: a text file; ``None`` takes the book the package carries.
        hidden_size: model width.
        num_layers: blocks, each a mixer and an MLP of twice the width.
        num_heads: heads a layer.
        head_dim: K = V of the Bayesian Layer; Gated DeltaNet's is matched to its state.
        length: bytes a training row.
        held_out_bytes: bytes the models are measured on, from the end of the text.
        passage: bytes of the passage that is shown.
        train: how to train.
    """

    path: str | None = None
    hidden_size: int = 96
    num_layers: int = 2
    num_heads: int = 2
    head_dim: int = 32
    length: int = 256
    held_out_bytes: int = 16_384
    passage: int = 600
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=300, batch_size=16, learning_rate=4e-3))

    def __post_init__(self) -> None:
        for name in ("length", "held_out_bytes", "passage"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if self.passage > self.held_out_bytes:
            raise ValueError(f"passage {self.passage} is longer than held_out_bytes {self.held_out_bytes}.")


def run(config: TextConfig, out: Path) -> None:
    """Train and measure both models; finished parts are taken from the records in ``out``."""
    data = text.load(Path(config.path) if config.path else None)
    if len(data.held_out) <= config.length:
        raise ValueError(f"{data.name} leaves {len(data.held_out)} held-out bytes; length {config.length} needs more.")
    records, settings = records_in(out), asdict(config)
    for name in (GATED_DELTA, BAYESIAN):
        if records.find(EXPERIMENT, name, settings):
            continue
        model = build(
            config.train.seed,
            vocab_size=256,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            intermediate_size=2 * config.hidden_size,
            mixer=matched_mixers(config.num_heads, config.head_dim)[name],
        )
        count = config.train.steps * config.train.batch_size
        rows = text.windows(data.train, config.length, count, config.train.seed)
        folder = out / "checkpoints" / f"text-{name.replace(' ', '-').lower()}"
        dataset = Rows(rows[:, :-1].copy(), rows[:, 1:].copy())
        result = train(model, dataset, config.train, folder, f"text, {name}")
        held_out = data.held_out[: config.held_out_bytes + 1]
        figures = {"text": data.name, "losses": result.losses, "seconds": round(result.seconds, 1), **sizes(model)}
        figures |= _measure(model, held_out, config, certain=name == BAYESIAN)
        records.add(EXPERIMENT, name, settings, figures)


@torch.no_grad()
def _measure(model: BayesMemForCausalLM, held_out: np.ndarray, config: TextConfig, certain: bool) -> dict[str, Any]:
    """Bits per byte in order over the held-out text, the memory carried from block to block."""
    model.eval()
    cache, losses, variances = None, [], []
    for block in text.blocks(held_out, config.length):
        tokens = torch.from_numpy(block.astype(np.int64))[None]
        out = model(tokens[:, :-1], past_key_values=cache, use_cache=True, output_uncertainty=True)
        cache = out.past_key_values
        losses.append(F.cross_entropy(out.logits[0], tokens[0, 1:], reduction="none"))
        assert out.predictive_var is not None
        variances.append(torch.stack([layer[0] for layer in out.predictive_var]).mean((0, 2)))
    bits = torch.cat(losses).numpy() / math.log(2)
    figures: dict[str, Any] = {"bits_per_byte": float(bits.mean()), "held_out_bytes": len(bits)}
    if certain:
        variance = torch.cat(variances).numpy()
        shown = slice(0, config.passage)
        figures |= {
            "passage": held_out[: config.passage].tobytes().decode("utf-8", errors="replace"),
            "passage_bytes": held_out[shown].tolist(),
            "passage_variance": [round(float(x), 5) for x in variance[shown]],
            "passage_bits": [round(float(x), 3) for x in bits[shown]],
            "variance_quantiles": [float(x) for x in np.quantile(variance, [0.05, 0.5, 0.95])],
            "bits_by_variance": [
                [float(variance[part].mean()), float(bits[part].mean()), len(part)]
                for part in np.array_split(np.argsort(variance, kind="stable"), 10)
            ],
        }
    return figures

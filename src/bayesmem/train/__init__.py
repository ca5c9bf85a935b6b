"""The one way to train, a thin layer on transformers' Trainer."""

from bayesmem.train.arguments import arguments
from bayesmem.train.config import RunConfig, TrainConfig
from bayesmem.train.distill import DistillTrainer, choose_trained
from bayesmem.train.distill_config import DistillOptions, Mix
from bayesmem.train.language import LanguageResult, LanguageTrainer, Streams, train_language
from bayesmem.train.rows import TokenRows
from bayesmem.train.trainer import Diverged, Interrupted, TrainResult, train

__all__ = [
    "DistillOptions",
    "DistillTrainer",
    "Diverged",
    "Interrupted",
    "LanguageResult",
    "LanguageTrainer",
    "Mix",
    "RunConfig",
    "Streams",
    "TokenRows",
    "TrainConfig",
    "TrainResult",
    "arguments",
    "choose_trained",
    "train",
    "train_language",
]

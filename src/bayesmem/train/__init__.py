"""The one way to train, a thin layer on transformers' Trainer."""

from bayesmem.train.arguments import arguments
from bayesmem.train.config import RunConfig, TrainConfig
from bayesmem.train.language import LanguageResult, Streams, train_language
from bayesmem.train.rows import TokenRows
from bayesmem.train.trainer import Diverged, Interrupted, TrainResult, train

__all__ = [
    "Diverged",
    "Interrupted",
    "LanguageResult",
    "RunConfig",
    "Streams",
    "TokenRows",
    "TrainConfig",
    "TrainResult",
    "arguments",
    "train",
    "train_language",
]

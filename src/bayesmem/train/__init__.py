"""The one way to train, a thin layer on transformers' Trainer."""

from bayesmem.train.trainer import Interrupted, TrainConfig, TrainResult, train

__all__ = ["Interrupted", "TrainConfig", "TrainResult", "train"]

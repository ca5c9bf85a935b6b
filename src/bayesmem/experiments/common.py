"""What the learned experiments share: the pair of models, and a dataset of token rows."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from bayesmem.models import BayesMemConfig, BayesMemForCausalLM
from bayesmem.report import BAYESIAN, GATED_DELTA, WIDE_VALUES


def matched_mixers(num_heads: int, head_dim: int) -> dict[str, dict[str, Any]]:
    """The mixers at the same state size, the Bayesian Layer's covariance counted.

    What Gated DeltaNet saves there goes either into square heads, keys wider by the root of two
    (rounded up, so that it never has the smaller state), or into values twice as wide, as its
    authors shape it.
    """
    wider = math.ceil(math.sqrt(2) * head_dim)
    reset = {"num_heads": num_heads, "design": "gated_deltanet"}
    return {
        GATED_DELTA: reset | {"head_dim": wider},
        WIDE_VALUES: reset | {"head_dim": head_dim, "value_dim": 2 * head_dim},
        BAYESIAN: {"num_heads": num_heads, "head_dim": head_dim, "design": "bayesian"},
    }


def build(seed: int, **config: Any) -> BayesMemForCausalLM:
    """A freshly initialised model; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BayesMemForCausalLM(BayesMemConfig(**config))


def sizes(model: BayesMemForCausalLM) -> dict[str, int]:
    """Parameters and state numbers of a model, for its record."""
    return {
        "parameters": model.num_parameters(),
        "state_per_layer": model.config.layer_config().state_size,
    }


class Rows(Dataset):
    """Rows of tokens with the targets that stand at their positions.

    Args:
        inputs: ``[N, T]``.
        targets: ``[N, T]``, -100 where nothing is asked.
    """

    def __init__(self, inputs: np.ndarray, targets: np.ndarray):
        self.inputs, self.targets = torch.from_numpy(inputs).long(), torch.from_numpy(targets).long()

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.inputs[index], "shift_labels": self.targets[index]}

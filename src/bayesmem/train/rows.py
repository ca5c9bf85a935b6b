"""Rows of equal length from one long stream of tokens, in an order that depends on nothing but the seed."""

import numpy as np
import torch
from jaxtyping import Integer
from numpy import ndarray
from torch import Tensor
from torch.utils.data import Dataset

IGNORED = -100


class TokenRows(Dataset):
    """Row ``i`` of a training, whatever rank or worker asks for it, without a look at the rows before.

    A pass over the stream cuts it into rows at an offset of its own and shuffles them; pass follows pass. Without a
    seed there is one pass in order, its last row filled up with what is not predicted: for evaluation.

    Args:
        tokens: the stream, mapped or in memory.
        length: T.
        count: rows to serve; more than a pass has are taken from the next. In order, a whole number of passes has no
            sense: rows beyond the stream hold nothing to predict.
        seed: of the passes' offsets and orders; ``None`` for evaluation.
        starts: where documents begin; given, documents in a row are told apart by positions that start again, and
            nothing predicts a document's first token.

    Raises:
        ValueError: fewer tokens than a row and its last target take.
    """

    def __init__(
        self,
        tokens: Integer[ndarray, " S"],
        length: int,
        count: int | None = None,
        *,
        seed: int | None = None,
        starts: Integer[ndarray, " N"] | None = None,
    ):
        if len(tokens) < (length + 1 if seed is not None else 2):
            raise ValueError(
                f"the text has {len(tokens)} tokens; a row of {length} and its last target take {length + 1}. Give "
                "more text, or a smaller length."
            )
        self.tokens, self.length, self.seed, self.starts = tokens, length, seed, starts
        whole, rest = divmod(len(tokens) - 1, length)
        self.rest = rest
        self.rows_a_pass = whole + (rest > 0 and seed is None)
        self.count = self.rows_a_pass if count is None else count
        self._pass: tuple[int, int, ndarray] | None = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        begin = self._begin(index)
        window = np.asarray(self.tokens[begin : begin + self.length + 1]).astype(np.int64)
        inputs, targets = np.zeros(self.length, np.int64), np.full(self.length, IGNORED, np.int64)
        inputs[: min(len(window), self.length)] = window[: self.length]
        targets[: max(len(window) - 1, 0)] = window[1:]
        row = {"input_ids": inputs}
        if self.starts is not None:
            low, high = np.searchsorted(self.starts, (begin + 1, begin + self.length + 1))
            inner = self.starts[low:high] - begin  # documents that begin after the row's first token
            targets[inner - 1] = IGNORED
            opened = np.zeros(self.length, np.int64)
            opened[inner[inner < self.length]] = inner[inner < self.length]
            row["position_ids"] = np.arange(self.length) - np.maximum.accumulate(opened)
        row |= {"labels": targets, "shift_labels": targets}  # the same: transformers counts by the one's name
        return {name: torch.from_numpy(values) for name, values in row.items()}

    def _begin(self, index: int) -> int:
        """Where in the stream a row begins; at its end if it is beyond."""
        if self.seed is None:
            return min(index * self.length, len(self.tokens))
        number, place = divmod(index, self.rows_a_pass)
        if self._pass is None or self._pass[0] != number:
            random = np.random.default_rng([self.seed, number])
            self._pass = number, int(random.integers(self.rest + 1)), random.permutation(self.rows_a_pass)
        _, offset, order = self._pass
        return offset + int(order[place]) * self.length

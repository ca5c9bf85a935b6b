"""Arguments that are accepted, to be spoilt one at a time, and how a refusal must read."""

from collections.abc import Callable
from dataclasses import fields as fields_of

import pytest
import torch
from torch import Tensor

from bayesmem.ops import bayesian_filter
from bayesmem.types import FilterOutput

B, T, G, H, K, V = 2, 4, 2, 4, 3, 5


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape)


def good() -> dict[str, object]:
    """Arguments that are accepted; every test below spoils one of them."""
    return {
        "q": torch.ones(B, T, G, K),
        "k": torch.ones(B, T, G, K),
        "v": torch.ones(B, T, H, V),
        "log_decay": zeros(B, T, H),
        "obs_noise": torch.ones(B, T, H),
    }


def run(**spoilt: object) -> FilterOutput:
    return bayesian_filter(**{**good(), **spoilt})


def unchecked(kind: type, **values: object):
    """A frozen dataclass past the type checks of the tests, which users do not run."""
    made = object.__new__(kind)
    for field in fields_of(kind):
        object.__setattr__(made, field.name, values[field.name])
    return made


def refused(call: Callable[[], object], *words: str) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"

"""How far apart two models' predictions are: what a conversion that is not exact reports."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Movement:
    """Differences of next-token predictions over some tokens.

    Attributes:
        tokens: how many predictions were compared.
        max_logit: largest absolute difference of two logits.
        mean_logit: mean absolute difference.
        kl: mean ``KL(before || after)``, in nats a token.
        same_choice: share of tokens whose most probable successor stays.
    """

    tokens: int
    max_logit: float
    mean_logit: float
    kl: float
    same_choice: float

    def __str__(self) -> str:
        return (
            f"over {self.tokens} tokens the logits moved by {self.mean_logit:.3g} on average and {self.max_logit:.3g} "
            f"at most, KL {self.kl:.3g} nats a token, {100 * self.same_choice:.1f}% of the first choices stay"
        )


def compare(before: Float[Tensor, "B T W"], after: Float[Tensor, "B T W"]) -> Movement:
    """Movement from one model's logits to another's; W is the vocabulary."""
    apart = (after - before).abs()
    log_p, log_q = before.double().log_softmax(-1), after.double().log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()
    same = (before.argmax(-1) == after.argmax(-1)).double().mean().item()
    return Movement(before.shape[:2].numel(), apart.max().item(), apart.mean().item(), kl, same)


def random_tokens(vocab_size: int, length: int, seed: int = 0) -> Int[Tensor, "1 T"]:
    """One row of uniformly random tokens."""
    return torch.randint(vocab_size, (1, length), generator=torch.Generator().manual_seed(seed))

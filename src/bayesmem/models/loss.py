"""Next-token cross-entropy in float32, piece by piece, so that no float32 logits of a whole batch exist."""

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

IGNORED = -100
PIECE = 2**26  # logits held at a time: 256 MiB of float32


def shifted(
    labels: Int[Tensor, "B T"], attention_mask: Shaped[Tensor, "B T"] | None, starts: Bool[Tensor, "B T"] | None
) -> Int[Tensor, "B T"]:
    """The token that follows each, where a token of its own sequence does; -100 elsewhere.

    Args:
        labels: tokens.
        attention_mask: 0 or False where a token is padding.
        starts: where packed sequences start.
    """
    targets = F.pad(labels, (0, 1), value=IGNORED)[:, 1:]
    if starts is not None:
        targets = targets.masked_fill(F.pad(starts, (0, 1))[:, 1:], IGNORED)
    if attention_mask is not None:
        real = attention_mask.bool()
        targets = targets.masked_fill(~(real & F.pad(real, (0, 1))[:, 1:]), IGNORED)
    return targets


def next_token_loss(
    hidden: Float[Tensor, "B T D"],
    head: nn.Module,
    targets: Int[Tensor, "B T"],
    vocab_size: int,
    num_items: Tensor | int | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy of ``head(hidden)`` in nats, without keeping logits.

    liger-kernel's fused form does it where that is installed, on CUDA, and the head is a plain linear
    layer; otherwise pieces of tokens are computed now and once more in the backward pass.

    Args:
        hidden: normed hidden states.
        head: to logits.
        targets: the token after each; -100 is ignored.
        vocab_size: logits a token.
        num_items: what the sum is divided by; default: the targets that count.
    """
    flat, wanted = hidden.flatten(0, 1), targets.flatten()
    fused = _liger() if flat.is_cuda and type(head) is nn.Linear and head.bias is None else None
    if fused is not None:
        weight = head.weight
        if torch.is_autocast_enabled("cuda"):
            kind = torch.get_autocast_dtype("cuda")
            flat, weight = flat.to(kind), weight.to(kind)
        total = fused(weight, flat, wanted)
    else:
        size = max(1, PIECE // vocab_size)
        pieces = list(zip(flat.split(size), wanted.split(size), strict=True))
        if len(pieces) == 1:
            total = _summed(head, *pieces[0])
        else:
            parts = [checkpoint(_summed, head, *piece, use_reentrant=False) for piece in pieces]
            total = torch.stack(parts).sum()
    return _shared(total, wanted, num_items)


def logits_loss(
    logits: Float[Tensor, "B T N"], targets: Int[Tensor, "B T"], num_items: Tensor | int | None = None
) -> Float[Tensor, ""]:
    """The same, of logits that exist; arguments as of ``next_token_loss``."""
    flat, wanted = logits.flatten(0, 1), targets.flatten()
    size = max(1, PIECE // flat.shape[-1])
    parts = [_entropy(x, y) for x, y in zip(flat.split(size), wanted.split(size), strict=True)]
    return _shared(torch.stack(parts).sum(), wanted, num_items)


def _summed(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    return _entropy(head(hidden), targets)


def _entropy(logits: Tensor, targets: Tensor) -> Tensor:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide, targets, ignore_index=IGNORED, reduction="sum")


def _shared(total: Tensor, targets: Tensor, num_items: Tensor | int | None) -> Tensor:
    count = (targets != IGNORED).sum().clamp(min=1) if num_items is None else num_items
    return total / (count.to(total.device) if isinstance(count, Tensor) else count)


def _liger() -> nn.Module | None:
    """The fused loss, summed over tokens, weight gradients in float32; ``None`` where it is not installed."""
    try:
        import liger_kernel.transformers.fused_linear_cross_entropy as liger  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return None
    return liger.LigerFusedLinearCrossEntropyLoss(ignore_index=IGNORED, reduction="sum", accum_dtype=torch.float32)

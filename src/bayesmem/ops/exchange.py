"""What the ranks of a context-parallel group tell each other, with gradients.

A rank holds one segment of every sequence. What a segment does to the state that enters it is a small *element*; all
ranks gather all elements, and each carries the start through those before its own. The backward pass sums every
rank's gradient of every element. Both are one collective (all-gather, all-reduce), so gloo and NCCL do alike.

Whether a collective runs must not depend on the rank, or the others wait for ever: the whole scan is one autograd node,
which rank 0, whose start depends on nobody, has as well.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

Step = Callable[[Tensor, Tensor], Tensor]


def place_in(group: dist.ProcessGroup | None) -> tuple[int, int]:
    """This process's rank in ``group`` (``None``: all processes) and the group's size.

    Raises:
        ValueError: no process group, or one that this process is not in.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise ValueError(
            "context parallelism needs a process group: start with torchrun and call "
            "torch.distributed.init_process_group() first."
        )
    rank = dist.get_rank(group)
    if rank < 0:
        raise ValueError(
            f"group does not hold this process (global rank {dist.get_rank()}); pass the group of its own sequence."
        )
    return rank, dist.get_world_size(group)


def carry(
    step: Step, element: Tensor, start: Tensor, group: dist.ProcessGroup | None, *, to_the_end: bool = False
) -> tuple[Tensor, Tensor]:
    """Carry a state through the segments of all ranks, in rank order.

    Every rank must call it, with an element of the same shape, and all or none of them for gradients.

    Args:
        step: ``(element, state) -> state``, differentiable, of tensors only.
        element: what this rank's segment does to a state.
        start: the state before the first rank's segment, the same on every rank. Its gradient on a rank is that
            rank's share: the sum over ranks is the whole.
        group: the ranks; ``None`` is all of them.
        to_the_end: whether the state after the last segment is asked for too.

    Returns:
        The state before this rank's segment, and that after the last one (where not asked for: the former again).
    """
    return _Carry.apply(step, group, to_the_end, element, start)


def _scan(step: Step, elements: Tensor, start: Tensor, rank: int, to_the_end: bool) -> tuple[Tensor, Tensor]:
    state = before = start.clone()
    for index, element in enumerate(elements if to_the_end else elements[:rank]):
        before = state if index == rank else before
        state = step(element, state)
    return (before if to_the_end else state), state.clone()


class _Carry(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, step: Step, group: dist.ProcessGroup | None, to_the_end: bool, element: Tensor, start: Tensor
    ) -> tuple[Tensor, Tensor]:
        elements = _gathered(element, group)
        ctx.step, ctx.group, ctx.to_the_end, ctx.rank = step, group, to_the_end, dist.get_rank(group)
        ctx.save_for_backward(elements, start)
        return _scan(step, elements, start, ctx.rank, to_the_end)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None, Tensor, Tensor]:
        leaves = [x.detach().requires_grad_() for x in ctx.saved_tensors]
        with torch.enable_grad():
            states = _scan(ctx.step, leaves[0], leaves[1], ctx.rank, ctx.to_the_end)
        d_elements, d_start = torch.autograd.grad(states, leaves, grads, allow_unused=True, materialize_grads=True)
        d_elements = d_elements.contiguous()
        dist.all_reduce(d_elements, group=ctx.group)
        return None, None, None, d_elements[ctx.rank], d_start


def _gathered(x: Tensor, group: dist.ProcessGroup | None) -> Shaped[Tensor, "W *axes"]:
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, x.contiguous(), group=group)
    return torch.stack(parts)


def exchange_tail(
    x: Tensor, size: int, group: dist.ProcessGroup | None, attention_mask: Tensor | None = None
) -> Float[Tensor, "B S E"]:
    """The last ``size`` inputs before this rank's own, as a causal convolution needs them; zeros before the first.

    Segments may be shorter than ``size``: it then reaches past the rank before.

    Args:
        x: this rank's segment ``[B, T, E]``; B, E and dtype are the same on every rank, T may differ.
        size: inputs wanted, S; 0 exchanges nothing.
        group: the ranks that share the sequence; ``None`` is all of them.
        attention_mask: ``[B, T]``, 0 where an input is padding, which is passed over.

    Returns:
        In x's dtype; differentiable, also towards the ranks whose inputs they are.

    Raises:
        ValueError: a negative size, shapes that do not fit, or no process group.
    """
    if x.ndim != 3:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected 3 axes [B, T, E], this rank's segment.")
    if size < 0:
        raise ValueError(f"size is {size}; expected the number of earlier inputs, 0 or more (taps - 1).")
    if attention_mask is not None and attention_mask.shape != x.shape[:2]:
        raise ValueError(f"attention_mask has shape {tuple(attention_mask.shape)}; expected {tuple(x.shape[:2])}.")
    _, ranks = place_in(group)
    start = x.new_zeros(x.shape[0], size, x.shape[2], dtype=torch.promote_types(x.dtype, torch.float32))
    if size and ranks > 1:
        own = pad(x.to(start.dtype), (0, 1), value=1.0)  # a channel of ones marks what is real
        if attention_mask is not None:
            real = attention_mask.bool()
            own = (own * real[..., None]).take_along_dim(real.int().sort(dim=1, stable=True).indices[..., None], 1)
        missing = max(size - x.shape[1], 0)
        start, _ = carry(_shifted, pad(own, (0, 0, missing, 0))[:, own.shape[1] + missing - size :], start, group)
    return start.to(x.dtype)


def _shifted(own: Float[Tensor, "B S F"], before: Float[Tensor, "B S E"]) -> Float[Tensor, "B S E"]:
    """The last S of what came before and a segment's own, whose real inputs, fewer than S perhaps, are at the end."""
    size = before.shape[1]
    index = torch.arange(size, device=before.device)
    count = own[..., -1].detach().sum(1).long()[:, None]
    kept = pad(before, (0, 0, 0, size)).take_along_dim((index + count)[..., None], 1)
    return torch.where((index >= size - count)[..., None], own[..., :-1], kept)


def slice_start(length: int, like: Tensor, group: dist.ProcessGroup | None) -> int:
    """Where this rank's slice begins in the whole sequence: the lengths of the slices before it.

    Args:
        length: tokens of this rank's slice.
        like: a tensor on the device whose collectives are used.
        group: the ranks that share the sequence; ``None`` is all of them.

    Raises:
        ValueError: no process group.
    """
    rank, _ = place_in(group)
    return sum(lengths[0] for lengths in agree(None, [length], like, group)[:rank])


def agree(refusal: ValueError | None, sizes: Sequence[int], like: Tensor, group: dist.ProcessGroup | None) -> list[Any]:
    """Every rank's sizes; or, where any rank has refused its part, a refusal on every rank, so that none waits.

    Args:
        refusal: why this rank cannot go on, if so.
        sizes: numbers that all ranks are to know.
        like: a tensor on the device whose collectives are used.
        group: the ranks.

    Raises:
        ValueError: this rank's own refusal, or that of another by rank.
    """
    own = torch.tensor([refusal is not None, *sizes], dtype=torch.int64, device=like.device)
    told: list[list[int]] = _gathered(own, group).tolist()
    if refusal is not None:
        raise refusal
    refused = [rank for rank, row in enumerate(told) if row[0]]
    if refused:
        raise ValueError(f"rank {refused[0]} of the context group refused its slice; its own error says why.")
    return [row[1:] for row in told]

"""The way through the blocks: what goes in, as they read it, and the one loop over them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from bayesmem.models.packing import Packing, find_packing


@dataclass(frozen=True, slots=True)
class Inputs:
    """Tokens as the blocks read them: the batch, or the one row (then B is 1) that packed sequences lie in.

    Attributes:
        x: the stream.
        mask: 0 where a token is padding; ``None`` where none is.
        cu_seqlens: offsets of sequences packed in one row.
        position_ids: positions for softmax attention.
        packing: how the batch lies in the row; ``None`` where it is as it came.
        real: the mask of the batch as it came, before it was packed.
    """

    x: Float[Tensor, "B T D"]
    mask: Shaped[Tensor, "B T"] | None = None
    cu_seqlens: Int[Tensor, "_"] | None = None
    position_ids: Int[Tensor, "_ T"] | None = None
    packing: Packing | None = None
    real: Shaped[Tensor, "_ _"] | None = None


class Walked(NamedTuple):
    """What came out of the blocks.

    Attributes:
        x: the stream after the last.
        streams: the stream before each, where asked for.
        known: of each, what ``block.KNOWN`` names.
    """

    x: Tensor
    streams: list[Tensor]
    known: list[list[Tensor | None]]


def lay_out(
    x: Float[Tensor, "B T D"],
    attention_mask: Shaped[Tensor, "B S"] | None,
    position_ids: Int[Tensor, "_ T"] | None,
    cu_seqlens: Int[Tensor, "_"] | None,
    seen: int,
    split: bool,
) -> Inputs:
    """Inputs of the blocks, packed sequences found and laid in one row.

    Args:
        x: embedded tokens.
        attention_mask: of these tokens, or of the past too.
        position_ids: positions; without a past, starts at 0 within a row tell of packed sequences.
        cu_seqlens: offsets of packed sequences.
        seen: tokens of the past.
        split: whether each rank holds a slice, so that ``cu_seqlens`` is of more than these tokens.

    Raises:
        ValueError: a mask or packing that does not fit the tokens.
    """
    batch, length = x.shape[:2]
    mask = _current(attention_mask, batch, length, seen)
    packing = None if split else find_packing(batch, length, cu_seqlens, None if seen else position_ids, mask)
    if packing is None:
        return Inputs(x, mask, cu_seqlens, position_ids, real=mask)
    placed = None if position_ids is None else packing.row(position_ids.expand(batch, length))
    return Inputs(packing.row(x), None, packing.cu_seqlens, placed, packing, mask)


def walk(
    blocks: Iterable[nn.Module],
    inputs: Inputs,
    layers: list[Any] | None = None,
    *,
    use_cache: bool = False,
    output_uncertainty: bool = False,
    output_hidden_states: bool = False,
    context_group: dist.ProcessGroup | None = None,
) -> Walked:
    """Take the stream through every block.

    Args:
        blocks: in order.
        inputs: what the first reads.
        layers: what each remembers; with ``use_cache`` it is updated in place, one by one, so that no block's old
            memory outlives its new one.
        use_cache: whether to remember these tokens.
        output_uncertainty: whether the blocks tell what they know of their errors.
        output_hidden_states: whether to keep the stream before each.
        context_group: ranks that share every sequence.
    """
    x, streams, known = inputs.x, [], []
    for index, block in enumerate(blocks):
        if output_hidden_states:
            streams.append(x)
        x, after, *knows = block(
            x,
            inputs.mask,
            None if layers is None else layers[index],
            inputs.cu_seqlens,
            inputs.position_ids,
            use_cache=use_cache,
            output_uncertainty=output_uncertainty,
            context_group=context_group,
        )
        known.append(knows)
        if layers is not None and use_cache:
            layers[index] = after
    return Walked(x, streams, known)


def _current(mask: Tensor | None, batch: int, length: int, seen: int) -> Tensor | None:
    """The mask of these tokens; ``None`` where it hides none of them."""
    if mask is None:
        return None
    if mask.shape not in ((batch, length), (batch, seen + length)):
        covers = f"[{batch}, {length}]" + (f" or, the past included, [{batch}, {seen + length}]" if seen else "")
        raise ValueError(f"attention_mask has shape {tuple(mask.shape)}; expected {covers}.")
    mask = mask[:, -length:]
    return mask if torch.compiler.is_compiling() or not bool(mask.all()) else None

"""Where memories take the place of softmax attention: their outputs begin at the size that the attention's have."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bayesmem.models import BayesMemForCausalLM
from bayesmem.models.attention import SoftmaxAttention


def replaced(student: BayesMemForCausalLM, teacher: BayesMemForCausalLM) -> list[int]:
    """Numbers of the layers that are softmax attention in the teacher and a memory in the student."""
    layers = zip(student.layers, teacher.layers, strict=True)
    return [
        number
        for number, (mine, theirs) in enumerate(layers)
        if isinstance(theirs.mixer, SoftmaxAttention) and not isinstance(mine.mixer, SoftmaxAttention)
    ]


@torch.no_grad()
def match_scale(student: BayesMemForCausalLM, teacher: BayesMemForCausalLM, tokens: Int[Tensor, "B T"]) -> int:
    """Scale the output projections of the student's new memories, head by head, in place.

    A memory's outputs are normalised, attention's are means of values and mostly much smaller. Both models read the
    tokens once; each layer is scaled to the teacher's root mean square before the next one reads what it adds.

    Args:
        student: some of its layers are memories with the projections of the teacher's attention.
        teacher: with as many layers.
        tokens: to measure on.

    Returns:
        The number of layers that were scaled; those that are attention in both or a memory in both are not.
    """
    pairs: list[tuple[nn.Module, nn.Module, int]] = []
    for number in replaced(student, teacher):
        memory: Any = student.layers[number].mixer
        attention: Any = teacher.layers[number].mixer
        pairs.append((memory.readout.o_proj, attention.o_proj, attention.config.num_heads))
    wanted: dict[nn.Module, Tensor] = {}
    hooks = []
    for mine, theirs, heads in pairs:

        def measure(_: nn.Module, given: tuple[Tensor], mine: nn.Module = mine, heads: int = heads) -> None:
            wanted[mine] = _size(given[0], heads)

        def scale(module: nn.Module, given: tuple[Tensor], heads: int = heads) -> None:
            ratio = wanted[module] / _size(given[0], heads).clamp(min=torch.finfo(torch.float32).tiny)
            columns = module.weight.shape[1] // heads  # type: ignore[index]
            module.weight.mul_(ratio.repeat_interleave(columns))  # type: ignore[operator]

        hooks += [theirs.register_forward_pre_hook(measure), mine.register_forward_pre_hook(scale)]
    try:
        for model in (teacher, student):
            model(tokens, use_cache=False, logits_to_keep=1)
    finally:
        for hook in hooks:
            hook.remove()
    return len(pairs)


def _size(x: Float[Tensor, "B T E"], heads: int) -> Float[Tensor, " H"]:
    """Root mean square of every head's outputs."""
    return x.float().unflatten(-1, (heads, -1)).square().mean((0, 1, 3)).sqrt()

"""Tests of an MQAR model: accuracy where something is asked, and what its gates give."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bayesmem.experiments.mqar_data import Asked
from bayesmem.models import BayesMemForCausalLM

TESTED_TOKENS = 2**16  # at a time


def asked_hidden(
    model: BayesMemForCausalLM, input_ids: Int[Tensor, "B T"], places: Int[Tensor, "Q"]
) -> Float[Tensor, "Q D"]:
    """Normed hidden states at ``places`` of the flattened batch; no logits are computed."""
    none = torch.empty(0, dtype=torch.long, device=input_ids.device)
    out = model(input_ids=input_ids, use_cache=False, output_hidden_states=True, logits_to_keep=none, return_dict=False)
    streams = out[-1]  # of a tuple, which accelerate's mixed precision passes through as it is
    return streams[-1].flatten(0, 1)[places]


@torch.no_grad()
def accuracy(model: BayesMemForCausalLM, rows: Asked, bf16: bool) -> float:
    """Share of what is asked that is answered rightly."""
    right = torch.zeros((), dtype=torch.long, device=rows.inputs.device)
    for hidden, answers in _parts(model, rows, bf16):
        right += (model.lm_head(hidden).argmax(-1) == answers).sum()
    return right.item() / rows.answers.numel()


def _parts(model: BayesMemForCausalLM, rows: Asked, bf16: bool) -> Iterator[tuple[Tensor, Tensor]]:
    model.eval()
    size = max(1, TESTED_TOKENS // rows.inputs.shape[1])
    with torch.autocast(rows.inputs.device.type, dtype=torch.bfloat16, enabled=bf16):
        for start in range(0, len(rows.inputs), size):
            batch = rows.rows(slice(start, start + size))
            yield asked_hidden(model, batch["input_ids"], batch["places"]), batch["answers"]


# What a gate gives, as a reader would name it.
TOLD: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "log_decay": ("decay", torch.exp),
    "log_retention": ("retention", lambda x: (2 * x).exp()),  # rho^2, the share of certainty kept
    "log_discount": ("discount", torch.exp),
    "obs_noise": ("beta", lambda r: 1 / (1 + r)),
    "process_noise": ("process_noise", lambda n: n),
    "step": ("step", lambda b: b),
}
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@torch.no_grad()
def learned_gates(model: BayesMemForCausalLM, rows: Asked, shown: int, bf16: bool) -> list[dict[str, Any]]:
    """What every layer's gates give on ``rows``: for each gate and head the mean and quantiles over tokens.

    Told apart for the first ``shown`` tokens of a row, which show its pairs (``shown``), the places that ask
    (``asked``) and all else (``rest``); channels of a head count as tokens do.
    """
    given: list[dict[str, Tensor]] = [{} for _ in model.layers]
    hooks = []
    for index, block in enumerate(model.layers):
        if (gates := getattr(block.mixer, "gates", None)) is not None:
            hooks.append(gates.register_forward_hook(lambda _m, _x, out, i=index: given[i].update(out)))
    size = min(len(rows.inputs), max(1, TESTED_TOKENS // rows.inputs.shape[1]))
    few = Asked(rows.inputs[:size], rows.places[:size], rows.answers[:size])
    try:
        for _ in _parts(model, few, bf16):
            pass
    finally:
        for hook in hooks:
            hook.remove()
    kind = torch.full(few.inputs.shape, 2, device=few.inputs.device)
    kind[:, :shown] = 0
    kind.scatter_(1, few.places.long(), 1)
    return [
        {TOLD[name][0]: _told(TOLD[name][1](x.float()), kind) for name, x in layer.items() if name in TOLD}
        for layer in given
    ]


def _told(x: Tensor, kind: Tensor) -> dict[str, Any]:
    """Statistics by head; of a gate that is one number a head, the numbers."""
    if x.ndim < 3:
        return {"fixed": [_short(one) for one in x.flatten()]}
    found = {}
    levels = torch.tensor(QUANTILES)
    for number, part in enumerate(("shown", "asked", "rest")):
        chosen = x[kind == number]  # [N, H] or [N, H, K]
        if len(chosen):
            by_head = chosen.movedim(1, 0).flatten(1).cpu()
            places = (levels * (by_head.shape[1] - 1)).round().long()
            found[part] = [
                {"mean": _short(values.mean()), "quantiles": [_short(x) for x in values.sort().values[places]]}
                for values in by_head
            ]
    return found


def _short(x: Tensor) -> float:
    return float(f"{x.item():.6g}")

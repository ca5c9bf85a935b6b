"""What is measured of a distillation's arms: perplexity, speed, how far a start moved, what a memory keeps."""

import json
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from transformers import TrainingArguments, default_data_collator

from bayesmem.layers.gates import Gates
from bayesmem.models import BayesMemForCausalLM
from bayesmem.models.movement import compare
from bayesmem.train import LanguageTrainer, RunConfig, Streams
from bayesmem.train.callbacks import rows
from bayesmem.train.distill_start import match_scale, replaced

COMPARED = 1024  # tokens of the held-out text on which a start is compared and a memory's gates are read


def held_out(model: BayesMemForCausalLM, streams: Streams, args: TrainingArguments) -> dict[str, float]:
    """Nats a token, perplexity and bits per byte of a model that is not trained here, as training evaluates."""
    trainer = LanguageTrainer(
        tokens_per_byte=streams.tokens_per_byte,
        step_tokens=1,
        token_flops=0.0,
        peak=None,
        tokenizer=None,  # nothing is saved
        model=model,
        args=args,
        eval_dataset=streams.held_out,
        data_collator=default_data_collator,
    )
    trainer.callback_handler.callbacks = []  # its one evaluation is told elsewhere
    model.to(args.device)
    with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
        metrics = trainer.evaluate()
    return {name.removeprefix("eval_"): value for name, value in metrics.items()}


def scaled(model: BayesMemForCausalLM, teacher: BayesMemForCausalLM, streams: Streams, args: TrainingArguments) -> int:
    """Bring memories that replace softmax attention to its scale on the first row of the training; how many."""
    if not replaced(model, teacher):
        return 0
    tokens = streams.train[0]["input_ids"][None].to(args.device)
    with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
        return match_scale(model.to(args.device).eval(), teacher.to(args.device).eval(), tokens)


@torch.no_grad()
def beginning(
    model: BayesMemForCausalLM, teacher: BayesMemForCausalLM, streams: Streams, args: TrainingArguments
) -> dict[str, Any]:
    """How far a start is from its teacher on held-out text, and what its memories keep."""
    inputs = _some(streams, args)
    found = []
    for one in (teacher, model):
        one.to(args.device).eval()
        with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
            found.append(one(**inputs, use_cache=False).logits.float())
    moved = compare(*found)
    return {"kl": moved.kl, "same_choice": moved.same_choice} | memory(model, streams, args)


@torch.no_grad()
def memory(model: BayesMemForCausalLM, streams: Streams, args: TrainingArguments) -> dict[str, Any]:
    """Retention ``rho^2`` and observation noise of every recurrent layer on held-out text: mean, and 5%, 50%, 95%."""
    gates = [module for module in model.modules() if isinstance(module, Gates)]
    caught: dict[nn.Module, dict[str, Tensor]] = {}
    hooks = [gate.register_forward_hook(lambda module, _, out: caught.__setitem__(module, out)) for gate in gates]
    training = model.training
    try:
        with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
            model.to(args.device).eval()(**_some(streams, args), use_cache=False, logits_to_keep=1)
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
    told: dict[str, Any] = {}
    for name, of in (("log_retention", "retention"), ("obs_noise", "obs_noise")):
        values = [caught[gate][name].float() for gate in gates if name in caught[gate]]
        values = [(2 * x).exp() if of == "retention" else x for x in values]
        if values:
            told[of] = [[x.mean().item(), *_quantiles(x)] for x in values]
    return told


def speed(folder: Path, arm: RunConfig, devices: int) -> dict[str, float]:
    """Seconds of all devices that an arm's steps take, by the median speed between its logs.

    Compilation, evaluations, checkpoints and pauses between a kill and its resume are not in it.
    """
    found = [row["tokens_per_second"] for row in rows(folder / "log.jsonl") if "tokens_per_second" in row]
    if not found:  # a run of very few steps
        return {}
    rate = median(found)
    return {"tokens_per_second": rate, "device_seconds": arm.steps * arm.step_tokens / rate * devices}


def trained_as(teacher: Path) -> dict[str, Any]:
    """How ``bayesmem train`` trained a teacher, from ``run.json`` beside its folder; nothing where another made it."""
    path = teacher.resolve().parent / "run.json"
    if teacher.resolve().name != "model" or not path.is_file():
        return {}
    try:
        run = RunConfig.of(read_object(path))
    except ValueError:  # of another version, or no run's
        return {}
    told: dict[str, Any] = {name: getattr(run, name) for name in ("tokens", "length", "batch_size", "learning_rate")}
    return {"trained_as": told | {"seed": run.seed, "data": [Path(name).name for name in run.data]}}


def agreed(asked: bool, args: TrainingArguments) -> bool:
    """Whether any rank was asked, on all of them."""
    if args.world_size == 1:
        return asked
    told = torch.tensor(float(asked), device=args.device)
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return bool(told.item())


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ValueError: it is none.
    """
    found = json.loads(path.read_text())
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__}; expected an object.")
    return found


def _some(streams: Streams, args: TrainingArguments) -> dict[str, Tensor]:
    """The first held-out rows, without targets."""
    data = streams.held_out
    assert data is not None
    count = min(len(data), max(1, COMPARED // data.length))
    batch = next(iter(DataLoader(Subset(data, range(count)), count, collate_fn=default_data_collator)))
    return {name: x.to(args.device) for name, x in batch.items() if name not in ("labels", "shift_labels")}


def _quantiles(x: Tensor) -> list[float]:
    at = torch.tensor([0.05, 0.5, 0.95], device=x.device)
    return torch.quantile(x.flatten()[: 2**20], at).tolist()

"""``bayesmem distill``: a pretrained delta rule (or softmax model) gets a covariance, beside controls without."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bayesmem.commands import options as shared
from bayesmem.commands.train import _quiet, _say

console = Console()
# Options of the run that its arms share, of the distillation, and of its losses.
OF_RUN = (
    "data", "held_out", "text_field", "prepared", "tokens", "length", "isolate", "batch_size", "micro_batch",
    "learning_rate", "schedule", "warmup", "decay", "min_lr", "weight_decay", "clip", "bf16", "recompute", "fsdp",
    "evaluate_every", "evaluate_tokens", "save_every", "log_every", "seed",
)  # fmt: skip
OF_ALL = ("tokenizer", "retention", "ignore")
OF_LOSS = ("temperature", "align", "trains", "gate_rate")


def distill(
    teacher: Annotated[
        str | None,
        typer.Option(help="Folder of the teacher: a Gated DeltaNet or DeltaNet of fla or ours, a Llama, a Mistral."),
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Text files, folders, or .jsonl(.xz, .gz) files; may be repeated.")
    ] = None,
    held_out: Annotated[list[str] | None, typer.Option(help="The same to evaluate on; may be repeated.")] = None,
    out: shared.Out = Path("runs/distill"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what is in --out, options as they were.")
    ] = False,
    time_limit: Annotated[
        float | None, typer.Option(help="Seconds after which a checkpoint is written and all stops.")
    ] = None,
    control: Annotated[
        str | None,
        typer.Option(help="Of tokens, flops and seconds, with commas between; or all (the default), both, none."),
    ] = None,
    trains: Annotated[str | None, typer.Option(help="gates (of the covariance), mixers, or all (the default).")] = None,
    retention: Annotated[
        float | None,
        typer.Option(help="Certainty kept at every token at first: 0.99, or 0.999 of a softmax teacher's layers."),
    ] = None,
    hybrid_every: Annotated[
        int | None,
        typer.Option(min=0, help="Softmax teachers: keep the last of every so many layers (4); 0 keeps none."),
    ] = None,
    align_weight: Annotated[
        str | None, typer.Option(help="Of hidden states: a weight, or share:weight,... (0:1,0.3:0).")
    ] = None,
    kl_weight: Annotated[str | None, typer.Option(help="Of the logits' KL, likewise (0:1,0.6:0.2).")] = None,
    ce_weight: Annotated[str | None, typer.Option(help="Of cross-entropy, likewise (0:0.5,0.6:1).")] = None,
    align: Annotated[
        str | None, typer.Option(help="Hidden states: the stream after each block (stream), or the mixers' (mixer).")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the logits that KL compares (1).")] = None,
    gate_rate: Annotated[
        float | None, typer.Option(help="Learning rate of the new retention gates, over the others' (1).")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Folder of one, where the teacher's has none.")] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(help="A key of the teacher's config to leave unread; may be repeated.")
    ] = None,
    text_field: shared.TextField = None,
    prepared: Annotated[str | None, typer.Option(help="Folder of tokens, which several runs may share.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Budget of the student (10 million).")] = None,
    length: shared.Length = None,
    isolate: shared.Isolate = None,
    batch_size: shared.BatchSize = None,
    micro_batch: Annotated[int | None, typer.Option(help="Rows a device holds at a time.")] = None,
    learning_rate: shared.LearningRate = None,
    schedule: shared.Schedule = None,
    warmup: shared.Warmup = None,
    decay: shared.Decay = None,
    min_lr: shared.MinLr = None,
    weight_decay: shared.WeightDecay = None,
    clip: shared.Clip = None,
    bf16: shared.Bf16 = None,
    recompute: shared.Recompute = None,
    fsdp: Annotated[bool | None, typer.Option("--fsdp/--ddp", help="Under torchrun: shard, or copy, the arm.")] = None,
    evaluate_every: shared.EvaluateEvery = None,
    evaluate_tokens: shared.EvaluateTokens = None,
    save_every: shared.SaveEvery = None,
    log_every: shared.LogEvery = None,
    seed: Annotated[int | None, typer.Option(help="Of order and new parameters (0).")] = None,
) -> None:
    """Distil a teacher into a model that carries its covariance, and train controls whose covariance is reset.

    Controls are spent the same tokens, floating-point operations or device seconds by the same loss. Ctrl-C, or a
    kill of any kind, costs what came after the last checkpoint: the same command with --resume goes on. On N GPUs:
    torchrun --nproc-per-node N -m bayesmem.cli distill ... OUT/teacher, OUT/student and OUT/control-... are models
    that the Auto classes of transformers load.
    """
    options = locals()
    _quiet()
    import torch.distributed as dist

    from bayesmem.experiments import distill as experiment
    from bayesmem.experiments.distill_config import DistillConfig
    from bayesmem.train import Interrupted

    before = (experiment.saved_config(out) if resume else None) or {}
    config = DistillConfig.of(_config(options, before))
    try:
        found = experiment.run(config, out, resume=resume, time_limit=time_limit, tell=_say)
    except Interrupted as stopped:
        _say(f"[bold]{stopped}.[/bold] The same command with --resume goes on from here.")
        raise typer.Exit(130) from stopped
    finally:
        if dist.is_initialized():
            main = dist.get_rank() == 0
            dist.destroy_process_group()
        else:
            main = True
    if main:
        console.print(_table(found))
        _say(f"models and records: [bold]{out.resolve()}[/bold]")


def _config(options: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Plain data of a ``DistillConfig``: what was given over what was there before."""
    from bayesmem.experiments.distill_config import read_controls
    from bayesmem.train.distill_config import TERMS, read_knots

    def given(names: tuple[str, ...]) -> dict[str, Any]:
        return {name: options[name] for name in names if options[name] not in (None, [])}

    run = before.get("run", {}) | given(OF_RUN)
    if options["teacher"] is not None:
        run["start"] = options["teacher"]
    losses = before.get("options", {}) | given(OF_LOSS)
    weights = {name: options[f"{name}_weight"] for name in TERMS if options[f"{name}_weight"] is not None}
    if weights:
        typed = {name: read_knots(f"--{name}-weight", text) for name, text in weights.items()}
        losses["mix"] = losses.get("mix", {}) | typed
    config = before | given(OF_ALL) | {"run": run, "options": losses}
    if options["hybrid_every"] is not None:
        config["attention_every"] = options["hybrid_every"]
    if options["control"] is not None:
        config["controls"] = list(read_controls(options["control"]))
    return config


def _table(found: dict[str, Any]) -> Table:
    """The arms' records side by side."""
    table = Table("", "steps", "FLOPs", "seconds", "bits/byte", "perplexity", "against teacher")
    table.columns[0].no_wrap = True
    base = found["teacher"].figures["perplexity"]
    for name, record in found.items():
        figures = record.figures
        seconds, steps = figures.get("device_seconds"), figures.get("steps")
        table.add_row(
            name,
            "" if steps is None else f"{steps:,}",
            f"{figures['flops']:.3g}" if "flops" in figures else "",
            "" if seconds is None else f"{seconds:,.1f}",
            f"{figures['bits_per_byte']:.4f}",
            f"{figures['perplexity']:.3f}",
            "" if name == "teacher" else f"{figures['perplexity'] / base - 1:+.2%}",
        )
    return table

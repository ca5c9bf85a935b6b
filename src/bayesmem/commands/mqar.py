"""``bayesmem run mqar``: Zoology's associative recall, as a queue that stops and goes on."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from bayesmem.commands import options as shared

console = Console()


def run_mqar(
    out: shared.StudyOut = Path("runs/mqar"),
    stage: Annotated[
        list[str] | None,
        typer.Option(
            help="learning-rates, seeds, others, speed, widths, parameters, ablations or variants; may be repeated "
            "(learning-rates and seeds)."
        ),
    ] = None,
    jobs: shared.Jobs = 1,
    time_limit: shared.TimeLimit = None,
    model: Annotated[list[str] | None, typer.Option(help="Only this model; may be repeated.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps a training (6000).")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows a step (256).")] = None,
    learning_rate: Annotated[
        list[float] | None, typer.Option("--lr", help="Try this learning rate in place of the four; may be repeated.")
    ] = None,
    seeds: shared.Seeds = None,
    test_rows: Annotated[int | None, typer.Option(min=1, help="Rows a test slice (1000).")] = None,
    precision: Annotated[str | None, typer.Option(help="bf16 (default on a GPU) or float32 (on a CPU).")] = None,
    decay_init: Annotated[float | None, typer.Option(help="Share of the mean kept a token at first (.999).")] = None,
    output_gate: Annotated[str | None, typer.Option(help="none (default), silu or sigmoid.")] = None,
    stop_below: Annotated[
        float | None, typer.Option(help="End a training once its loss is below this (never).")
    ] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="A tiny study that takes seconds, of the same code.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Say what is due, and do nothing.")] = False,
) -> None:
    """Train and test Zoology's MQAR over models, learning rates and seeds; goes on from what --out holds."""
    from dataclasses import replace

    import torch

    from bayesmem.experiments.mqar_queue import run_queue
    from bayesmem.experiments.mqar_stages import SMOKE_SWEEP, Sweep, due
    from bayesmem.report.records import records_in

    stages = tuple(stage or ("learning-rates", "seeds"))
    base = SMOKE_SWEEP if smoke else Sweep()
    given: dict[str, Any] = {
        "models": tuple(model or ()) or None,
        "learning_rates": tuple(learning_rate or ()) or None,
        "seeds": tuple(range(seeds)) if seeds else None,
        "steps": steps,
        "batch_size": batch_size,
        "precision": precision or ("bf16" if torch.cuda.is_available() else "float32"),
        "decay_init": decay_init,
        "output_gate": output_gate,
        "stop_below": stop_below,
        "scale": replace(base.scale, test_rows=test_rows) if test_rows else None,
    }
    sweep = replace(base, **{name: value for name, value in given.items() if value is not None})
    if plan:
        found = due(sweep, stages, records_in(out).all())
        for job in found.jobs:
            console.print(job.folder, highlight=False, soft_wrap=True)
        console.print(f"{len(found.jobs)} due, {found.done} done; waiting: {'; '.join(found.waiting) or 'nothing'}")
        return
    outcome = run_queue(
        sweep, stages, out, jobs, time_limit, lambda text: console.print(text, highlight=False, soft_wrap=True)
    )
    for word in outcome.waiting:
        console.print(f"not run yet, it waits: {word}", highlight=False, soft_wrap=True)
    console.print(f"{outcome.finished} finished, {outcome.left} left; the same command goes on from {out}.")
    if outcome.failed:
        told = "; ".join(f"{name} ({log})" for name, log in outcome.failed.items())
        raise ValueError(f"{len(outcome.failed)} jobs failed: {told}. Mend the cause and run the same command.")

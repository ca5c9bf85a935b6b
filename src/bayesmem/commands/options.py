"""Options that several commands have, each said once; a default in brackets is that of the run's config.

What a command says in words of its own (another default, another use) stands with that command.
"""

from pathlib import Path
from typing import Annotated

import typer

# Folders and texts.
Out = Annotated[Path, typer.Option(file_okay=False, help="Folder of all output.")]
StudyOut = Annotated[Path, typer.Option(file_okay=False, help="Folder of all output; a run goes on from it.")]
TextField = Annotated[str | None, typer.Option("--field", help="Key of the text in JSON lines (text).")]
KnownTextField = Annotated[str, typer.Option("--field", help="Key of the text in JSON lines.")]
Isolate = Annotated[
    bool | None, typer.Option("--isolate/--join", help="Whether documents in a row are strangers to each other.")
]

# Rows and steps of a training.
Length = Annotated[int | None, typer.Option(help="Tokens a row (512).")]
BatchSize = Annotated[int | None, typer.Option(help="Rows a step, over all devices (16).")]
LearningRate = Annotated[float | None, typer.Option("--lr", help="Peak learning rate (1e-3).")]
Schedule = Annotated[str | None, typer.Option(help="cosine, wsd or constant.")]
Warmup = Annotated[float | None, typer.Option(help="Share of the steps that warm up (0.05).")]
Decay = Annotated[float | None, typer.Option(help="Share of the steps that wsd comes down over (0.2).")]
MinLr = Annotated[float | None, typer.Option(help="Last learning rate, as a share of the peak (0.1).")]
WeightDecay = Annotated[float | None, typer.Option(help="AdamW's, on matrices only (0.1).")]
Clip = Annotated[float | None, typer.Option(help="Largest gradient norm (1).")]
Bf16 = Annotated[bool | None, typer.Option("--bf16/--fp32", help="Mixed precision.")]
Recompute = Annotated[bool | None, typer.Option("--recompute/--keep-all", help="Gradient checkpointing.")]

# What a training leaves behind.
EvaluateEvery = Annotated[int | None, typer.Option(help="Steps between evaluations (500).")]
EvaluateTokens = Annotated[int | None, typer.Option(help="Held-out tokens to evaluate on (all).")]
SaveEvery = Annotated[int | None, typer.Option(help="Steps between checkpoints (500).")]
LogEvery = Annotated[int | None, typer.Option(help="Steps between logged losses (10).")]

# A study: many trainings in a queue.
Seeds = Annotated[int | None, typer.Option(min=1, help="Seeds at the best learning rate (3).")]
Jobs = Annotated[int, typer.Option(min=1, help="Trainings side by side; they share the visible GPUs.")]
TimeLimit = Annotated[float | None, typer.Option(help="Seconds after which trainings under way save and stop.")]

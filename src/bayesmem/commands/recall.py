"""``bayesmem run recall``: learned recall of noisy observations, held to the best predictor."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

console = Console()


def recall(
    out: Annotated[
        Path, typer.Option(file_okay=False, help="Folder of all output; a run goes on from what is there.")
    ] = Path("runs/recall"),
    scale: Annotated[str, typer.Option(help="smoke (seconds), default (minutes), or large (for a GPU).")] = "default",
    world: Annotated[
        list[str] | None, typer.Option(help="linear or lookup, may be given twice; default: both.")
    ] = None,
    design: Annotated[
        list[str] | None, typer.Option(help="Of `bayesmem designs`, may be given several times; default: nine.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds; all models of one come before the next.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="The first of them.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps a model, in place of the scale's.")] = None,
) -> None:
    """Layers of equal state learn to recall noisy, repeated, changing values; excess risk far beyond their training."""
    import transformers

    from bayesmem.experiments import recall_study as study

    if scale not in study.SCALES:
        raise ValueError(f"scale is {scale!r}; expected one of {', '.join(study.SCALES)}.")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    config = study.SCALES[scale]()
    config = replace(config, train=replace(config.train, steps=steps or config.train.steps))
    worlds, designs = tuple(world or study.WORLDS), tuple(design or study.DESIGNS)
    try:
        study.run(config, out, worlds, designs, range(seed, seed + seeds))
    except KeyboardInterrupt as stopped:
        told = str(stopped) or "interrupted"
        console.print(f"[bold]{told}.[/bold] What was finished is kept; the same command goes on from here.")
        raise typer.Exit(130) from None
    console.print(f"results: {(out / 'recall.md').resolve()}", soft_wrap=True)

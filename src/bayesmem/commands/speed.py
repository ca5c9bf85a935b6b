"""``bayesmem bench-model``: tokens a second of whole models, in training and in generation."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

console = Console()


def bench_model(
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder of the records.")] = Path("runs/speed"),
    only: Annotated[
        list[str] | None, typer.Option(help="bayesian, gated_deltanet or fla_gated_deltanet; may be repeated.")
    ] = None,
    part: Annotated[list[str] | None, typer.Option(help="training or generation; may be repeated (both).")] = None,
    hidden: Annotated[int, typer.Option(min=1, help="Width of the model.")] = 1024,
    layers: Annotated[int, typer.Option(min=1, help="Blocks.")] = 21,
    heads: Annotated[int, typer.Option(min=1, help="Heads a layer.")] = 8,
    head_dim: Annotated[int, typer.Option(min=1, help="Key and value dim of a head.")] = 128,
    vocab: Annotated[int, typer.Option(min=2, help="Tokens of the vocabulary.")] = 32_000,
    length: Annotated[int, typer.Option(min=2, help="Tokens a row in training.")] = 4096,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a step.")] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps.")] = 8,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens read before generation.")] = 512,
    generated: Annotated[int, typer.Option(min=1, help="Tokens generated.")] = 64,
    sequences: Annotated[int, typer.Option(min=1, help="Rows generated side by side.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and tokens.")] = 0,
) -> None:
    """Time training and generation of whole models, flash-linear-attention's beside ours where there is a GPU."""
    from bayesmem.experiments.speed import PARTS, SpeedConfig, run

    if prompt > length:
        raise ValueError(f"--prompt {prompt} is longer than --length {length}, whose tokens it takes; make it shorter.")
    config = SpeedConfig(
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        head_dim=head_dim,
        vocab_size=vocab,
        length=length,
        batch_size=batch_size,
        steps=steps,
        prompt=prompt,
        generated=generated,
        sequences=sequences,
        seed=seed,
    )
    run(
        config,
        out,
        tuple(only or ()),
        tuple(part or PARTS),
        lambda text: console.print(text, highlight=False, soft_wrap=True),
    )

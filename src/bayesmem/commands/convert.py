"""``bayesmem convert``: checkpoints of other libraries as ours, and back."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from torch import Tensor

console = Console()


def convert(
    path: Annotated[Path, typer.Argument(help="Folder of the checkpoint: config.json and safetensors.")],
    out: Annotated[Path, typer.Argument(help="Folder to write, which is not there yet or empty.")],
    covariance: Annotated[
        str | None,
        typer.Option(help="reset: a delta rule's own function; full: its covariance carried. Of softmax layers: full."),
    ] = None,
    retention: Annotated[
        float | None,
        typer.Option(help="Certainty kept at every token at first, with full: 0.05, or 0.999 of softmax layers."),
    ] = None,
    hybrid_every: Annotated[
        int | None,
        typer.Option(min=0, help="Softmax models: keep the last of every so many layers (4); 0 keeps none, 1 all."),
    ] = None,
    to_fla: Annotated[
        bool, typer.Option("--to-fla", help="The way back: a delta rule of ours for flash-linear-attention.")
    ] = False,
    text: Annotated[
        Path | None, typer.Option(help="Measure how far the function moved on this text, in place of random tokens.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=2, help="How many tokens to measure it on.")] = 256,
    ignore: Annotated[
        list[str] | None, typer.Option(help="A config key to leave unread; may be given several times.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of random tokens and of new parameters.")] = 0,
) -> None:
    """Convert Gated DeltaNet and DeltaNet (flash-linear-attention) exactly, Llama and Mistral to a hybrid's start."""
    import transformers

    from bayesmem.models.convert import convert as run
    from bayesmem.models.convert import convert_back
    from bayesmem.models.plan import ConversionOptions

    transformers.utils.logging.disable_progress_bar()
    if to_fla:
        given: dict[str, object] = {
            "--covariance": covariance,
            "--retention": retention,
            "--hybrid-every": hybrid_every,
            "--text": text,
        }
        given["--ignore"] = ignore or None
        if useless := [name for name, value in given.items() if value is not None]:
            raise ValueError(f"{useless[0]} with --to-fla: the way back is exact and has no options; leave it out.")
        done = convert_back(path, out)
    else:
        options = ConversionOptions(
            covariance=covariance,
            retention=retention,
            attention_every=hybrid_every,
            ignore=tuple(ignore or ()),
            tokens=tokens if text is None else _tokens(path, text, tokens),
            seed=seed,
        )
        done = run(path, out, options)
    console.print(
        f"[bold]{done.out}[/bold]: {done.source} -> {done.design}, {done.parameters:,} parameters",
        highlight=False,
        soft_wrap=True,
    )
    same = "the same function: every tensor went over bit by bit"
    console.print(same if done.moved is None else f"another function: {done.moved}", highlight=False, soft_wrap=True)
    for note in done.notes:
        console.print(f"[bold]note:[/bold] {note}", highlight=False, soft_wrap=True)
    for name, why in done.ignored.items():
        console.print(f"[dim]left behind:[/dim] {name} ({why})", highlight=False, soft_wrap=True)


def _tokens(path: Path, text: Path, length: int) -> "Tensor":
    """The first tokens of a text, by the checkpoint's own tokenizer."""
    from transformers import AutoTokenizer

    if not text.is_file():
        raise ValueError(f"{text} is not a file; expected a text to measure on.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} has no tokenizer that can be read ({error}); leave out --text.") from error
    found = tokenizer(text.read_text(encoding="utf-8"), return_tensors="pt").input_ids[:, :length]
    if found.shape[1] < 2:
        raise ValueError(f"{text} has {found.shape[1]} token(s); expected a longer text.")
    return found

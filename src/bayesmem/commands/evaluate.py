"""``bayesmem eval``: RULER and text for any checkpoint, and retrieval text to train on."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bayesmem.commands import options as shared

console = Console()
evaluations = typer.Typer(help="Evaluate a checkpoint: any causal LM that transformers loads.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="Folder of the model and its tokenizer.")]
Out = Annotated[Path, typer.Option(file_okay=False, help="Folder of the records; many checkpoints may share it.")]
Label = Annotated[str | None, typer.Option(help="What to call the checkpoint (its folder's name).")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ... (a GPU where there is one).")]
Bf16 = Annotated[bool, typer.Option("--bf16/--fp32", help="Mixed precision, or the checkpoint's own.")]


@evaluations.command("ruler")
def ruler(
    checkpoints: Annotated[list[Path], typer.Argument(help="Folders of models and their tokenizers, one or more.")],
    task: Annotated[
        list[str] | None,
        typer.Option(help="s-niah-1, multi-key-2, vt ..., or a group: s-niah, multi-key, offline, all (s-niah-1)."),
    ] = None,
    length: Annotated[list[int] | None, typer.Option(help="Tokens; may be repeated (1024, 2048, 4096, 8192).")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Of the documents; may be repeated (0).")] = None,
    count: Annotated[int, typer.Option("--documents", help="Documents a task, length and seed.")] = 100,
    haystack: Annotated[
        list[str] | None, typer.Option(help="Text file or folder that needles are hidden in; may be repeated.")
    ] = None,
    questions: Annotated[
        str | None, typer.Option(help="SQuAD's or HotpotQA's JSON, or JSON lines: question, answers, contexts.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Documents generated side by side.")] = 8,
    bf16: Bf16 = False,
    out: Out = Path("runs/eval"),
    label: Annotated[
        list[str] | None, typer.Option(help="What to call a checkpoint (its folder's name); one for each.")
    ] = None,
    against: Annotated[str | None, typer.Option(help="Label in --out to compare with, document by document.")] = None,
    device: Device = None,
) -> None:
    """Ask RULER's tasks, by lm-evaluation-harness, at several lengths, of one checkpoint or several. Needs no network.

    Finished cells are in OUT/records.jsonl and are not run again; what was said is in OUT/answers; OUT/ruler.md holds
    tables, heat maps and differences of all checkpoints there, OUT/distill.md the arms of a distillation whose records
    lie there too. A seed asks every model of one tokenizer the same.
    """
    _quiet()
    from bayesmem.experiments import eval_ruler
    from bayesmem.experiments.eval_checkpoint import label_of, load_checkpoint, weights_of

    names = label or [label_of(folder) for folder in checkpoints]
    if len(names) != len(checkpoints):
        raise ValueError(f"{len(names)} of --label for {len(checkpoints)} checkpoints; give one for each, or none.")
    if len(set(names)) < len(names):
        raise ValueError(f"checkpoints of one name ({', '.join(names)}); tell them apart by a --label for each.")
    config = eval_ruler.RulerConfig(
        tasks=tuple(task or ("s-niah-1",)),
        lengths=tuple(length or (1024, 2048, 4096, 8192)),
        seeds=tuple(seed or (0,)),
        documents=count,
        batch_size=batch_size,
        bf16=bf16,
        sources=eval_ruler.Sources(tuple(haystack or ()), questions),
    )
    for folder in checkpoints:
        weights_of(folder)  # one that is not there is told now, not after the others
    try:
        for folder, name in zip(checkpoints, names, strict=True):
            eval_ruler.run(config, load_checkpoint(folder, name, device), out, _say)
    except KeyboardInterrupt as interrupt:
        _say("[bold]interrupted.[/bold] What was finished is kept; the same command goes on from here.")
        raise typer.Exit(130) from interrupt
    _say(f"tables: {eval_ruler.write_report(out, against).resolve()}")
    _arms(out)


@evaluations.command("text")
def text(
    checkpoint: Folder,
    files: Annotated[list[str], typer.Argument(help="Text files, folders, or .jsonl(.xz, .gz) files.")],
    length: Annotated[list[int] | None, typer.Option(help="Tokens of a context; may be repeated (4096).")] = None,
    tokens: Annotated[int, typer.Option(help="Evaluate on the first so many; 0 is all.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Contexts side by side.")] = 4,
    piece: Annotated[int, typer.Option(help="Tokens at a time, the memory carried on between them.")] = 1024,
    field: shared.KnownTextField = "text",
    bf16: Bf16 = False,
    out: Out = Path("runs/eval"),
    label: Label = None,
    device: Device = None,
) -> None:
    """Perplexity and bits per byte of a text, overall and by position in the context."""
    _quiet()
    from bayesmem.experiments import eval_ruler, eval_text
    from bayesmem.experiments.eval_checkpoint import load_checkpoint

    configs = [
        eval_text.TextConfig(tuple(files), one, tokens, batch_size, piece, bf16, field) for one in length or (4096,)
    ]
    loaded = load_checkpoint(checkpoint, label, device)
    for config in configs:
        figures = eval_text.run(config, loaded, out, _say).figures
        _say(
            f"{loaded.label}, contexts of {config.length}: {figures['bits_per_byte']:.4f} bits per byte, perplexity "
            f"{figures['perplexity']:.3f} a token, over {figures['tokens']:,} tokens"
        )
        for one in figures["bins"]:
            _say(f"  position {one['from']:>6} to {one['to']:>6}: {one['bits_per_byte']:.4f} bits per byte")
    _say(f"tables: {eval_ruler.write_report(out).resolve()}")


@evaluations.command("retrieval-text")
def retrieval_text(
    out: Annotated[Path, typer.Argument(help="File to write, ending in .jsonl.")],
    tokens: Annotated[int, typer.Option(help="Tokens of all documents together.")] = 1_000_000,
    tokenizer: Annotated[str, typer.Option(help="That lengths are counted by: bytes, or a folder.")] = "bytes",
    haystack: Annotated[
        list[str] | None, typer.Option(help="Text that needles are hidden in; noise alone without. May be repeated.")
    ] = None,
    field: shared.KnownTextField = "text",
    shortest: Annotated[int, typer.Option(help="Tokens of the shortest documents.")] = 128,
    longest: Annotated[int, typer.Option(help="Tokens of the longest.")] = 1024,
    needles: Annotated[int, typer.Option(help="Needles a document, at most; all are asked for.")] = 4,
    kind: Annotated[list[str] | None, typer.Option(help="numbers, words or uuids; may be repeated (all).")] = None,
    book_share: Annotated[float, typer.Option(help="Share of documents in the text, not noise.")] = 0.5,
    ruler_noise: Annotated[bool, typer.Option("--ruler-noise", help="RULER's own noise, which the test has.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of everything.")] = 0,
) -> None:
    """Write needles, questions and answers to train on: JSON lines that `bayesmem train` takes beside other files."""
    _quiet()
    from bayesmem.experiments import eval_retrieval

    kinds = tuple(kind or eval_retrieval.RetrievalConfig(1).kinds)
    share = book_share if haystack else 0.0
    config = eval_retrieval.RetrievalConfig(tokens, shortest, longest, needles, kinds, share, ruler_noise, seed)
    eval_retrieval.run(config, out, tokenizer, tuple(haystack or ()), field, _say)


def _arms(out: Path) -> None:
    """The arms of a distillation beside each other, where the folder's records hold one."""
    from bayesmem.report import distill
    from bayesmem.report.records import records_in

    try:
        if (page := distill.write(records_in(out), out)) is not None:
            _say(f"student and controls: {page.resolve()}")
    except ValueError as error:  # what was measured is recorded
        _say(f"student and controls cannot be compared: {error}")


def _quiet() -> None:
    """Keep third parties' progress bars and advice out of ours, and off the network."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def _say(text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)

"""``bayesmem``: the demo, its parts, and the page drawn from their records."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from bayesmem.commands.convert import convert
from bayesmem.commands.distill import distill
from bayesmem.commands.evaluate import evaluations
from bayesmem.commands.language import run_language
from bayesmem.commands.mqar import run_mqar
from bayesmem.commands.recall import recall as recall_study
from bayesmem.commands.speed import bench_model
from bayesmem.commands.train import train
from bayesmem.report import bench as bench_report
from bayesmem.report import bench_plots, page
from bayesmem.report import distill as distill_report
from bayesmem.report import language as language_report
from bayesmem.report import mqar as mqar_report
from bayesmem.report import recall_study as recall_report
from bayesmem.report import results as collision_results
from bayesmem.report.bench_data import beside
from bayesmem.report.plots import Picture
from bayesmem.report.records import COMMIT, Records, records_in
from bayesmem.report.verdicts import sweeps, verdicts

app = typer.Typer(
    help="Efficient sequence layers that know what they know.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
runs = typer.Typer(help="Run one experiment.", no_args_is_help=True)
app.add_typer(runs, name="run")
app.add_typer(evaluations, name="eval")
app.command("train")(train)
app.command("convert")(convert)
app.command("bench-model")(bench_model)
app.command("distill")(distill)
runs.command("mqar")(run_mqar)
runs.command("language")(run_language)
runs.command("recall")(recall_study)
console = Console()

Out = Annotated[Path, typer.Option(file_okay=False, help="Folder of all output; a run goes on from what is there.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of data, initialisation and order.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Training steps a model, in place of the default.")]
TextFile = Annotated[Path | None, typer.Option("--text", help="A text file to train on, in place of the book inside.")]


@app.command()
def demo(out: Out = Path("runs/demo"), seed: Seed = 0, text: TextFile = None) -> None:
    """Collision, recall and real text, then a table and a page: about five minutes on two cores."""
    from bayesmem.tasks.text import load

    load(text)  # a missing file is said now, not after minutes
    _prepare()
    _finish(out, (lambda: _collision(out, seed), lambda: _recall(out, seed), lambda: _text(out, seed, text)))


@runs.command("collision")
def run_collision(
    out: Out = Path("runs/collision"),
    seed: Seed = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Intervals five times as wide, in seconds.")] = False,
    sweep: Annotated[list[str] | None, typer.Option(help="Only this sweep; may be given several times.")] = None,
    cosine: Annotated[float | None, typer.Option(min=-1, max=1, help="Cosine of the two keys.")] = None,
    writes: Annotated[int | None, typer.Option(min=1, help="Writes of the first key before the second comes.")] = None,
    noise: Annotated[float | None, typer.Option(help="Variance of the values' noise.")] = None,
    precision: Annotated[
        float | None, typer.Option(help="Half-width of the intervals, as a share of the value.")
    ] = None,
) -> None:
    """Predicted against simulated recall, for every rule with a closed form (a minute or two)."""
    given = {"cosine": cosine, "writes_a": writes, "noise_var": noise, "precision": precision}
    changes = {k: v for k, v in given.items() if v is not None}
    _finish(out, (lambda: _collision(out, seed, quick, sweep, **changes),))
    _verdicts(records_in(out))


@runs.command("recall-discrete")
def run_recall(
    out: Out = Path("runs/recall"),
    seed: Seed = 0,
    steps: Steps = None,
    head_dim: Annotated[int | None, typer.Option(min=1, help="K = V of the Bayesian Layer.")] = None,
    vocab_size: Annotated[int | None, typer.Option(min=8, help="Tokens; half of them are keys.")] = None,
) -> None:
    """Layers of equal state learn MQAR and are asked for more than they trained on (minutes)."""
    _prepare()
    given = {"head_dim": head_dim, "vocab_size": vocab_size}
    _finish(out, (lambda: _recall(out, seed, steps, **{k: v for k, v in given.items() if v is not None}),))


@runs.command("text")
def run_text(out: Out = Path("runs/text"), seed: Seed = 0, steps: Steps = None, text: TextFile = None) -> None:
    """Byte-level models of both mixers on real text (minutes)."""
    _prepare()
    _finish(out, (lambda: _text(out, seed, text, steps),))


@app.command("bench")
def bench(
    out: Out = Path("runs/bench"),
    only: Annotated[list[str] | None, typer.Option(help="Only this contender; may be given several times.")] = None,
    shapes: Annotated[str, typer.Option(help="quick, headline, or grid (T to 64k, B H to 512, K 64 to 256).")] = (
        "headline"
    ),
    what: Annotated[str, typer.Option(help="Of forward, backward (with forward) and decode, with commas between.")] = (
        "forward,backward,decode"
    ),
    limit: Annotated[float, typer.Option(help="Seconds for each contender, compilation and autotuning included.")] = (
        300.0
    ),
    compile_ahead: Annotated[
        bool, typer.Option("--compile-ahead", help="Compile all contenders first, side by side, on all cores.")
    ] = False,
    commit: Annotated[str | None, typer.Option(help="What to record as the commit, where there is no git.")] = None,
    seed: Seed = 0,
) -> None:
    """Time the ops against their peers, each in a process of its own; what is recorded already is skipped."""
    if commit:
        os.environ[COMMIT] = commit
    from bayesmem.experiments import bench as benchmark

    whats = tuple(part.strip() for part in what.split(",") if part.strip())
    config = benchmark.BenchRun(shapes, whats, tuple(only or ()), limit, compile_ahead, seed)
    stopped = False
    try:
        benchmark.run(config, out)
    except KeyboardInterrupt:
        stopped = True
    records = records_in(out)
    if records.all():
        _draw(bench_plots.pictures(records), out / "img")
        text = bench_report.section(records, out / "bench.md", out / "img")
        (out / "bench.md").write_text(text, encoding="utf-8")
        console.print(f"tables: {(out / 'bench.md').resolve()}", soft_wrap=True)
    if stopped:
        console.print("[bold]interrupted.[/bold] What was finished is kept; the same command goes on from here.")
        raise typer.Exit(130)


@app.command("designs")
def designs(
    name: Annotated[str | None, typer.Argument(help="A design, to see it in full.")] = None,
    latex: Annotated[bool, typer.Option("--latex", help="Its update as LaTeX.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="The whole zoo as Markdown (docs/designs.md).")] = False,
) -> None:
    """The zoo: what each design assumes, its update, its state, and what it is exactly equal to."""
    from bayesmem.design import ZOO, named, table

    if markdown:
        sys.stdout.write(table.markdown())
        return
    if name:
        console.print(named(name).describe("latex" if latex else "text"), markup=False, highlight=False, soft_wrap=True)
        return
    if latex:
        raise ValueError("--latex without a design; name one, such as `bayesmem designs gated_deltanet --latex`.")
    for row in map(table.summary, ZOO.values()):
        mark = " [dim](experimental)[/dim]" if row.experimental else ""
        console.print(f"[bold]{row.name}[/bold]{mark}", highlight=False)
        for heading in ("assumes", "update", "state", "equals"):
            console.print(
                Padding(f"[dim]{heading:8}[/dim]{escape(getattr(row, heading))}", (0, 0, 0, 2)), highlight=False
            )
    console.print("\nMeasured designs share s = kᵀ P⁻ k + r, the gain g = P⁻ k / s and M = M⁻ + g (v − M⁻ᵀ k)ᵀ.")
    console.print(f"{len(ZOO)} designs; `bayesmem designs NAME` shows one in full, docs/extending.md adds yours.")


@app.command("report")
def report(
    out: Annotated[Path, typer.Argument(help="A run's folder, or a file of records.")],
    pictures: Annotated[Path | None, typer.Option(help="Folder for the pictures as SVG files too.")] = None,
    results: Annotated[Path | None, typer.Option(help="File for the collision study as Markdown.")] = None,
) -> None:
    """Draw the page of a run's folder again from its records, or from a file of records pictures and results."""
    lone = out.suffix == ".jsonl"
    if lone and not (pictures or results):
        raise ValueError(f"{out} is a file of records; say what to draw from it, --pictures or --results.")
    records = Records(out) if lone else records_in(out)
    if results:
        text = collision_results.markdown(records, results, pictures or results.parent / "img")
        results.write_text(text, encoding="utf-8")
    page_pictures = page.pictures(records) if pictures or not lone else {}
    if not lone:
        console.print(f"report: {page.write(records, out / 'report.html', page_pictures).resolve()}", soft_wrap=True)
    if pictures:
        drawn = page_pictures | bench_plots.pictures(beside(records) if lone else records)
        for part in (recall_report, mqar_report, language_report, distill_report):
            drawn |= part.pictures(part.beside(records) if lone else records)
        _draw(drawn, pictures)


def _draw(pictures: dict[str, Picture], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        (folder / f"{name}-light.svg").write_text(picture.light, encoding="utf-8")
        (folder / f"{name}-dark.svg").write_text(picture.dark, encoding="utf-8")


def _prepare() -> None:
    """Keep third parties' progress bars out of ours, before transformers is imported."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def _collision(
    out: Path, seed: int, quick: bool = True, sweeps: list[str] | None = None, **changes: float | int
) -> None:
    from bayesmem.experiments import collision

    config = (collision.quick if quick else collision.CollisionRun)(seed=seed, **changes)  # type: ignore[arg-type]
    collision.run(config, out, sweeps or tuple(collision.SWEEPS))


def _recall(out: Path, seed: int, steps: int | None = None, **changes: int) -> None:
    from bayesmem.experiments import recall

    config = recall.RecallConfig(**changes)  # type: ignore[arg-type]
    train = replace(config.train, seed=seed, steps=steps or config.train.steps)
    recall.run(replace(config, train=train), out)


def _text(out: Path, seed: int, path: Path | None, steps: int | None = None) -> None:
    from bayesmem.experiments import text

    config = text.TextConfig(path=str(path.resolve()) if path else None)
    train = replace(config.train, seed=seed, steps=steps or config.train.steps)
    text.run(replace(config, train=train), out)


def _finish(out: Path, parts: tuple[Callable[[], None], ...]) -> None:
    """Run the parts; whatever happens, the page shows what there is."""
    records = records_in(out)
    stopped = None
    try:
        for part in parts:
            part()
    except KeyboardInterrupt as interrupt:
        stopped = str(interrupt) or "interrupted"
    if records.all():
        _table(records)
        console.print(f"report: {page.write(records, out / 'report.html').resolve()}", soft_wrap=True)
    if stopped:
        console.print(f"[bold]{stopped}.[/bold] What was finished is kept; the same command goes on from here.")
        raise typer.Exit(130)


def _table(records: Records) -> None:
    rows = page.summary(records)
    if not rows:
        return
    table = Table(*("", *page.NAMES))
    for row in rows:
        values = [f"[bold]{v}[/bold]" if i in row.best else v for i, v in enumerate(row.values)]
        table.add_row(row.what, *values)
    console.print(table)


def _verdicts(records: Records) -> None:
    table = Table("claim", "found", "asked", "")
    for row in verdicts(sweeps(records)):
        table.add_row(row.what, row.found, row.wanted, "holds" if row.holds else "[bold red]fails[/bold red]")
    console.print(table)


def main() -> None:
    """Entry point: bad input ends in one line and exit code 2, not in a traceback."""
    try:
        app()
    except (ValueError, OSError) as error:
        Console(stderr=True).print(f"[bold red]error:[/bold red] {error}", highlight=False, soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()

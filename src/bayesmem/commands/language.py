"""``bayesmem run language``: language models from scratch at equal state and equal parameters."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from bayesmem.commands import options as shared

console = Console()


def run_language(
    data: Annotated[
        list[str] | None, typer.Option(help="Text file, folder, or .jsonl(.xz, .gz) file; may be repeated.")
    ] = None,
    held_out: Annotated[
        list[str] | None, typer.Option(help="The same, to choose learning rates and to test on; may be repeated.")
    ] = None,
    out: shared.StudyOut = Path("runs/language"),
    text_field: shared.KnownTextField = "text",
    tokenizer: Annotated[str | None, typer.Option(help="bytes, bpe (trained here), or a folder of one (bpe).")] = None,
    vocab: Annotated[int, typer.Option(help="Tokens of a bpe trained here.")] = 16384,
    prepared: Annotated[
        str | None, typer.Option(help="Folder of tokens and tokenizer, which `bayesmem train` may have made.")
    ] = None,
    model: Annotated[list[str] | None, typer.Option(help="Only this design; may be repeated (the five).")] = None,
    matched: Annotated[
        list[str] | None,
        typer.Option(help="state (and parameters), or parameters (equal heads); may be repeated (both)."),
    ] = None,
    widened: Annotated[str | None, typer.Option(help="A larger state goes into: values (default) or keys.")] = None,
    hidden: Annotated[int | None, typer.Option(help="Width of the models (512).")] = None,
    layers: Annotated[int | None, typer.Option(help="Blocks (8).")] = None,
    heads: Annotated[int | None, typer.Option(help="Heads a layer (8).")] = None,
    head_dim: Annotated[int | None, typer.Option(help="Key and value dim of the Bayesian Layer (64).")] = None,
    mlp: Annotated[int | None, typer.Option(help="Inner width of the Bayesian MLP (8/3 of the model).")] = None,
    output_gate: Annotated[str | None, typer.Option(help="silu (the layers' default), sigmoid or none.")] = None,
    decay_init: Annotated[
        float | None, typer.Option(help="Share of the mean kept a token at first (drawn, as Mamba-2's).")
    ] = None,
    learning_rate: Annotated[
        list[float] | None, typer.Option("--lr", help="Try this one; may be repeated (1e-3, 2e-3, 4e-3).")
    ] = None,
    seeds: shared.Seeds = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens to train each on (10 million).")] = None,
    length: Annotated[int | None, typer.Option(help="Tokens a row (2048).")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows a step (16).")] = None,
    micro_batch: Annotated[int | None, typer.Option(help="Rows at a time; the rest accumulates.")] = None,
    schedule: Annotated[str | None, typer.Option(help="cosine (default), wsd or constant.")] = None,
    bf16: shared.Bf16 = None,
    choice_tokens: Annotated[
        int | None, typer.Option(help="First held-out tokens, to choose learning rates by (131072).")
    ] = None,
    evaluate_tokens: Annotated[
        int | None, typer.Option(help="Held-out tokens after those, to test on (524288; 0: all).")
    ] = None,
    reach: Annotated[int | None, typer.Option(help="Longest tested context, in training lengths (4).")] = None,
    save_every: shared.SaveEvery = None,
    jobs: shared.Jobs = 1,
    time_limit: shared.TimeLimit = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="A tiny study that takes seconds, on the book in the package.")
    ] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Say what is due, and train nothing.")] = False,
) -> None:
    """Gated DeltaNet, Mamba-2, KDA, a diagonal Kalman filter and the Bayesian Layer, equally large, on any text.

    Learning rates are tried with the first seed and chosen on a part of the held-out text of its own; then the best
    goes on with the other seeds. OUT/language.md and OUT/img hold what the records say.
    """
    options = locals()
    from dataclasses import replace

    from bayesmem.experiments import language
    from bayesmem.experiments.job_process import quiet
    from bayesmem.experiments.language_config import SMOKE, Sweep
    from bayesmem.experiments.language_stages import due
    from bayesmem.report.records import records_in

    quiet()
    base = SMOKE if smoke else Sweep()
    shape = {"hidden_size": hidden, "num_layers": layers, "num_heads": heads, "head_dim": head_dim, "widened": widened}
    mixer = _given({"output_gate": output_gate, "decay_init": decay_init})
    named = ("tokens", "length", "batch_size", "micro_batch", "schedule", "bf16", "choice_tokens", "evaluate_tokens")
    recipe = {name: options[name] for name in (*named, "reach", "save_every")}
    given = {
        "models": tuple(model or ()) or None,
        "matched": tuple(matched or ()) or None,
        "learning_rates": tuple(learning_rate or ()) or None,
        "seeds": tuple(range(seeds)) if seeds else None,
        "shape": replace(base.shape, **_given(shape | {"intermediate_size": mlp}), mixer=mixer),
        "recipe": replace(base.recipe, **_given(recipe)),
    }
    sweep = replace(base, **_given(given))
    if smoke and not data:
        texts = language.book(out)
    else:
        texts = language.Texts(
            tuple(data or ()), tuple(held_out or ()), text_field, tokenizer or "bpe", vocab, prepared
        )
    text = language.prepare(texts, sweep, out, _say)
    if plan:
        found = due(sweep, text, records_in(out).all())
        for job in found.jobs:
            _say(job.folder)
        _say(f"{len(found.jobs)} due, {found.done} done; waiting: {'; '.join(found.waiting) or 'nothing'}")
        return
    try:
        outcome = language.run_study(sweep, text, out, jobs, time_limit, _say)
    finally:
        _report(out)
    for word in outcome.waiting:
        _say(f"not run yet, it waits: {word}")
    _say(f"{outcome.finished} finished, {outcome.left} left; the same command goes on from {out}.")
    if outcome.failed:
        told = "; ".join(f"{name} ({log})" for name, log in outcome.failed.items())
        raise ValueError(f"{len(outcome.failed)} jobs failed: {told}. Mend the cause and run the same command.")


def _report(out: Path) -> None:
    """What the records say so far, as a page and pictures."""
    from bayesmem.report import language as report
    from bayesmem.report.records import records_in

    records = records_in(out)
    if text := report.section(records, out / "language.md", out / "img"):
        (out / "language.md").write_text(text, encoding="utf-8")
        (out / "img").mkdir(exist_ok=True)
        for name, picture in report.pictures(records).items():
            (out / "img" / f"{name}-light.svg").write_text(picture.light, encoding="utf-8")
            (out / "img" / f"{name}-dark.svg").write_text(picture.dark, encoding="utf-8")
        _say(f"results: {(out / 'language.md').resolve()}")


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _say(text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)

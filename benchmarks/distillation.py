"""The run of docs/notes/006 from text to records, in one command that goes on where it was stopped.

    python benchmarks/distillation.py BOOKS.jsonl.xz HELD_OUT.jsonl.xz runs/distillation

A tokenizer of the books, retrieval text, a teacher on both, its distillation with all controls for three seeds, and
RULER on every arm: each step is a command of ``bayesmem``, printed before it runs, and is skipped where its result
lies in the folder already. On one H100 some half an hour; ``--smoke`` takes two minutes on a CPU and says nothing.

The measured run had the same text joined from tokens that had been prepared before, on a machine that could not hold
the rest of the books; the tokenizer, the documents and their order are the same.
"""

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from bayesmem.tasks.corpus import documents
from bayesmem.tasks.tokenizer import train_tokenizer

CONTROLS = ("control-tokens", "control-flops", "control-seconds")


@dataclass(frozen=True)
class Size:
    """How large the run is; the defaults are the measured one's."""

    vocab: int = 16_384
    books: int = 45  # documents of the books, from the first: 5.6 million tokens
    # Retrieval text: tokens, shortest, longest, needles at most, kinds, seed.
    retrieval: tuple[tuple[int, int, int, int, tuple[str, ...], int], ...] = (
        (4_000_000, 128, 1024, 8, (), 1),
        (3_000_000, 128, 384, 10, (), 2),
        (4_000_000, 96, 256, 8, ("numbers",), 3),
    )
    hidden: int = 512
    layers: int = 6
    heads: int = 8
    head_dim: int = 64
    mlp: int = 1408
    length: int = 1024
    teacher_tokens: int = 50_000_000
    teacher_rows: int = 32
    tokens: int = 2_621_440
    rows: int = 8
    held_out: int = 200_000
    asked: int = 1024  # tokens of RULER's shortest documents
    documents: int = 100
    log_every: int = 10
    seeds: tuple[int, ...] = (0, 1, 2)
    precision: tuple[str, ...] = ("--bf16",)


SMOKE = Size(
    vocab=400, books=2, retrieval=((4000, 64, 128, 2, (), 1), (4000, 64, 128, 2, ("numbers",), 2)), hidden=32, layers=1,
    heads=2, head_dim=16, mlp=48, length=128, teacher_tokens=8192, teacher_rows=4, tokens=8192, rows=4, held_out=2000,
    asked=512, documents=2, log_every=2, seeds=(0,), precision=(),
)  # fmt: skip


def run(*words: object) -> None:
    """One command of ``bayesmem``, said and run."""
    command = [str(word) for word in words]
    print("bayesmem " + shlex.join(command), flush=True)
    status = subprocess.run([sys.executable, "-m", "bayesmem.cli", *command]).returncode
    if status:
        print(f"this step ended with status {status}; the same command goes on from it.")
        raise typer.Exit(status)


def texts(books: Path, out: Path, size: Size) -> tuple[Path, list[Path]]:
    """A tokenizer of all books, and the files to train on: some of the books, and needles hidden in them."""
    tokenizer, part = out / "tokenizer", out / "books.jsonl"
    if not tokenizer.is_dir():
        train_tokenizer(documents([books]), size.vocab).save_pretrained(tokenizer)
    if not part.is_file():
        lines = [json.dumps({"text": text}) + "\n" for text in islice(documents([books]), size.books)]
        part.write_text("".join(lines), encoding="utf-8")
    files = [part]
    for index, (tokens, shortest, longest, needles, kinds, seed) in enumerate(size.retrieval, 1):
        files.append(out / f"needles{index}.jsonl")
        if not files[-1].is_file():
            run(
                "eval", "retrieval-text", files[-1], "--tokens", tokens, "--shortest", shortest, "--longest", longest,
                "--needles", needles, *(word for kind in kinds for word in ("--kind", kind)), "--seed", seed,
                "--tokenizer", tokenizer, "--haystack", part,
            )  # fmt: skip
    return tokenizer, files


def main(
    books: Annotated[Path, typer.Argument(exists=True, help="Text to train on, one document a JSON line.")],
    held_out: Annotated[Path, typer.Argument(exists=True, help="Other text.")],
    out: Annotated[Path, typer.Argument(file_okay=False, help="Folder of all output.")] = Path("runs/distillation"),
    retention: Annotated[float, typer.Option(help="Certainty kept a token at first.")] = 0.9,
    learning_rate: Annotated[float, typer.Option("--lr", help="Of student and controls.")] = 1.5e-4,
    gate_rate: Annotated[float, typer.Option(help="Of the retention's gates, over the others'.")] = 20,
    smoke: Annotated[bool, typer.Option("--smoke", help="Tiny, for a test.")] = False,
) -> None:
    """Run all of it; see the top of this file."""
    size = SMOKE if smoke else Size()
    out.mkdir(parents=True, exist_ok=True)
    tokenizer, files = texts(books, out, size)
    mixer = {"num_heads": size.heads, "head_dim": size.head_dim, "design": "gated_deltanet", "output_gate": "none"}
    shape = {"vocab_size": size.vocab, "hidden_size": size.hidden, "intermediate_size": size.mlp}
    shape |= {"num_hidden_layers": size.layers, "tie_word_embeddings": True, "mixer": mixer}
    (out / "teacher.json").write_text(json.dumps(shape))
    shared = [
        "--held-out", held_out, "--prepared", out / "prepared", *size.precision, "--length", size.length,
        "--evaluate-tokens", size.held_out, "--evaluate-every", 100_000, "--log-every", size.log_every,
    ]  # fmt: skip
    teacher = out / "teacher"
    if not (teacher / "model").is_dir():
        started = ["--resume"] if (teacher / "run.json").is_file() else []
        run(
            "train", *files, *shared, "--tokenizer", tokenizer, "--config", out / "teacher.json", "--batch-size",
            size.teacher_rows, "--tokens", size.teacher_tokens, "--lr", 3e-3, "--out", teacher, *started,
        )  # fmt: skip
    lengths = [word for times in (1, 2, 4, 8) for word in ("--length", times * size.asked)]
    evaluate = ["--task", "s-niah", *lengths, "--documents", size.documents, "--batch-size", min(50, size.documents)]
    evaluate += [*size.precision, "--haystack", out / "books.jsonl", "--out", out / "ruler"]
    run("eval", "ruler", teacher / "model", "--label", "teacher", *evaluate)
    for seed in size.seeds:
        arms = out / f"seed{seed}"
        started = ["--resume"] if (arms / "run.json").is_file() else []
        data = [word for file in files for word in ("--data", file)]
        run(
            "distill", "--teacher", teacher / "model", *data, *shared, "--tokens", size.tokens, "--batch-size",
            size.rows, "--lr", learning_rate, "--retention", retention, "--gate-rate", gate_rate, "--seed", seed,
            "--out", arms, *started,
        )  # fmt: skip
        names = ("student", *CONTROLS)
        labels = [word for name in names for word in ("--label", f"{name}-{seed}")]
        run("eval", "ruler", *(arms / name for name in names), *labels, *evaluate)
    records = [(out / f"seed{seed}" / "records.jsonl").read_text() for seed in size.seeds]
    (out / "distill.jsonl").write_text("".join(records))
    (out / "ruler.jsonl").write_text((out / "ruler" / "records.jsonl").read_text())
    print(f"records: {out / 'distill.jsonl'} and {out / 'ruler.jsonl'}, which `bayesmem report` reads in docs/records")


if __name__ == "__main__":
    typer.run(main)

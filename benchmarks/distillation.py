"""The run of docs/notes/006 from text to records, in one command that goes on where it was stopped.

    python benchmarks/distillation.py BOOKS.jsonl.xz HELD_OUT.jsonl.xz runs/distillation

A tokenizer of the books, retrieval text, a teacher on both, its distillation with all controls for three seeds, and
RULER on every arm: each step is a command of ``bayesmem``, printed before it runs, and is skipped where its result
lies in the folder already. On one H100 an estimated half an hour; ``--smoke`` takes a minute on a CPU and says nothing.

``--text teacher --retention 0.9 --gate-rate 20 --ruler-seed 0`` is the second run of the note (seeds 0 to 2: ``Size``),
``--text teacher --retention 0.5 --gate-rate 10 --lr 5e-4 --ruler-seed 0`` the first. The measured runs had the same
text joined from tokens that had been prepared before, on a machine that could not hold the books; the tokenizer, the
documents and their order are the same.
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
Needles = tuple[int, int, int, int, tuple[str, ...], int]  # tokens, shortest, longest, at most, kinds, seed
# Where the text is new to the teacher, the teacher has less to say about it.
MIX = ("--align-weight", "0:0.3,0.3:0", "--kl-weight", "0.2", "--ce-weight", "1")


@dataclass(frozen=True)
class Size:
    """How large the run is; the defaults are the measured one's."""

    vocab: int = 16_384
    books: int = 45  # documents of the books, from the first: 5.6 million tokens
    retrieval: tuple[Needles, ...] = (
        (4_000_000, 128, 1024, 8, (), 1),
        (3_000_000, 128, 384, 10, (), 2),
        (4_000_000, 96, 256, 8, ("numbers",), 3),
    )
    fresh: int = 12  # documents of the books after those, which the teacher never saw: 1.6 million tokens
    longer: tuple[Needles, ...] = ((1_200_000, 256, 2048, 16, (), 11), (500_000, 128, 512, 12, ("numbers",), 12))
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
    seeds: tuple[int, ...] = (1, 2, 3)  # the retention was chosen with seed 0
    precision: tuple[str, ...] = ("--bf16",)


SMOKE = Size(
    vocab=400, books=2, retrieval=((4000, 64, 128, 2, (), 1), (4000, 64, 128, 2, ("numbers",), 2)), fresh=1,
    longer=((4000, 64, 256, 3, (), 11),), hidden=32, layers=1,
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


def tokenizer_of(books: Path, out: Path, size: Size) -> Path:
    """A tokenizer of all books."""
    tokenizer = out / "tokenizer"
    if not tokenizer.is_dir():
        train_tokenizer(documents([books]), size.vocab).save_pretrained(tokenizer)
    return tokenizer


def texts(
    books: Path, first: int, count: int, needles: tuple[Needles, ...], names: tuple[str, str], out: Path
) -> list[Path]:
    """Files to train on: some of the books, and needles hidden in them.

    Args:
        books: all.
        first: of the documents.
        count: of the documents.
        needles: retrieval text, a file each.
        names: of the part of the books, and of the needles.
        out: folder of all, the tokenizer's too.
    """
    part = out / f"{names[0]}.jsonl"
    if not part.is_file():
        lines = [json.dumps({"text": text}) + "\n" for text in islice(documents([books]), first, first + count)]
        part.write_text("".join(lines), encoding="utf-8")
    files = [part]
    for index, (tokens, shortest, longest, most, kinds, seed) in enumerate(needles, 1):
        files.append(out / f"{names[1]}{index}.jsonl")
        if not files[-1].is_file():
            run(
                "eval", "retrieval-text", files[-1], "--tokens", tokens, "--shortest", shortest, "--longest", longest,
                "--needles", most, *(word for kind in kinds for word in ("--kind", kind)), "--seed", seed,
                "--tokenizer", out / "tokenizer", "--haystack", part,
            )  # fmt: skip
    return files


def main(
    books: Annotated[Path, typer.Argument(exists=True, help="Text to train on, one document a JSON line.")],
    held_out: Annotated[Path, typer.Argument(exists=True, help="Other text.")],
    out: Annotated[Path, typer.Argument(file_okay=False, help="Folder of all output.")] = Path("runs/distillation"),
    text: Annotated[
        str,
        typer.Option(help="To distil on: long (new to the teacher, rows of twice its length) or teacher (its own)."),
    ] = "long",
    retention: Annotated[float, typer.Option(help="Certainty kept a token at first.")] = 0.99,
    learning_rate: Annotated[float, typer.Option("--lr", help="Of student and controls.")] = 1.5e-4,
    gate_rate: Annotated[float, typer.Option(help="Of the retention's gates, over the others'.")] = 1,
    ruler_seed: Annotated[int, typer.Option(help="Of RULER's documents.")] = 1,
    smoke: Annotated[bool, typer.Option("--smoke", help="Tiny, for a test.")] = False,
) -> None:
    """Run all of it; see the top of this file."""
    if text not in ("long", "teacher"):
        raise typer.BadParameter(f"{text!r}; expected long or teacher.", param_hint="--text")
    size = SMOKE if smoke else Size()
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_of(books, out, size)
    files = texts(books, 0, size.books, size.retrieval, ("books", "needles"), out)
    mixer = {"num_heads": size.heads, "head_dim": size.head_dim, "design": "gated_deltanet", "output_gate": "none"}
    shape = {"vocab_size": size.vocab, "hidden_size": size.hidden, "intermediate_size": size.mlp}
    shape |= {"num_hidden_layers": size.layers, "tie_word_embeddings": True, "mixer": mixer}
    (out / "teacher.json").write_text(json.dumps(shape))
    shared: list[object] = [
        "--held-out", held_out, *size.precision, "--evaluate-tokens", size.held_out, "--evaluate-every", 100_000,
        "--log-every", size.log_every,
    ]  # fmt: skip
    rows: list[object] = ["--prepared", out / "prepared", "--length", size.length]
    teacher = out / "teacher"
    if not (teacher / "model").is_dir():
        started = ["--resume"] if (teacher / "run.json").is_file() else []
        run(
            "train", *files, *shared, *rows, "--tokenizer", tokenizer, "--config", out / "teacher.json", "--batch-size",
            size.teacher_rows, "--tokens", size.teacher_tokens, "--lr", 3e-3, "--out", teacher, *started,
        )  # fmt: skip
    lengths: list[object] = [word for times in (1, 2, 4, 8) for word in ("--length", times * size.asked)]
    evaluate: list[object] = [
        "--task",
        "s-niah",
        *lengths,
        "--documents",
        size.documents,
        "--batch-size",
        min(50, size.documents),
    ]
    evaluate += [*size.precision, "--haystack", held_out, "--seed", ruler_seed, "--out", out / "ruler"]
    run("eval", "ruler", teacher / "model", "--label", "teacher", *evaluate)
    batch, mix = size.rows, tuple[str, ...]()
    arm = f"{text}-{retention:g}-{gate_rate:g}-{learning_rate:g}"
    if text == "long":
        files = texts(books, size.books, size.fresh, size.longer, ("fresh", "longer"), out)
        rows = ["--prepared", out / "prepared-long", "--length", 2 * size.length]
        batch, mix = size.rows // 2, MIX
    for seed in size.seeds:
        arms = out / f"{arm}-seed{seed}"
        started = ["--resume"] if (arms / "run.json").is_file() else []
        data = [word for file in files for word in ("--data", file)]
        run(
            "distill", "--teacher", teacher / "model", *data, *shared, *rows, *mix, "--tokens", size.tokens,
            "--batch-size", batch, "--lr", learning_rate, "--retention", retention, "--gate-rate", gate_rate,
            "--seed", seed, "--out", arms, *started,
        )  # fmt: skip
        names = ("student", *CONTROLS)
        labels = [word for name in names for word in ("--label", f"{name}-{seed}")]
        run("eval", "ruler", *(arms / name for name in names), *labels, *evaluate)
    records = [(out / f"{arm}-seed{seed}" / "records.jsonl").read_text() for seed in size.seeds]
    (out / "distill.jsonl").write_text("".join(records))
    (out / "ruler.jsonl").write_text((out / "ruler" / "records.jsonl").read_text())
    print(f"records: {out / 'distill.jsonl'} and {out / 'ruler.jsonl'}, which `bayesmem report` reads in docs/records")


if __name__ == "__main__":
    typer.run(main)

"""Language models from scratch at equal state and equal parameters: the whole study, from texts to records."""

import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from bayesmem.experiments.job_queue import Due, Outcome, Tell, Work, run_jobs
from bayesmem.experiments.language_config import EXPERIMENT, Job, Sweep
from bayesmem.experiments.language_job import PREPARED, TOKENIZER, run
from bayesmem.experiments.language_stages import due
from bayesmem.experiments.pretrain import find_texts, prepare_texts
from bayesmem.report.records import records_in
from bayesmem.tasks.text import BOOK
from bayesmem.train import RunConfig
from bayesmem.train.checkpoints import full_disk_told, write_whole

COMMAND = (sys.executable, "-m", "bayesmem.experiments.language_job")


@dataclass(frozen=True, slots=True)
class Texts:
    """What is trained on and held out; as of ``RunConfig``.

    Attributes:
        data: files and folders to train on.
        held_out: files and folders to choose learning rates and to test on.
        text_field: key of the text in JSON lines.
        tokenizer: ``bytes``, ``bpe`` or a folder.
        vocab: tokens of a BPE that is trained.
        prepared: folder of tokens, which may have been made before; ``None``: in the study's own.
    """

    data: tuple[str, ...]
    held_out: tuple[str, ...]
    text_field: str = "text"
    tokenizer: str = "bpe"
    vocab: int = 16384
    prepared: str | None = None


def book(out: Path) -> Texts:
    """The book of the package as two files in ``out``, in bytes: for a smoke run."""
    text = (resources.files("bayesmem") / "data" / BOOK).read_text(encoding="utf-8")
    out.mkdir(parents=True, exist_ok=True)
    parts = {"train": text[: 9 * len(text) // 10], "held_out": text[9 * len(text) // 10 :]}
    for name, part in parts.items():
        write_whole(out / f"{name}.txt", part)
    return Texts((str(out / "train.txt"),), (str(out / "held_out.txt"),), tokenizer="bytes")


def prepare(texts: Texts, sweep: Sweep, out: Path, tell: Tell = print) -> dict[str, str]:
    """Tokens and tokenizer, made or found, where the jobs look for them.

    Args:
        texts: to make them of.
        sweep: that they are for.
        out: folder of the study.
        tell: is told what happens.

    Returns:
        Fingerprints of the tokens that are trained on and held out.

    Raises:
        ValueError: texts that are not there, too short for the sweep, or others than those in the folder.
    """
    if not texts.held_out:
        raise ValueError("no held-out text; name files to choose learning rates and to test on (--held-out).")
    folder = Path(texts.prepared) if texts.prepared else out / "data"
    config = RunConfig(
        data=texts.data,
        held_out=texts.held_out,
        text_field=texts.text_field,
        tokenizer=texts.tokenizer,
        vocab=texts.vocab,
    )
    files, held_files = find_texts(config, folder)
    out.mkdir(parents=True, exist_ok=True)
    with full_disk_told(folder.parent, "tokens"):
        tokenizer, train, held = prepare_texts(config, folder, files, held_files, tell)
        assert held is not None
        kept = sweep.recipe.choice_tokens
        if len(held.tokens) < 2 * kept:
            raise ValueError(
                f"the held-out text has {len(held.tokens):,} tokens, {kept:,} of them for choosing learning rates; "
                "expected at least as many to test on. Give more text, or a smaller --choice-tokens."
            )
        tokenizer.save_pretrained(out / TOKENIZER)
        write_whole(out / PREPARED, str(folder.resolve()))
    tell(f"{train.counts.tokens:,} tokens to train on, {held.counts.tokens:,} held out, vocabulary {len(tokenizer):,}")
    return {"train": train.counts.made_from, "held_out": held.counts.made_from}


def run_study(
    sweep: Sweep, text: dict[str, str], out: Path, jobs: int = 1, time_limit: float | None = None, tell: Tell = print
) -> Outcome:
    """Run what is due of a study, as far as the time allows.

    Records lie in ``out/records.jsonl``, what is under way in ``out/jobs``; the same call with the same folder goes on.

    Args:
        sweep: the study.
        text: what ``prepare`` returned for the same folder.
        out: folder of all output.
        jobs: how many train side by side; they share the visible GPUs evenly.
        time_limit: seconds after which those under way save and stop (which takes some seconds more).
        tell: is told what happens.

    Raises:
        ValueError: settings that do not fit.
        KeyboardInterrupt: Ctrl-C or SIGTERM; those under way have saved.
    """

    def left() -> Due[Job]:
        return due(sweep, text, records_in(out).all())

    return run_jobs(Work(COMMAND, run, left, lambda job: _told(job, out)), out, jobs, time_limit, tell)


def _told(job: Job, out: Path) -> str:
    record = records_in(out).find(EXPERIMENT, job.model, job.settings)
    if record is None:
        return f"{job.folder} was done already"
    figures = record.figures
    if "diverged" in figures:
        return f"{job.folder} diverged"
    last = figures["bins"][-1]
    return (
        f"{job.folder}  {figures['bits_per_byte']:.4f} bits per byte, {last['bits_per_byte']:.4f} from position "
        f"{last['from']:,} on"
    )

"""A run of language modelling, from texts to a model that loads: tokenizer, tokens, model, training."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, TrainingArguments

from bayesmem.models import BayesMemConfig, BayesMemForCausalLM
from bayesmem.tasks import corpus
from bayesmem.tasks.prepared import Counts, Prepared, open_prepared, prepare
from bayesmem.tasks.tokenizer import byte_tokenizer, load_tokenizer, train_tokenizer
from bayesmem.train import LanguageResult, RunConfig, Streams, TokenRows, arguments, train_language
from bayesmem.train.checkpoints import full_disk_told, write_whole

RUN = "run.json"
Tell = Callable[[str], None]


@runtime_checkable
class Saved(Protocol):
    """A run's config, as it is kept in its folder."""

    def to_json(self) -> str:
        """As text."""
        ...


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run left, and what it was made of.

    Attributes:
        language: losses, evaluations and the model's folder.
        parameters: of the model.
        state: numbers a sequence's belief takes in all recurrent layers; 0 for another library's model.
    """

    language: LanguageResult
    parameters: int
    state: int


def run(config: RunConfig, out: Path, *, resume: bool = False, tell: Tell = lambda _: None) -> RunResult:
    """Train a language model as ``config`` says, in folder ``out``.

    Args:
        config: of the run.
        out: folder of all output: ``run.json``, ``data``, ``checkpoint-N``, ``log.jsonl``, ``model``.
        resume: go on with the run that is there; nothing there is no error.
        tell: is told what happens.

    Raises:
        ValueError: bad input, another run's folder, or one to resume that is of another config.
        OSError: the disk is full.
        Interrupted: a signal came; a checkpoint was written first.
    """
    check_folder(config, out, resume)
    folder = Path(config.prepared) if config.prepared else out / "data"
    files, held_out = find_texts(config, folder)
    if config.start is None:
        _model_config(config, vocab=None)  # bad options are refused before any work
    args = arguments(config, out)
    tell = tell if args.process_index == 0 else lambda _: None
    with main_first(args):
        if args.process_index == 0:
            out.mkdir(parents=True, exist_ok=True)
            if not (out / RUN).is_file():
                write_whole(out / RUN, config.to_json())
        with full_disk_told(folder.parent, "tokens"):
            tokenizer, train, held = prepare_texts(config, folder, files, held_out, tell)
    streams = streams_of(config, train, held, args)
    model = _model(config, tokenizer)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    parameters, state = model.num_parameters(), _state(model)
    tell(
        f"{parameters:,} parameters, {config.steps:,} steps of {config.step_tokens:,} tokens; "
        f"{train.counts.tokens:,} tokens of text"
    )
    return RunResult(train_language(model, tokenizer, streams, config, args), parameters, state)


def check_folder(config: Saved, out: Path, resume: bool) -> None:
    """Refuse a folder that is another run's.

    Raises:
        ValueError: it is, or it is this run's and nobody said to resume.
    """
    if not (out / RUN).is_file():
        if out.is_dir() and (strangers := sorted(path.name for path in out.glob("checkpoint-*"))):
            raise ValueError(f"{out} holds {strangers[0]} and no {RUN}, so it is no run of ours; give another --out.")
        return
    if not resume:
        raise ValueError(f"{out} holds a run already; go on with it by --resume, or give another --out.")
    before, now = (json.loads(text) for text in ((out / RUN).read_text(), config.to_json()))
    if before != now:
        names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
        told = "; ".join(f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in names)
        raise ValueError(
            f"{out} holds a run with other settings: {told}. Resume it with its own, or give another --out."
        )


def saved_config(out: Path) -> RunConfig | None:
    """The config of the run in a folder; ``None`` where there is none.

    Raises:
        ValueError: it is there and cannot be read.
    """
    path = out / RUN
    if not path.is_file():
        return None
    try:
        return RunConfig.from_json(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


@contextmanager
def main_first(args: TrainingArguments) -> Iterator[None]:
    """The main process alone, then the others, who find what it made."""
    if args.world_size == 1:
        yield
        return
    dist.barrier()  # all have looked at the folder before it changes
    if args.process_index:
        dist.barrier()
    try:
        yield
    finally:
        if not args.process_index:
            dist.barrier()


def find_texts(config: RunConfig, folder: Path) -> tuple[list[Path], list[Path]]:
    """Training and held-out files. Where tokens are prepared already their sources may be gone.

    Raises:
        ValueError: a file that is not there, or one that is trained on and held out.
    """
    try:
        files = corpus.find_files(config.data)
        held_out = corpus.find_files(config.held_out) if config.held_out else []
    except ValueError:
        if (folder / "train.json").is_file():
            return [], []
        raise
    if shared := {path.resolve() for path in files} & {path.resolve() for path in held_out}:
        raise ValueError(f"{min(shared)} is trained on and held out; take it out of one of them.")
    return files, held_out


def prepare_texts(
    config: RunConfig, folder: Path, files: list[Path], held_out: list[Path], tell: Tell = lambda _: None
) -> tuple[PreTrainedTokenizerFast, Prepared, Prepared | None]:
    """Tokenizer, and tokens to train and evaluate on; what is in ``folder`` is opened, the rest is made.

    Args:
        config: of the run.
        folder: of the tokens and of a tokenizer trained here.
        files: to train on, as of ``find_texts``.
        held_out: to evaluate on.
        tell: is told what happens.
    """
    tokenizer = _tokenizer(config, folder, files, tell)
    train = prepared_text(config, folder, "train", files, tokenizer, tell)
    held = prepared_text(config, folder, "held_out", held_out, tokenizer, tell) if config.held_out else None
    return tokenizer, train, held


def _tokenizer(config: RunConfig, folder: Path, files: list[Path], tell: Tell) -> PreTrainedTokenizerFast:
    if config.start is not None:
        return load_tokenizer(config.start)
    if config.tokenizer == "bytes":
        return byte_tokenizer()
    if config.tokenizer != "bpe":
        return load_tokenizer(config.tokenizer)
    place = folder / f"bpe-{config.vocab}"
    if not place.is_dir():
        tell(f"training a tokenizer of {config.vocab} tokens")
        trained = train_tokenizer(corpus.documents(files, config.text_field), config.vocab)
        beside = place.with_name(f"{place.name}.{os.getpid()}")
        trained.save_pretrained(beside)
        try:
            beside.rename(place)
        except OSError:
            if not place.is_dir():  # another run has just made the same
                raise
            shutil.rmtree(beside)
    return load_tokenizer(place)


def prepared_text(
    config: RunConfig, folder: Path, name: str, files: list[Path], tokenizer: PreTrainedTokenizerFast, tell: Tell
) -> Prepared:
    """A corpus as tokens, made or opened; as of ``prepare``."""
    if not files:
        return open_prepared(folder, name)
    made_from = {"files": [[path.name, path.stat().st_size] for path in files], "field": config.text_field}
    told = 0

    def progress(counts: Counts) -> None:
        nonlocal told
        if counts.bytes - told >= 2**26:
            told = counts.bytes
            tell(f"{name}: {counts.tokens:,} tokens of {counts.bytes / 2**20:,.0f} MiB so far")

    return prepare(folder, name, lambda: corpus.documents(files, config.text_field), tokenizer, made_from, progress)


def streams_of(config: RunConfig, train: Prepared, held: Prepared | None, args: TrainingArguments) -> Streams:
    """Rows to train on, as many as the budget pays for, and rows to evaluate on."""
    rows = TokenRows(
        train.tokens,
        config.length,
        config.steps * config.batch_size,
        seed=config.seed,
        starts=train.starts if config.isolate else None,
    )
    if held is None:
        return Streams(rows)
    tokens = held.tokens[: config.evaluate_tokens] if config.evaluate_tokens else held.tokens
    starts = held.starts if config.isolate else None
    at_once = args.per_device_eval_batch_size * args.world_size
    whole = len(TokenRows(tokens, config.length, starts=starts))
    evaluated = TokenRows(tokens, config.length, -(-whole // at_once) * at_once, starts=starts)
    return Streams(rows, evaluated, held.tokens_per_byte)


def _model(config: RunConfig, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    if config.start is not None:
        model = AutoModelForCausalLM.from_pretrained(config.start, dtype=torch.float32)
        if len(tokenizer) > model.config.vocab_size:
            raise ValueError(
                f"the tokenizer in {config.start} has {len(tokenizer)} tokens, its model {model.config.vocab_size}; "
                "they do not belong together."
            )
        return model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return BayesMemForCausalLM(_model_config(config, len(tokenizer)))


def _model_config(config: RunConfig, vocab: int | None) -> BayesMemConfig:
    """The model's config; ``vocab`` is the tokenizer's, ``None`` before there is one."""
    given = dict(config.model)
    asked = given.get("vocab_size")
    if vocab is not None:
        if asked is not None and asked < vocab:
            raise ValueError(f"the model's vocab_size is {asked}, the tokenizer has {vocab} tokens; make it as large.")
        given.setdefault("vocab_size", vocab)
    try:
        return BayesMemConfig(**given)
    except TypeError as error:
        raise ValueError(f"model options {sorted(given)}: {error}.") from error


def _state(model: PreTrainedModel) -> int:
    if not isinstance(model, BayesMemForCausalLM):
        return 0
    return sum(getattr(mixer, "state_size", 0) for mixer in model.config.mixer_configs())

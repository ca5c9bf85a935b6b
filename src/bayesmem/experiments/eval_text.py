"""Perplexity and bits per byte of a text, overall and by the token's position in its context."""

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from rich.progress import BarColumn, Progress, TextColumn
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from bayesmem.experiments.eval_checkpoint import Checkpoint
from bayesmem.report.records import Record, records_in
from bayesmem.report.ruler import TEXT
from bayesmem.tasks.corpus import documents, find_files, pieces

IGNORED = -100
FIRST_BIN = 64
AGREE = 1e-3  # nats a token by which a context in pieces may differ from the whole, in float32


@dataclass(frozen=True, slots=True)
class TextConfig:
    """What is evaluated, and how.

    Attributes:
        files: text files, folders or JSON lines.
        length: tokens of a context. Documents are cut into contexts; each begins with no memory.
        tokens: evaluate on the first so many; 0 is all.
        batch_size: contexts side by side.
        piece: tokens at a time, the memory carried on between; it bounds the memory that logits take.
        bf16: mixed precision.
        field: key of the text in JSON lines.

    Raises:
        ValueError: numbers below their least.
    """

    files: tuple[str, ...]
    length: int = 4096
    tokens: int = 0
    batch_size: int = 4
    piece: int = 1024
    bf16: bool = False
    field: str = "text"

    def __post_init__(self) -> None:
        for name, least in (("length", 2), ("tokens", 0), ("batch_size", 1), ("piece", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {least}.")


@dataclass(frozen=True, slots=True)
class Context:
    """Tokens of one document that are predicted from what stands before them in the context.

    Attributes:
        inputs: the token before each.
        targets: the tokens.
        sizes: bytes of text that each target stands for.
    """

    inputs: list[int]
    targets: list[int]
    sizes: list[int]


def run(config: TextConfig, checkpoint: Checkpoint, out: Path, tell: Callable[[str], None] = lambda _: None) -> Record:
    """Evaluate, or find the record of having done so.

    Args:
        config: what is evaluated.
        checkpoint: the model.
        out: folder of ``records.jsonl``.
        tell: where progress goes.

    Raises:
        ValueError: no text, or files that cannot be read.
    """
    files, records = find_files(config.files), records_in(out)
    settings = {
        "weights": checkpoint.weights,
        "files": [path.name for path in files],
        "text": _mark(files),
        "length": config.length,
        "tokens": config.tokens,
        "bf16": config.bf16,
        "field": config.field,
    }
    if (before := records.find(TEXT, checkpoint.label, settings)) is not None:
        return before
    if not _continues(checkpoint.model) and config.piece < config.length:
        tell("contexts are read whole: this model's memory does not carry on from one piece to the next exactly.")
    return records.add(TEXT, checkpoint.label, settings, measure(config, checkpoint, documents(files, config.field)))


def measure(config: TextConfig, checkpoint: Checkpoint, texts: Iterable[str]) -> dict[str, Any]:
    """The figures of a text.

    Args:
        config: what is evaluated; its files are not looked at.
        checkpoint: the model.
        texts: documents.

    Returns:
        ``bits_per_byte``, ``perplexity`` (of a token), ``nats``, ``tokens``, ``bytes``, ``seconds``, and ``bins``: the
        same by position in the context, from ``from`` tokens to below ``to``.
    """
    piece = config.piece if _continues(checkpoint.model) else config.length
    sums = np.zeros((3, config.length))  # nats, tokens and bytes by position
    start = time.perf_counter()
    with Progress(TextColumn("text"), BarColumn(), TextColumn("{task.completed:,} tokens"), transient=True) as progress:
        bar = progress.add_task("", total=config.tokens or None)
        found = contexts(texts, checkpoint.tokenizer, config.length, config.tokens)
        for batch in _batches(found, config.batch_size):
            longest = max(len(one.targets) for one in batch)
            # Behind the text, where nothing that counts can see it: a causal model needs no mask for it.
            ids = torch.tensor([one.inputs + [0] * (longest - len(one.inputs)) for one in batch])
            targets = torch.tensor([one.targets + [IGNORED] * (longest - len(one.targets)) for one in batch])
            nats = token_nats(checkpoint.model, ids, targets, piece, bf16=config.bf16)
            for row, one in zip(nats.cpu().double().numpy(), batch, strict=True):
                count = len(one.targets)
                sums[:, :count] += [row[:count], np.ones(count), one.sizes]
            progress.advance(bar, sum(len(one.targets) for one in batch))
    if not sums[1].sum():
        raise ValueError("the files hold no text; there is nothing to evaluate.")
    bins = []
    for low, high in edges(config.length):
        if sums[1, low:high].sum():
            bins.append({"from": low, "to": high} | _figures(sums[:, low:high].sum(1)))
    return _figures(sums.sum(1)) | {"bins": bins, "seconds": round(time.perf_counter() - start, 2)}


def contexts(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerFast, length: int, tokens: int = 0
) -> Iterator[Context]:
    """Documents cut into contexts; the first token of a document is predicted from the end-of-text before it.

    Args:
        texts: documents.
        tokenizer: to ids.
        length: tokens at most.
        tokens: stop after so many; 0 is never.
    """
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    left = tokens or None
    for text in texts:
        before, ids, sizes = first, list[int](), list[int]()
        for part in pieces(text):
            new, new_sizes = encoded(tokenizer, part)
            ids, sizes = ids + new, sizes + new_sizes
            while len(ids) >= length or (ids and left is not None and len(ids) >= left):
                take = length if left is None else min(length, left)
                yield Context([before, *ids[: take - 1]], ids[:take], sizes[:take])
                before, ids, sizes = ids[take - 1], ids[take:], sizes[take:]
                if left is not None:
                    left -= take
                    if left == 0:
                        return
        if ids:
            yield Context([before, *ids[:-1]], ids, sizes)
            left = None if left is None else left - len(ids)


def encoded(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[list[int], list[int]]:
    """Ids of a text, what looks like a special token in it being text, and the bytes that each stands for."""
    backend = tokenizer.backend_tokenizer
    before, backend.encode_special_tokens = backend.encode_special_tokens, True
    try:
        found = backend.encode(text, add_special_tokens=False)
    finally:
        backend.encode_special_tokens = before
    if not found.ids:
        return [], []
    ends = np.concatenate([[0], np.cumsum([len(letter.encode()) for letter in text])])
    stops = np.maximum.accumulate([stop for _, stop in found.offsets])  # tokens within one letter: the first has it all
    stops[-1] = len(text)
    return list(found.ids), np.diff(ends[stops], prepend=0).astype(int).tolist()


def edges(length: int) -> list[tuple[int, int]]:
    """Bins of positions, doubling from 64 on."""
    marks = [0]
    step = FIRST_BIN
    while step < length:
        marks.append(step)
        step *= 2
    return list(zip(marks, [*marks[1:], length], strict=True))


@torch.no_grad()
def token_nats(
    model: PreTrainedModel, ids: Int[Tensor, "B T"], targets: Int[Tensor, "B T"], piece: int, *, bf16: bool = False
) -> Float[Tensor, "B T"]:
    """Cross-entropy of every target; 0 where there is none.

    Args:
        model: a causal language model.
        ids: its inputs.
        targets: what stands after each, -100 for nothing.
        piece: tokens at a time.
        bf16: mixed precision.
    """
    memory, found = None, []
    device = model.device
    whole = ids.shape[1] <= piece
    for part, wanted in zip(ids.split(piece, 1), targets.split(piece, 1), strict=True):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            out = model(input_ids=part.to(device), past_key_values=memory, use_cache=not whole)
        memory = None if whole else out.past_key_values
        logits = out.logits.float().transpose(1, 2)
        found.append(cross_entropy(logits, wanted.to(device), ignore_index=IGNORED, reduction="none"))
    return torch.cat(found, 1)


def _continues(model: PreTrainedModel) -> bool:
    """Whether a context in pieces is the whole: asked of the model itself, over a few tokens."""
    vocab = model.get_input_embeddings().num_embeddings
    ids = torch.randint(vocab, (1, 24), generator=torch.Generator().manual_seed(0))
    whole = token_nats(model, ids, ids, 24)
    try:
        parts = token_nats(model, ids, ids, 9)
    except (TypeError, ValueError, AttributeError, RuntimeError):
        return False
    return bool((whole - parts).abs().max() < AGREE * max(1.0, float(whole.abs().max())))


def _figures(sums: Float[np.ndarray, " 3"]) -> dict[str, Any]:
    nats, tokens, size = map(float, sums)
    return {
        "bits_per_byte": nats / math.log(2) / size if size else math.nan,
        "perplexity": math.exp(min(nats / tokens, 700.0)),
        "nats": nats,
        "tokens": int(tokens),
        "bytes": int(size),
    }


def _batches(found: Iterator[Context], size: int) -> Iterator[list[Context]]:
    batch: list[Context] = []
    for one in found:
        batch.append(one)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _mark(files: Sequence[Path]) -> str:
    mark = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            mark.update(hashlib.file_digest(file, "sha256").digest())
    return mark.hexdigest()[:16]

"""A corpus as tokens in a file that is mapped, not read: made once, and shared by all ranks, runs and resumes."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer
from numpy import ndarray
from transformers import PreTrainedTokenizerFast

from bayesmem.tasks.corpus import pieces
from bayesmem.tasks.tokenizer import encode

BATCH = 256  # pieces tokenised together
SMALL = 2**16  # vocabularies up to here are stored in two bytes


@dataclass(frozen=True, slots=True)
class Counts:
    """What a prepared corpus holds.

    Attributes:
        tokens: the end of every document counted.
        bytes: of UTF-8 in all documents.
        documents: that are not empty.
        dtype: of the tokens on disk.
        made_from: fingerprint of sources and tokenizer.
    """

    tokens: int
    bytes: int
    documents: int
    dtype: str
    made_from: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """A corpus as one stream of tokens, every document followed by the end-of-text token.

    Attributes:
        tokens: mapped from disk, read-only.
        starts: where each document begins.
        counts: of it.
    """

    tokens: Integer[ndarray, " S"]
    starts: Integer[ndarray, " N"]
    counts: Counts

    @property
    def tokens_per_byte(self) -> float:
        """Tokens that a byte of text takes on average: what turns bits a token into bits a byte."""
        return self.counts.tokens / self.counts.bytes


def prepare(
    folder: Path,
    name: str,
    texts: Callable[[], Iterable[str]],
    tokenizer: PreTrainedTokenizerFast,
    made_from: dict[str, Any],
    tell: Callable[[Counts], None] | None = None,
) -> Prepared:
    """Tokenise a corpus into ``folder``, or open it where that was done before.

    Args:
        folder: holds ``NAME.tokens``, ``NAME.starts`` and, written last, ``NAME.json``.
        name: of the corpus there.
        texts: its documents.
        tokenizer: to ids.
        made_from: what identifies the sources; the tokenizer is added here.
        tell: called now and then with what has been counted.

    Raises:
        ValueError: a corpus without text, or ``folder`` holds one made from something else, or a damaged one.
        OSError: the disk is full.
    """
    mark = _fingerprint(made_from, tokenizer)
    if (folder / f"{name}.json").is_file():
        return open_prepared(folder, name, mark)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = np.dtype("<u2" if len(tokenizer) <= SMALL else "<u4")
    counts = Counts(0, 0, 0, dtype.str, mark)
    unfinished = [folder / f"{name}.{part}.{os.getpid()}" for part in ("tokens", "starts")]
    try:
        with unfinished[0].open("wb") as tokens, unfinished[1].open("wb") as starts:
            for ids, opens, size in _stream(texts(), tokenizer):
                starts.write((counts.tokens + np.array(opens)).astype("<u8").tobytes())
                tokens.write(np.asarray(ids).astype(dtype).tobytes())
                counts = Counts(
                    counts.tokens + len(ids), counts.bytes + size, counts.documents + len(opens), dtype.str, mark
                )
                if tell is not None:
                    tell(counts)
            for file in (tokens, starts):
                file.flush()
                os.fsync(file.fileno())
        if not counts.documents:
            raise ValueError(f"the {name} text is empty; there is nothing to make tokens of.")
        for path in unfinished:
            path.replace(path.with_suffix(""))
        label = folder / f"{name}.json.{os.getpid()}"
        label.write_text(json.dumps(asdict(counts), indent=1))
        label.replace(label.with_suffix(""))
    finally:
        for path in unfinished:
            path.unlink(missing_ok=True)
    return open_prepared(folder, name, mark)


def open_prepared(folder: Path, name: str, mark: str | None = None) -> Prepared:
    """A corpus that ``prepare`` made.

    Args:
        folder: of it.
        name: of the corpus there.
        mark: fingerprint it must have; ``None`` takes any.

    Raises:
        ValueError: it is not there, damaged, or made from something else.
    """
    label = folder / f"{name}.json"
    try:
        counts = Counts(**json.loads(label.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{label} is no prepared corpus ({error}); remove {folder} to make it anew.") from error
    if mark is not None and counts.made_from != mark:
        raise ValueError(
            f"{folder} holds {name} tokens of other texts or another tokenizer; give another --prepared or --out, or "
            "remove it."
        )
    dtype = np.dtype(counts.dtype)
    for part, need in (("tokens", counts.tokens * dtype.itemsize), ("starts", counts.documents * 8)):
        path = folder / f"{name}.{part}"
        size = path.stat().st_size if path.is_file() else -1
        if size != need:
            raise ValueError(
                f"{path} has {max(size, 0)} bytes; expected {need}. It is damaged: remove {folder} to make it anew."
            )
    tokens = np.memmap(folder / f"{name}.tokens", dtype=dtype, mode="r")
    return Prepared(tokens, np.fromfile(folder / f"{name}.starts", dtype="<u8").astype(np.int64), counts)


def _stream(texts: Iterable[str], tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[list[int], list[int], int]]:
    """Batches: ids, where in them documents begin, and the bytes they stand for."""
    batch: list[tuple[str, bool, bool]] = []  # a piece, whether it begins and whether it ends a document
    for text in texts:
        if not text:
            continue
        parts = list(pieces(text))
        for index, part in enumerate(parts):
            batch.append((part, index == 0, index == len(parts) - 1))
            if len(batch) == BATCH:
                yield _encoded(batch, tokenizer)
                batch = []
    if batch:
        yield _encoded(batch, tokenizer)


def _encoded(
    batch: list[tuple[str, bool, bool]], tokenizer: PreTrainedTokenizerFast
) -> tuple[list[int], list[int], int]:
    ids: list[int] = []
    opens: list[int] = []
    for new, (_, begins, ends) in zip(encode(tokenizer, [part for part, *_ in batch]), batch, strict=True):
        if begins:
            opens.append(len(ids))
        ids += new
        if ends:
            ids.append(tokenizer.eos_token_id)
    return ids, opens, sum(len(part.encode()) for part, *_ in batch)


def _fingerprint(made_from: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> str:
    text = json.dumps(made_from, sort_keys=True) + tokenizer.backend_tokenizer.to_str()
    return hashlib.sha256(text.encode()).hexdigest()

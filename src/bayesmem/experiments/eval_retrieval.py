"""Retrieval text for training, written from files: a haystack's text and a tokenizer in, JSON lines out."""

from collections.abc import Callable, Sequence
from pathlib import Path

from bayesmem.tasks.corpus import documents, find_files
from bayesmem.tasks.retrieval_text import RetrievalConfig, write
from bayesmem.tasks.tokenizer import byte_tokenizer, load_tokenizer

__all__ = ["RetrievalConfig", "run"]
LETTERS = 2**26  # of the haystack that are read


def run(
    config: RetrievalConfig,
    out: Path,
    tokenizer: str,
    haystack: Sequence[str] = (),
    field: str = "text",
    tell: Callable[[str], None] = lambda _: None,
) -> tuple[int, int]:
    """Write ``out``.

    Args:
        config: what the documents are like; without a haystack all of it is noise.
        out: the file of JSON lines.
        tokenizer: ``bytes``, or the folder of one.
        haystack: text files, folders or JSON lines.
        field: key of the text in JSON lines.
        tell: where progress goes.

    Returns:
        Documents and tokens written.

    Raises:
        ValueError: ``out`` is there already or is no ``.jsonl``, or files that cannot be read.
    """
    if out.suffix != ".jsonl":
        raise ValueError(f"{out} does not end in .jsonl, by which `bayesmem train` knows JSON lines; name it so.")
    if out.exists():
        raise ValueError(f"{out} is there already; remove it, or name another file.")
    text, files = "", find_files(haystack) if haystack else []
    for part in documents(files, field):
        text += part[: LETTERS - len(text)] + "\n"
        if len(text) >= LETTERS:
            break
    found = write(out, config, byte_tokenizer() if tokenizer == "bytes" else load_tokenizer(tokenizer), text)
    tell(f"{out}: {found[0]:,} documents, {found[1]:,} tokens")
    return found

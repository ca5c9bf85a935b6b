"""Documents from text files, folders and JSON lines, packed or not; one at a time, never all in memory."""

import gzip
import json
import lzma
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

TEXT, LINES = (".txt", ".md", ".text"), (".jsonl", ".ndjson")
PACKED = {".xz": lzma.open, ".gz": gzip.open}
PIECE = 2**16  # characters tokenised at a time


def find_files(paths: Sequence[str | Path]) -> list[Path]:
    """The files that documents are read from, in a fixed order.

    Args:
        paths: files, taken as they are, and folders, searched for text and JSON lines, sorted by name.

    Raises:
        ValueError: nothing given, a path that is not there, or a folder without such a file.
    """
    if not paths:
        raise ValueError("no text given; name text files, folders or .jsonl(.xz, .gz) files to train on.")
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(one for one in path.rglob("*") if one.is_file() and _kind(one) in (*TEXT, *LINES))
            if not found:
                kinds = ", ".join((*TEXT, *LINES))
                raise ValueError(f"{path} holds no file ending in {kinds}, or one of these and .xz or .gz.")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise ValueError(f"no file or folder at {path}.")
    return files


def documents(files: Sequence[Path], field: str = "text") -> Iterator[str]:
    """Every document: a text file is one, and so is the ``field`` of every line of JSON.

    Args:
        files: from ``find_files``.
        field: key of the text in a line of JSON.

    Raises:
        ValueError: a file that is damaged, cut short, or not UTF-8, or a line without such a text; it is named.
    """
    for path in files:
        try:
            with PACKED.get(path.suffix, open)(path, "rt", encoding="utf-8", newline="") as file:  # type: ignore[operator]
                yield from _lines(file, path, field) if _kind(path) in LINES else (file.read(),)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 ({error}); convert it, for example by iconv.") from error
        except (EOFError, lzma.LZMAError, gzip.BadGzipFile) as error:
            raise ValueError(f"{path} is damaged or cut short ({error}); copy it again.") from error


def pieces(text: str, size: int = PIECE) -> Iterator[str]:
    """A document in parts of about ``size`` characters, cut at the end of a line or word where there is one."""
    start = 0
    while len(text) - start > size:
        stop = start + size
        for mark in ("\n\n", "\n", " "):
            place = text.rfind(mark, start + size // 2, stop)
            if place > 0:
                stop = place + len(mark) if mark != " " else place  # a word's space belongs to the word
                break
        yield text[start:stop]
        start = stop
    yield text[start:]


def _lines(file: Iterable[str], path: Path, field: str) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: no JSON ({error}).") from error
        text = row.get(field) if isinstance(row, dict) else None
        if not isinstance(text, str):
            keys = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise ValueError(f"{path}, line {number}: no text in {field!r}, only {keys}; name the field with --field.")
        if "\\u" in line and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError(f"{path}, line {number}: half of a surrogate pair, which no UTF-8 holds; mend the line.")
        yield text


def _kind(path: Path) -> str:
    return path.with_suffix("").suffix if path.suffix in PACKED else path.suffix

"""What RULER takes from elsewhere, read from the user's files: a text to hide needles in, and questions."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bayesmem.tasks.corpus import documents, find_files

END = re.compile(r"[.!?][\"'\u201d\u2019)\]]*\s+(?=[\"'\u201c\u2018(\[]*[A-Z0-9])")
NO_END = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|Prof|Rev|Col|Gen|Capt|vs|No|[A-Z])\.$")
QA_FORMS = "SQuAD's JSON, HotpotQA's JSON, or JSON lines with question, answers and contexts"


def words(paths: Sequence[str | Path], count: int) -> list[str]:
    """The first words of a text, as RULER takes them: split at white space.

    Args:
        paths: text files, folders, or JSON lines, as of ``bayesmem train``.
        count: words at most.

    Raises:
        ValueError: a path that is not there, or one without text.
    """
    found: list[str] = []
    for text in documents(find_files(paths)):
        found += text[: 64 * (count - len(found))].split()  # words of 64 letters on average there are none
        if len(found) >= count:
            break
    if not found:
        raise ValueError(f"{', '.join(map(str, paths))}: no words to hide needles in; give a text.")
    return found[:count]


def sentences(text: str) -> list[str]:
    """A text in sentences, by rule: it decides where needles may stand, in place of nltk's punkt and its download."""
    parts, start = [], 0
    for match in END.finditer(text):
        if not NO_END.search(text[start : match.start() + 1]):
            parts.append(text[start : match.end()].strip())
            start = match.end()
    return [*parts, *filter(None, [text[start:].strip()])]


def questions(path: str | Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Questions with their answers, and the documents that answer them, as ``lm_eval`` holds them.

    Args:
        path: SQuAD 2.0's JSON, HotpotQA's JSON, or JSON lines with ``question``, ``answers`` and ``contexts``.

    Returns:
        One dict a question: ``query``, ``outputs``, ``context`` (documents it needs, as places in the second list) and
        ``more_context`` (its neighbours); and all documents.

    Raises:
        ValueError: no such file, or one of another form.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no file of questions at {path}; give {QA_FORMS}.")
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix in (".jsonl", ".ndjson"):
            found = list(_plain([json.loads(line) for line in text.splitlines() if line.strip()]))
        else:
            whole = json.loads(text)
            found = list(_squad(whole["data"]) if isinstance(whole, dict) else _hotpot(whole))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no questions that can be read ({error!r}); expected {QA_FORMS}.") from error
    if not found:
        raise ValueError(f"{path} holds no question with an answer; expected {QA_FORMS}.")
    texts = sorted({text for _, _, needed, more in found for text in (*needed, *more)})
    place = {text: index for index, text in enumerate(texts)}
    rows = [
        {
            "query": query,
            "outputs": answers,
            "context": [place[text] for text in needed],
            "more_context": sorted({place[text] for text in more} - {place[text] for text in needed}),
        }
        for query, answers, needed, more in found
    ]
    return rows, texts


Question = tuple[str, list[str], list[str], list[str]]  # question, answers, documents it needs, their neighbours


def _squad(articles: list[dict[str, Any]]) -> Iterator[Question]:
    for article in articles:
        near = [paragraph["context"] for paragraph in article["paragraphs"]]
        for paragraph in article["paragraphs"]:
            for one in paragraph["qas"]:
                if not one.get("is_impossible"):
                    yield one["question"], [a["text"] for a in one["answers"]], [paragraph["context"]], near


def _hotpot(rows: list[dict[str, Any]]) -> Iterator[Question]:
    for row in rows:
        yield row["question"], [row["answer"]], [f"{title}\n{''.join(text)}" for title, text in row["context"]], []


def _plain(rows: list[dict[str, Any]]) -> Iterator[Question]:
    for row in rows:
        answers, contexts = row["answers"], row["contexts"]
        if not all(isinstance(x, list) and x and all(isinstance(y, str) for y in x) for x in (answers, contexts)):
            raise TypeError("answers and contexts must be lists of texts")
        yield row["question"], answers, contexts, []

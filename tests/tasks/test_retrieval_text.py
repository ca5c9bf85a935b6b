"""Retrieval text for training: every question can be answered from its document, and lengths are as asked."""

import json
import re
from collections import Counter
from importlib import resources

import pytest

from bayesmem.tasks import retrieval_text as rt
from bayesmem.tasks.tokenizer import byte_tokenizer, train_tokenizer

BOOK = (resources.files("bayesmem") / "data" / "the_invisible_man.txt").read_text()
ASKED = re.compile(r"What is the special magic (\w+) for (\S+) mentioned in the provided text\? (.*)")


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([BOOK[:200_000]], 1024)


def test_documents_are_whole_and_as_long_as_asked(tokenizer):
    config = rt.RetrievalConfig(tokens=40_000, shortest=128, longest=600, needles=3)
    found = list(rt.documents(config, tokenizer, BOOK))
    assert found == list(rt.documents(config, tokenizer, BOOK))
    assert 40_000 <= sum(size for _, size in found) < 40_600
    kinds, needles, in_book = Counter(), Counter(), 0
    for text, size in found:
        assert size == len(tokenizer(text).input_ids) <= 600
        opening, body, *questions = text.split("\n")
        needles[len(questions)] += 1
        in_book += body.split("One of the special")[0][:60] in " ".join(BOOK.split())
        for line in questions:
            kind, key, answer = ASKED.fullmatch(line).groups()
            kinds[kind] += 1
            value = re.search(rf"One of the special magic {kind}s for {re.escape(key)} is: (\S+)\.(?: |$)", body).group(
                1
            )
            assert answer == f"The special magic {kind} for {key} mentioned in the provided text is: {value}."
            assert kind in opening and body.count(key) == 1
    assert set(kinds) == {"number", "word", "uuid"} and set(needles) == {1, 2, 3}
    assert 0.2 < in_book / len(found) < 0.8
    sizes = [size for _, size in found]
    assert min(sizes) < 180 and max(sizes) > 480


def test_the_wording_is_rulers(tokenizer):
    from bayesmem.tasks import ruler

    (row,) = ruler.make_documents(ruler.TASKS["s-niah-1"], 512, 1, 0, tokenizer)
    text, _ = next(rt.documents(rt.RetrievalConfig(1, 200, 300, 1, ("numbers",), 0.0, True), tokenizer))
    plain = [
        re.sub(r"\d+", "N", re.sub(r"\w+(-\w+)+", "KEY", one)) for one in (row["input"] + " " + row["gen_prefix"], text)
    ]
    theirs, ours = (
        [line for line in one.split("\n") if "special magic" in line or "A special" in line] for one in plain
    )
    assert ours[0] == theirs[0] and ours[-1].startswith(theirs[-1] + ": N")
    assert (
        "One of the special magic numbers for KEY is: N." in ours[1]
        and "One of the special magic numbers for KEY is: N." in theirs[1]
    )
    assert "The grass is green." in ours[1]


def test_our_noise_is_not_rulers(tokenizer):
    texts = [text for text, _ in rt.documents(rt.RetrievalConfig(5000, book_share=0.0), tokenizer)]
    assert texts and not any("grass" in text or "There and back" in text for text in texts)


def test_too_many_needles_for_the_length_are_fewer():
    config = rt.RetrievalConfig(20_000, 500, 700, needles=8, book_share=0.0)
    found = list(rt.documents(config, byte_tokenizer()))
    assert sum(size <= 700 for _, size in found) >= 0.9 * len(found)  # a single needle and its frame may take more
    assert all(text.count("What is the special") >= 1 for text, _ in found)


def test_written_as_training_reads_it(tmp_path, tokenizer):
    from bayesmem.tasks.corpus import documents

    config = rt.RetrievalConfig(2000, 100, 200, book_share=0.0)
    path = tmp_path / "deep" / "r.jsonl"
    count, tokens = rt.write(path, config, tokenizer)
    read = list(documents([path]))
    assert read == [text for text, _ in rt.documents(config, tokenizer)] and len(read) == count
    assert tokens == sum(len(tokenizer(text).input_ids) for text in read)
    assert [*path.parent.iterdir()] == [path] and json.loads(path.read_text().splitlines()[0]).keys() == {"text"}


def test_shares_and_refusals(tokenizer):
    others, share = 9_000_000, 0.1
    tokens = rt.tokens_for_share(others, share)
    assert tokens / (tokens + others) == pytest.approx(share)
    for options, said in (
        ({"tokens": 0}, "tokens is 0"),
        ({"shortest": 9, "longest": 8}, "lengths from 9 to 8"),
        ({"kinds": ("colours",)}, "expected some of numbers"),
        ({"book_share": 1.5}, "book_share is 1.5"),
    ):
        with pytest.raises(ValueError, match=said):
            rt.RetrievalConfig(**{"tokens": 10} | options)
    with pytest.raises(ValueError, match=r"share is 1\.0"):
        rt.tokens_for_share(10, 1.0)
    with pytest.raises(ValueError, match="the haystack has 10 letters"):
        next(rt.documents(rt.RetrievalConfig(10), tokenizer, "Too short."))

"""RULER's documents: seeded, offline, within their length, and refused where lm_eval would hang or download."""

import json
import random
import socket
from importlib import resources

import numpy as np
import pytest

from bayesmem.tasks import ruler
from bayesmem.tasks.tokenizer import byte_tokenizer, train_tokenizer

BOOK = resources.files("bayesmem") / "data" / "the_invisible_man.txt"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([BOOK.read_text()[:200_000]], 2048)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    rows = [
        {"question": f"Who is {i}?", "answers": [f"it is {i}"], "contexts": [f"Of {i}: it is {i}."]} for i in range(9)
    ]
    (folder / "qa.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "book.txt").write_text(BOOK.read_text())
    return ruler.Sources((str(folder / "book.txt"),), str(folder / "qa.jsonl"))


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("unchecked")  # checks of types draw from the global random state
@pytest.mark.parametrize("name", ruler.TASKS)
def test_documents_depend_on_the_seed_alone(name, tokenizer, sources):
    task, length = ruler.TASKS[name], 2048
    states = random.getstate(), np.random.get_state()[1].tolist()
    rows = ruler.make_documents(task, length, 3, 0, tokenizer, sources)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states
    random.random(), np.random.rand()
    assert ruler.make_documents(task, length, 3, 0, tokenizer, sources) == rows
    assert ruler.make_documents(task, length, 2, 0, tokenizer, sources) == rows[:2]
    other = ruler.make_documents(task, length, 3, 1, tokenizer, sources)
    assert ruler.fingerprint(other) != ruler.fingerprint(rows)
    assert len(rows) == 3
    for row in rows:
        assert row["outputs"] and all(answer in row["input"] for answer in row["outputs"])
        assert row["max_length"] == length
        assert len(tokenizer(row["input"]).input_ids) <= length
        assert row["length"] <= length + (task.most_tokens if name == "fwe" else 0)


def test_needles_stand_in_the_users_text(tokenizer, sources):
    (row,) = ruler.make_documents(ruler.TASKS["s-niah-2"], 2048, 1, 0, tokenizer, sources)
    needle = f"is: {row['outputs'][0]}."
    before, after = row["input"].split(needle)
    book = " ".join(BOOK.read_text().split())
    assert after.split("\n")[0].strip()[:300] in book and before.split("\n")[-1].split("One of the")[0].strip() in book


def test_keys_are_an_adjective_and_a_noun(tokenizer):
    import wonderwords

    known = wonderwords.RandomWord()._categories
    rows = ruler.make_documents(ruler.TASKS["s-niah-1"], 512, 20, 0, tokenizer)
    keys = {row["gen_prefix"].split(" for ")[1].split(" mentioned")[0] for row in rows}
    assert len(keys) == 20  # not the few that stand in while lm_eval is imported
    assert all(
        any(key == f"{a}-{n}" for a in known["adjectives"] if key.startswith(a) for n in known["nouns"]) for key in keys
    )


def test_names_and_groups():
    assert [task.name for task in ruler.find_tasks(["niah_single_1", "s-niah", "vt"])] == [
        *ruler.GROUPS["s-niah"],
        "vt",
    ]
    assert [task.name for task in ruler.find_tasks(["all"])] == list(ruler.TASKS)
    with pytest.raises(ValueError, match="no RULER task 'niah'; expected of s-niah-1, "):
        ruler.find_tasks(["niah"])


def test_what_must_be_supplied_is_said():
    for name, said in (
        ("s-niah-2", "s-niah-2: hide their needles in essays.*--haystack"),
        ("qa", "qa: needs questions"),
    ):
        with pytest.raises(ValueError, match=said + ".*Tasks without: s-niah-1, "):
            ruler.check_sources(ruler.find_tasks([name]), ruler.Sources())
    with pytest.raises(ValueError, match="no file or folder at none"):
        ruler.check_sources(ruler.find_tasks(["s-niah-2"]), ruler.Sources(("none",)))


@pytest.mark.parametrize(
    ("name", "length"),
    [("s-niah-1", 100), ("s-niah-1", 150), ("multi-key-3", 256), ("vt", 512), ("cwe", 512), ("fwe", 64), ("qa", 60)],
)
def test_no_room_is_told_and_does_not_hang(name, length, tokenizer, sources):
    with pytest.raises(ValueError, match=f"{name} at {length} tokens: .* do not fit"):
        ruler.make_documents(ruler.TASKS[name], length, 2, 0, tokenizer, sources)


def test_other_refusals(tokenizer, sources, tmp_path):
    with pytest.raises(ValueError, match="vt: its worked example has at most 500 tokens"):
        ruler.make_documents(ruler.TASKS["vt"], 8192, 1, 0, byte_tokenizer())
    with pytest.raises(ValueError, match="has 9 questions; ask for at most so many"):
        ruler.make_documents(ruler.TASKS["qa"], 1024, 10, 0, tokenizer, sources)
    (tmp_path / "short.txt").write_text("A short text. " * 20)
    with pytest.raises(ValueError, match=r"--haystack has .* tokens of text; a length of 1024 takes as many"):
        ruler.make_documents(ruler.TASKS["s-niah-2"], 1024, 1, 0, tokenizer, ruler.Sources((str(tmp_path),)))
    with pytest.raises(ValueError, match="documents 0; expected at least 1"):
        ruler.make_documents(ruler.TASKS["s-niah-1"], 1024, 0, 0, tokenizer)


def test_sources_are_marked_by_what_is_taken(sources, tmp_path):
    task = ruler.TASKS["s-niah-2"]
    (tmp_path / "same.txt").write_text(BOOK.read_text()[:50_000])
    other = ruler.Sources((str(tmp_path / "same.txt"),))
    assert ruler.source_mark(task, sources, 1000) == ruler.source_mark(task, other, 1000)
    assert ruler.source_mark(task, sources, 1000) != ruler.source_mark(task, other, 1001)
    assert ruler.source_mark(ruler.TASKS["vt"], sources, 1000) is None

"""Texts as documents, as tokens, and as a prepared stream on disk."""

import gzip
import json
import lzma
import os

import numpy as np
import pytest
from transformers import AutoTokenizer

from bayesmem.tasks import corpus, prepared, tokenizer

TEXTS = ["One day in 1897.\n", "", "Zwölf 12 ☃ <|endoftext|>\r\nEnd", "third " * 50]


def lines(texts, key="text"):
    return "".join(json.dumps({"title": "t", key: text}) + "\n" for text in texts)


def written(folder):
    (folder / "b").mkdir(parents=True)
    (folder / "b" / "2.txt").write_text(TEXTS[0])
    (folder / "1.jsonl").write_text(lines(TEXTS[1:3]) + "\n")
    with lzma.open(folder / "3.jsonl.xz", "wt") as file:
        file.write(lines(TEXTS[3:]))
    with gzip.open(folder / "4.md.gz", "wt") as file:
        file.write("packed")
    (folder / "5.png").write_bytes(b"\xff")
    return folder


def test_documents_of_a_folder_in_a_fixed_order(tmp_path):
    files = corpus.find_files([written(tmp_path)])
    assert [path.name for path in files] == ["1.jsonl", "3.jsonl.xz", "4.md.gz", "2.txt"]
    assert list(corpus.documents(files)) == [*TEXTS[1:], "packed", TEXTS[0]]
    assert corpus.find_files([tmp_path / "5.png"]) == [tmp_path / "5.png"]  # a file that is named is taken


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.jsonl", b'{"text": "a"}\n{"text"\n', "line 2: no JSON"),
        ("x.jsonl", b'{"body": "a"}\n', "no text in 'text', only body; name the field with --field"),
        ("x.jsonl", b'["a"]\n', "no text in 'text', only list"),
        ("x.jsonl", b'{"text": "\\ud800"}\n', "half of a surrogate pair"),
        ("x.txt", b"caf\xe9", "x.txt is not UTF-8"),
        ("x.jsonl.xz", lzma.compress(lines(TEXTS * 9).encode())[:-30], "x.jsonl.xz is damaged or cut short"),
        ("x.txt.xz", b"no xz", "damaged or cut short"),
        ("x.txt.gz", gzip.compress(b"x" * 999, mtime=0)[:-9], "damaged or cut short"),
        ("x.txt.gz", b"no gz", "damaged or cut short"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=said):
        list(corpus.documents(corpus.find_files([tmp_path])))


def test_missing_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no file or folder at"):
        corpus.find_files([tmp_path / "gone.txt"])
    with pytest.raises(ValueError, match="holds no file ending in"):
        corpus.find_files([tmp_path])
    with pytest.raises(ValueError, match="no text given"):
        corpus.find_files([])


def test_pieces_are_cut_at_lines_and_words():
    text = "a line of words\n" * 40 + "x" * 300
    parts = list(corpus.pieces(text, 100))
    assert "".join(parts) == text and max(map(len, parts)) <= 100
    assert parts[0].endswith("words\n")
    assert list(corpus.pieces("", 5)) == [""]


def test_bytes_are_their_own_ids():
    bytewise = tokenizer.byte_tokenizer()
    text = "".join(map(chr, range(0x250))) + "☃😀"
    assert tokenizer.encode(bytewise, [text]) == [list(text.encode())]
    assert bytewise.decode(list(text.encode())) == text
    assert len(bytewise) == 257 and bytewise.eos_token_id == 256


def test_a_trained_tokenizer_splits_digits_and_loses_nothing(tmp_path):
    texts = ["the years 1897 and 1898, the year 1899\n" * 20, "the invisible man, ☃"]
    trained = tokenizer.train_tokenizer(texts, 280)
    assert len(trained) == 280
    pieces = trained.convert_ids_to_tokens(tokenizer.encode(trained, ["in 1897"])[0])
    assert [piece[-1] for piece in pieces[-4:]] == list("1897")
    ids = tokenizer.encode(trained, TEXTS)
    assert [trained.decode(one) for one in ids] == TEXTS
    assert trained.eos_token_id not in ids[2]  # what looks like the end in a text is text
    again = tokenizer.train_tokenizer(texts, 280)
    assert again.backend_tokenizer.to_str() == trained.backend_tokenizer.to_str()
    trained.save_pretrained(tmp_path)
    for loaded in (AutoTokenizer.from_pretrained(tmp_path), tokenizer.load_tokenizer(tmp_path)):
        assert tokenizer.encode(loaded, TEXTS) == ids and loaded.eos_token_id == trained.eos_token_id


def test_bad_tokenizers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="vocab is 256; expected at least 257"):
        tokenizer.train_tokenizer(["a"], 256)
    with pytest.raises(ValueError, match="has only 257 different tokens to learn"):
        tokenizer.train_tokenizer(["a"], 300)
    with pytest.raises(ValueError, match="no tokenizer at"):
        tokenizer.load_tokenizer(tmp_path / "gone")
    with pytest.raises(ValueError, match="holds no tokenizer that transformers can load"):
        tokenizer.load_tokenizer(tmp_path)


def prepare(folder, texts=TEXTS, made_from=None, **options):
    made = tokenizer.byte_tokenizer()
    return prepared.prepare(folder, "train", lambda: texts, made, made_from or {"files": []}, **options)


def test_a_stream_of_documents_each_with_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus.pieces, "__defaults__", (40,))  # several pieces a document, several batches
    monkeypatch.setattr(prepared, "BATCH", 3)
    told = []
    stream = prepare(tmp_path, tell=told.append)
    full = [text.encode() for text in TEXTS if text]
    assert stream.tokens.tolist() == [token for text in full for token in (*text, 256)]
    assert stream.tokens.dtype == np.uint16 and isinstance(stream.tokens, np.memmap)
    assert stream.starts.tolist() == [0, len(full[0]) + 1, len(full[0]) + len(full[1]) + 2]
    assert (stream.counts.bytes, stream.counts.documents) == (sum(map(len, full)), 3)
    assert stream.tokens_per_byte == len(stream.tokens) / stream.counts.bytes
    assert told[-1] == stream.counts
    again = prepared.prepare(
        tmp_path, "train", lambda: pytest.fail("read again"), tokenizer.byte_tokenizer(), {"files": []}
    )
    assert np.array_equal(again.tokens, stream.tokens)


def test_other_or_damaged_tokens_are_refused(tmp_path):
    prepare(tmp_path)
    with pytest.raises(ValueError, match="holds train tokens of other texts"):
        prepare(tmp_path, made_from={"files": ["others"]})
    with (tmp_path / "train.tokens").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match="It is damaged: remove"):
        prepare(tmp_path)
    (tmp_path / "train.json").write_text("{")
    with pytest.raises(ValueError, match="is no prepared corpus"):
        prepare(tmp_path)


def test_what_is_not_finished_leaves_nothing(tmp_path):
    def broken():
        yield "a" * 9
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        prepare(tmp_path, broken())
    with pytest.raises(ValueError, match="the train text is empty"):
        prepare(tmp_path, ["", ""])
    assert os.listdir(tmp_path) == []
    assert prepare(tmp_path).counts.documents == 3

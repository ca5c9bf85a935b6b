"""The book that the package carries, and a user's own file."""

import numpy as np
import pytest

from bayesmem.tasks import text


def test_the_book_is_there_and_split():
    book = text.load()
    assert b"Griffin" in book.train.tobytes()
    assert 0.09 < len(book.held_out) / (len(book.train) + len(book.held_out)) < 0.11


def test_a_file_of_any_bytes(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes(bytes(range(256)) * 100)
    mine = text.load(path)
    assert mine.name == "mine.txt"
    assert len(mine.train) + len(mine.held_out) == 25_600


def test_windows_and_blocks_line_up():
    data = np.arange(200, dtype=np.uint8)
    assert (np.diff(text.windows(data, 9, 5, seed=0).astype(int)) == 1).all()
    assert np.array_equal(text.windows(data, 9, 5, seed=0), text.windows(data, 9, 5, seed=0))
    blocks = text.blocks(data, 9)
    assert np.array_equal(blocks[1:, 0], blocks[:-1, -1])  # each block goes on where the last one ended


@pytest.mark.parametrize(("content", "said"), [(None, "no text file at"), (b"short", "has 5 bytes")])
def test_bad_files_are_refused(tmp_path, content, said):
    path = tmp_path / "mine.txt"
    if content:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=said):
        text.load(path)

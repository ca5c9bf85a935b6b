"""Rows of a token stream: all of it, in an order of the seed, documents told apart where wanted."""

import numpy as np
import pytest
import torch

from bayesmem.train import TokenRows

STREAM = np.arange(1000, 1047, dtype=np.uint16)  # 46 targets


def test_targets_follow_inputs():
    rows = TokenRows(STREAM, 8, 20, seed=3)
    assert len(rows) == 20
    for row in (rows[i] for i in range(20)):
        assert set(row) == {"input_ids", "labels", "shift_labels"}
        assert torch.equal(row["input_ids"] + 1, row["labels"]) and torch.equal(row["labels"], row["shift_labels"])
        assert row["input_ids"].dtype == torch.int64 and len(row["input_ids"]) == 8


def test_a_pass_has_every_row_once_and_the_next_another_order():
    rows = TokenRows(STREAM, 8, 10, seed=0)
    first, second = ([int(rows[i]["input_ids"][0]) for i in part] for part in (range(5), range(5, 10)))
    assert np.diff(sorted(first)).tolist() == [8] * 4
    assert first != second and np.diff(sorted(second)).tolist() == [8] * 4
    offsets = {
        min(int(TokenRows(STREAM, 8, 90, seed=0)[i]["input_ids"][0]) for i in range(n, n + 5)) for n in range(0, 90, 5)
    }
    assert offsets == set(range(1000, 1007))  # every offset occurs, so that no token is left out for good


def test_a_row_depends_on_its_index_alone():
    rows, others = TokenRows(STREAM, 8, 30, seed=1), TokenRows(STREAM, 8, 30, seed=1)
    backwards = {i: others[i]["input_ids"] for i in reversed(range(30))}
    assert all(torch.equal(rows[i]["input_ids"], backwards[i]) for i in range(30))
    different = TokenRows(STREAM, 8, 30, seed=2)
    assert any(not torch.equal(rows[i]["input_ids"], different[i]["input_ids"]) for i in range(30))


def test_evaluation_asks_for_every_token_once():
    rows = TokenRows(STREAM, 8)
    assert len(rows) == 6
    padded = TokenRows(STREAM, 8, 8)
    asked = torch.cat([padded[i]["labels"] for i in range(8)])
    assert asked[asked != -100].tolist() == STREAM[1:].tolist()
    assert (padded[7]["labels"] == -100).all()


def test_documents_are_told_apart():
    starts = np.array([0, 3, 8, 9])
    rows = TokenRows(STREAM, 8, 6, starts=starts)
    first, second = rows[0], rows[1]
    assert first["position_ids"].tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert first["labels"].tolist() == [1001, 1002, -100, 1004, 1005, 1006, 1007, -100]
    assert second["position_ids"].tolist() == [0, 0, 1, 2, 3, 4, 5, 6]
    assert second["labels"].tolist() == [-100, *range(1010, 1017)]


def test_too_short_a_text_is_refused():
    with pytest.raises(ValueError, match="the text has 8 tokens; a row of 8 and its last target take 9"):
        TokenRows(STREAM[:8], 8, 1, seed=0)

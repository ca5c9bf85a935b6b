"""What RULER takes from the user's files."""

import json

import pytest

from bayesmem.tasks import haystack


def test_sentences_keep_every_word_and_end_where_sentences_do():
    text = 'Mr. Hall went in. "Who is there?" he said.  Nobody answered! J. R. Smith (of No. 7) left at 3.5 miles. End'
    found = haystack.sentences(text)
    assert found == ["Mr. Hall went in.", '"Who is there?" he said.', "Nobody answered!",
                     "J. R. Smith (of No. 7) left at 3.5 miles.", "End"]  # fmt: skip
    assert " ".join(found).split() == text.split()
    assert haystack.sentences("") == []


def test_words_are_the_first_of_all_files(tmp_path):
    (tmp_path / "a.txt").write_text("one two\nthree")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "four  five six"}))
    assert haystack.words([tmp_path], 5) == ["one", "two", "three", "four", "five"]
    (tmp_path / "none.txt").write_text(" \n")
    with pytest.raises(ValueError, match="no words to hide needles in"):
        haystack.words([tmp_path / "none.txt"], 5)


SQUAD = {
    "data": [
        {
            "paragraphs": [
                {"context": "B is 2.", "qas": [{"question": "B?", "answers": [{"text": "2"}], "is_impossible": False},
                                               {"question": "C?", "answers": [], "is_impossible": True}]},
                {"context": "A is 1.", "qas": []},
            ]
        }
    ]
}  # fmt: skip
HOTPOT = [{"question": "B?", "answer": "2", "context": [["b", ["B is", " 2."]], ["a", ["A is 1."]]]}]
PLAIN = {"question": "B?", "answers": ["2", "two"], "contexts": ["B is 2."]}


def test_three_forms_of_questions(tmp_path):
    path = tmp_path / "q.json"
    path.write_text(json.dumps(SQUAD))
    rows, texts = haystack.questions(path)
    assert texts == ["A is 1.", "B is 2."]
    assert rows == [{"query": "B?", "outputs": ["2"], "context": [1], "more_context": [0]}]
    path.write_text(json.dumps(HOTPOT))
    rows, texts = haystack.questions(path)
    assert texts == ["a\nA is 1.", "b\nB is 2."] and rows[0]["context"] == [1, 0] and rows[0]["outputs"] == ["2"]
    (tmp_path / "q.jsonl").write_text(json.dumps(PLAIN) + "\n")
    rows, texts = haystack.questions(tmp_path / "q.jsonl")
    assert rows == [{"query": "B?", "outputs": ["2", "two"], "context": [0], "more_context": []}]


@pytest.mark.parametrize(
    "text",
    ["{", "{}", "[]", '[{"question": 1}]', json.dumps({"data": [{"paragraphs": [{"context": "x", "qas": []}]}]})],
)
def test_other_forms_are_refused(tmp_path, text):
    path = tmp_path / "q.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"q\.json holds no question.*expected SQuAD's JSON, HotpotQA's"):
        haystack.questions(path)
    with pytest.raises(ValueError, match=r"no file of questions at .*none\.json"):
        haystack.questions(tmp_path / "none.json")

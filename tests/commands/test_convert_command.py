"""``bayesmem convert``, as a user types it."""

import os

import pytest
import typer
from typer.testing import CliRunner

from bayesmem.commands.convert import convert
from models import fla_reference as reference


def typed(*arguments):
    app = typer.Typer()
    app.command()(convert)
    return CliRunner().invoke(app, [os.fspath(x) for x in arguments])


@pytest.fixture
def theirs(tmp_path):
    reference.write(tmp_path / "theirs")
    return tmp_path / "theirs"


def test_there_and_back(theirs, tmp_path):
    out = typed(theirs, tmp_path / "ours")
    assert out.exit_code == 0, out.exception
    assert "gated_deltanet -> gated_deltanet, " in out.output and "the same function" in out.output
    out = typed(tmp_path / "ours", tmp_path / "back", "--to-fla")
    assert out.exit_code == 0 and "bayesmem -> gated_deltanet" in out.output
    assert reference.read(tmp_path / "back")[1].keys() == reference.read(theirs)[1].keys()


def test_a_covariance_says_how_far_it_moved(theirs, tmp_path):
    out = typed(theirs, tmp_path / "ours", "--covariance", "full", "--retention", "0.1", "--tokens", "33")
    assert out.exit_code == 0, out.exception
    assert "another function: over 33 tokens the logits moved by" in out.output


def test_refusals_reach_the_user(theirs, tmp_path):
    for arguments, said in (
        (("--covariance", "fill"), "covariance is 'fill'"),
        (("--to-fla", "--retention", "0.1"), "--retention with --to-fla"),
        (("--text", tmp_path / "none.txt"), "none.txt is not a file"),
        (("--hybrid-every", "2"), "attention_every is 2"),
    ):
        out = typed(theirs, tmp_path / "ours", *arguments)
        assert isinstance(out.exception, ValueError) and said in str(out.exception)
    assert not (tmp_path / "ours").exists()


def test_measured_on_a_text(theirs, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"[unk]": 0, "to": 1, "be": 2, "or": 3, "not": 4}, unk_token="[unk]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[unk]").save_pretrained(theirs)
    (tmp_path / "text.txt").write_text("to be or not to be")
    out = typed(theirs, tmp_path / "ours", "--covariance", "full", "--text", tmp_path / "text.txt")
    assert out.exit_code == 0, out.exception
    assert "over 6 tokens" in out.output and (tmp_path / "ours" / "tokenizer.json").is_file()

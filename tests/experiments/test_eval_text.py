"""Bits per byte by position: every token once, exact in pieces, and held to the sum written out."""

import json
import math
from itertools import chain

import pytest
import torch

from bayesmem.experiments import eval_text
from bayesmem.experiments.eval_checkpoint import Checkpoint
from bayesmem.models import BayesMemConfig, BayesMemForCausalLM
from bayesmem.report.records import records_in
from bayesmem.tasks.tokenizer import byte_tokenizer, train_tokenizer

MIXER = {"num_heads": 2, "head_dim": 4}
TEXTS = ["It was a dark night; the wind — a cold one — blew. " * 6, "Short.", "Ends with <|endoftext|> inside, and é."]


def checkpoint(tokenizer, **options):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 16, "initializer_range": 0.5}
    config = BayesMemConfig(vocab_size=len(tokenizer), mixer=MIXER, **sizes | options)
    return Checkpoint("tiny", "0", BayesMemForCausalLM(config).double().eval(), tokenizer)


@pytest.fixture
def files(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    return (str(path),)


@pytest.fixture(params=["bytes", "bpe"])
def tokenizer(request):
    return byte_tokenizer() if request.param == "bytes" else train_tokenizer(TEXTS * 3, 300)


def test_bytes_of_tokens_are_those_of_the_text(tokenizer):
    for text in TEXTS:
        ids, sizes = eval_text.encoded(tokenizer, text)
        assert len(ids) == len(sizes) and sum(sizes) == len(text.encode()) and min(sizes) >= 0
        assert tokenizer.decode(ids) == text and tokenizer.eos_token_id not in ids


def test_every_token_is_predicted_once_from_what_stands_before_it(tokenizer):
    found = list(eval_text.contexts(iter(TEXTS), tokenizer, 50))
    ids = [eval_text.encoded(tokenizer, text)[0] for text in TEXTS]
    assert [*chain(*(one.targets for one in found))] == [*chain(*ids)]
    starts = [one for one in found if one.inputs[0] == tokenizer.eos_token_id]
    assert len(starts) == 3 and max(len(one.targets) for one in found) == 50
    for one in found:
        assert one.inputs[1:] == one.targets[:-1]
    for cut in (1, 49, 50, 51, 120):
        some = list(eval_text.contexts(iter(TEXTS), tokenizer, 50, cut))
        assert [*chain(*(one.targets for one in some))] == [*chain(*ids)][:cut]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("options", [{}, {"attention": {"num_heads": 2, "head_dim": 4}, "attention_every": 2}])
@pytest.mark.parametrize("piece", [30, 1000])
def test_the_sum_written_out(tokenizer, files, tmp_path, options, piece):
    tried = checkpoint(tokenizer, **options)
    config = eval_text.TextConfig(files, length=100, batch_size=2, piece=piece)
    figures = eval_text.run(config, tried, tmp_path).figures
    nats, by_bin, count = 0.0, {0: [0.0, 0], 64: [0.0, 0]}, 0
    for text in TEXTS:
        ids, sizes = eval_text.encoded(tokenizer, text)
        ids = [tokenizer.eos_token_id, *ids]
        for start in range(0, len(ids) - 1, 100):
            part = torch.tensor([ids[start : start + 101]])
            with torch.no_grad():
                log_p = tried.model(part[:, :-1]).logits.log_softmax(-1)
            each = -log_p[0].gather(-1, part[0, 1:, None])[:, 0]
            nats, count = nats + each.sum().item(), count + len(each)
            for low, high in ((0, 64), (64, 100)):
                by_bin[low][0] += each[low:high].sum().item()
                by_bin[low][1] += sum(sizes[start + low : min(start + high, start + len(each))])
    size = sum(len(text.encode()) for text in TEXTS)
    assert figures["tokens"] == count and figures["bytes"] == size
    assert figures["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-6)
    assert figures["perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-6)
    for row in figures["bins"]:
        nats, size = by_bin[row["from"]]
        assert row["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-6)


def test_recorded_once_and_refused(files, tmp_path, monkeypatch):
    tried = checkpoint(byte_tokenizer())
    config = eval_text.TextConfig(files, length=64, tokens=90)
    record = eval_text.run(config, tried, tmp_path)
    assert record.figures["tokens"] == 90
    monkeypatch.setattr(eval_text, "measure", lambda *_: pytest.fail("measured again"))
    assert eval_text.run(config, tried, tmp_path) == record and len(records_in(tmp_path).all()) == 1
    for options, said in (
        ({"length": 1}, "length is 1"),
        ({"piece": 0}, "piece is 0"),
        ({"tokens": -1}, "tokens is -1"),
    ):
        with pytest.raises(ValueError, match=said):
            eval_text.TextConfig(files, **options)
    with pytest.raises(ValueError, match="no file or folder at none"):
        eval_text.run(eval_text.TextConfig(("none",)), tried, tmp_path)


def test_a_text_without_letters_is_refused(tmp_path):
    (tmp_path / "none.txt").write_text("")
    with pytest.raises(ValueError, match="the files hold no text"):
        eval_text.run(eval_text.TextConfig((str(tmp_path / "none.txt"),)), checkpoint(byte_tokenizer()), tmp_path)


def test_a_memory_that_does_not_carry_on_is_noticed(monkeypatch):
    """Its contexts are then read whole."""
    tried = checkpoint(byte_tokenizer()).model
    assert eval_text._continues(tried)
    real = tried.forward
    monkeypatch.setattr(tried, "forward", lambda **given: real(**given | {"past_key_values": None}))
    assert not eval_text._continues(tried)


def test_edges_double():
    assert eval_text.edges(64) == [(0, 64)] and eval_text.edges(300) == [(0, 64), (64, 128), (128, 256), (256, 300)]

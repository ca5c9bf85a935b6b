"""RULER end to end on tiny models: prompts, scores a document, resuming, and batches that change nothing."""

import json
from dataclasses import replace

import pytest
import torch

from bayesmem.experiments import eval_ruler
from bayesmem.experiments.eval_checkpoint import label_of, load_checkpoint, weights_of
from bayesmem.experiments.eval_harness import Harness, answers
from bayesmem.models import BayesMemConfig, BayesMemForCausalLM
from bayesmem.report.records import records_in
from bayesmem.report.ruler import RULER, paired_records, scores
from bayesmem.tasks.ruler import TASKS, make_documents
from bayesmem.tasks.tokenizer import byte_tokenizer

MIXER = {"num_heads": 2, "head_dim": 4}
ATTENTION = {"attention": {"num_heads": 2, "head_dim": 4}, "attention_every": 2}
LENGTH = 640  # bytes: what a question, its needle and 128 of answer take, and a little noise


BRIEF = replace(TASKS["s-niah-1"], most_tokens=6)  # an answer takes 128: too long for a test


def model(seed=0, dtype=torch.float32, **options):
    torch.manual_seed(seed)
    sizes = {"vocab_size": 257, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 16, "mixer": MIXER}
    return BayesMemForCausalLM(BayesMemConfig(**sizes | {"initializer_range": 0.5} | options)).to(dtype).eval()


def save(folder, seed=0):
    model(seed).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("run") / "model")


@pytest.fixture
def brief(monkeypatch):
    monkeypatch.setitem(TASKS, "s-niah-1", BRIEF)


CONFIG = eval_ruler.RulerConfig(lengths=(LENGTH, 700), documents=4, batch_size=4)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("options", [{}, {"mixer": MIXER | {"design": "gated_deltanet"}}, ATTENTION])
def test_batches_padding_and_packing_change_nothing(options):
    """Documents of several lengths: one at a time, padded on the left side by side, and packed into one row."""
    chosen, tokenizer = model(dtype=torch.float64, **options), byte_tokenizer()
    task = BRIEF
    rows = [*make_documents(task, 640, 2, 0, tokenizer), *make_documents(task, 800, 1, 0, tokenizer)]
    rows = [row | {"max_length": 800} for row in rows]
    found = {size: answers(Harness(chosen, tokenizer, 800, size), task, rows) for size in (1, 3)}
    assert [one.said for one in found[1]] == [one.said for one in found[3]]
    assert len({one.said for one in found[1]}) > 1 and len({len(one.prompt) for one in found[1]}) > 1
    ids = [tokenizer(one.prompt, return_tensors="pt").input_ids for one in found[1]]
    ends = torch.tensor([part.shape[1] for part in ids]).cumsum(0)
    bounds = torch.cat([torch.zeros(1, dtype=torch.long), ends])
    with torch.no_grad():
        packed = chosen(torch.cat(ids, 1), cu_seqlens=bounds).logits[0, ends - 1].argmax(-1)
    said = [tokenizer.decode([token]) for token in packed.tolist()]
    assert all(one.said.startswith(first) for one, first in zip(found[1], said, strict=True))


def test_scores_are_of_their_documents(monkeypatch):
    """A model that answers every second document, told by its needle."""
    tokenizer, task = byte_tokenizer(), TASKS["s-niah-1"]
    rows = make_documents(task, LENGTH, 5, 0, tokenizer)
    known = {row["outputs"][0]: index % 2 == 0 for index, row in enumerate(rows)}

    def generate(self, context, max_length, stop, **options):
        said = []
        for ids in context.tolist():
            text = tokenizer.decode(ids, skip_special_tokens=True)
            value = next(value for value in known if value in text)
            said.append(tokenizer(f": {value if known[value] else 1234}. ").input_ids[:9])
        width = max(map(len, said))
        return torch.cat([context, torch.tensor([one + [256] * (width - len(one)) for one in said])], 1)

    monkeypatch.setattr("lm_eval.models.huggingface.HFLM._model_generate", generate)
    done = []
    found = answers(Harness(model(), tokenizer, LENGTH, 2, tell=done.append), task, rows)
    assert [one.score for one in found] == [1, 0, 1, 0, 1] and sum(done) == 5
    for one, row in zip(found, rows, strict=True):
        assert one.prompt == f"{row['input']} {row['gen_prefix']}" and one.expected == row["outputs"]
    with pytest.raises(ValueError, match="for a Harness of length 10; make it longer"):
        answers(Harness(model(), tokenizer, 10), task, [row | {"length": 2000} for row in rows])


@pytest.mark.usefixtures("unchecked", "brief")
def test_cells_are_recorded_once(folder, tmp_path, monkeypatch):
    checkpoint = load_checkpoint(folder)
    assert checkpoint.label == folder.parent.name == label_of(folder)
    told = []
    real, calls = eval_ruler._cell, []

    def stopped(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(eval_ruler, "_cell", stopped)
    with pytest.raises(KeyboardInterrupt):
        eval_ruler.run(CONFIG, checkpoint, tmp_path, told.append)
    assert len(told) == 1 and len(records_in(tmp_path).all()) == 1
    monkeypatch.setattr(eval_ruler, "_cell", real)
    found = eval_ruler.run(CONFIG, checkpoint, tmp_path, told.append)
    assert [record.settings["length"] for record in found] == [LENGTH, 700] and len(told) == 2
    monkeypatch.setattr(eval_ruler, "_cell", lambda *_: pytest.fail("evaluated again"))
    assert eval_ruler.run(CONFIG, checkpoint, tmp_path) == found == records_in(tmp_path).all()
    record = found[0]
    assert record.experiment == RULER and record.settings["weights"] == weights_of(folder)
    assert len(scores(record)) == 4 and record.figures["mean"] == scores(record).mean()
    assert LENGTH - 150 < record.figures["tokens"] <= LENGTH
    side = tmp_path / "answers" / f"{checkpoint.label}-s-niah-1-{LENGTH}-0.jsonl"
    rows = [json.loads(line) for line in side.read_text().splitlines()]
    assert [row["score"] for row in rows] == scores(record).tolist() and rows[0].keys() == {"expected", "said", "score"}


@pytest.mark.usefixtures("unchecked", "brief")
def test_two_checkpoints_are_asked_the_same(folder, tmp_path):
    one = eval_ruler.RulerConfig(lengths=(LENGTH,), documents=2)
    other = save(tmp_path / "other", seed=1)
    records = [
        eval_ruler.run(one, load_checkpoint(path, label), tmp_path) for path, label in ((folder, "a"), (other, "b"))
    ]
    assert records[0][0].settings["weights"] != records[1][0].settings["weights"]
    assert records[0][0].figures["fingerprint"] == records[1][0].figures["fingerprint"]
    assert paired_records(*records).documents == 2
    text = eval_ruler.write_report(tmp_path, "a").read_text()
    assert "**a**" in text and "| b | s-niah-1 | 640 | +0.0 [+0.0, +0.0] |" in text
    assert (tmp_path / "img" / "ruler-dark.svg").is_file()


def test_refusals_before_any_work(folder, tmp_path):
    for options, said in (
        ({"tasks": ("niah",)}, "no RULER task 'niah'"),
        ({"tasks": ("s-niah",)}, "s-niah-2, s-niah-3: hide their needles"),
        ({"lengths": ()}, "lengths is empty"),
        ({"lengths": (0,)}, "lengths has 0"),
        ({"documents": 0}, "documents has 0"),
        ({"seeds": (-1,)}, "seeds has -1"),
    ):
        with pytest.raises(ValueError, match=said):
            eval_ruler.RulerConfig(**options)
    with pytest.raises(ValueError, match=r"s-niah-1 at 200 tokens: .* do not fit"):
        eval_ruler.run(eval_ruler.RulerConfig(lengths=(640, 200), documents=2), load_checkpoint(folder), tmp_path)
    assert not records_in(tmp_path).all()
    with pytest.raises(ValueError, match=r"holds no \*\.safetensors"):
        load_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "nothing_like_it"}')
    with pytest.raises(ValueError, match="holds no causal language model that transformers can load"):
        load_checkpoint(tmp_path)

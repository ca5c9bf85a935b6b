"""One cell of RULER through lm-evaluation-harness: given documents in, a score a document out."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import lm_eval.api.task as task_module
import lm_eval.models.huggingface as backend
import lm_eval.tasks
import torch
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.tasks._yaml_loader import load_yaml
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from bayesmem.tasks.ruler import RulerTask, import_generators

VERSION = str(lm_eval.__version__)
FOLDER = Path(lm_eval.tasks.__file__).parent / "ruler"
ROOM = 1024  # tokens beyond the length: the answer's first words, and what fwe's documents have too many


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one document.

    Attributes:
        prompt: what the model read.
        said: what it generated.
        expected: what the answer must contain.
        score: share of that which it contains, as lm_eval counts.
    """

    prompt: str
    said: str
    expected: list[str]
    score: float


class Harness(backend.HFLM):
    """lm_eval's transformers model, told of every batch. It pads on the left and masks the padding.

    Args:
        model: a causal language model, in place.
        tokenizer: its own.
        length: tokens of the longest documents; prompts beyond that would be cut in silence.
        batch_size: documents generated side by side.
        bf16: mixed precision.
        tell: is given the number of documents done.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        length: int,
        batch_size: int = 8,
        bf16: bool = False,
        tell: Callable[[int], None] = lambda _: None,
    ):
        with _quiet():
            super().__init__(
                pretrained=model,
                tokenizer=tokenizer,
                backend="causal",
                max_length=length + ROOM,
                batch_size=batch_size,
                mixed_precision_dtype="bfloat16" if bf16 else None,
            )
        self.tell = tell

    def _model_generate(self, context: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        done = super()._model_generate(context, *rest, **options)
        self.tell(len(context))
        return done


def answers(lm: Harness, task: RulerTask, documents: Sequence[dict[str, Any]]) -> list[Answer]:
    """Ask every document, by the task's own definition in lm_eval: its prompt, greedy generation, its score.

    Args:
        lm: of the model.
        task: which definition.
        documents: ``make_documents``'s, all of one length.

    Raises:
        ValueError: documents too long for ``lm``.
    """
    longest = max(document["length"] for document in documents)
    if longest + task.most_tokens + 256 > lm.max_length:
        raise ValueError(
            f"documents of {longest} tokens for a Harness of length {lm.max_length - ROOM}; make it longer."
        )
    import_generators()
    with _quiet():
        config = load_yaml(FOLDER / task.file, resolve_func=True)
        config.pop("tag", None)
        config["generation_kwargs"] = config["generation_kwargs"] | {"max_gen_toks": task.most_tokens}
        rows = datasets.Dataset.from_list(list(documents))
        config["custom_dataset"] = lambda **_: {"test": rows}
        loaded = {"tasks": {task.harness: ConfigurableTask(config=config)}}
        found = evaluate(lm=lm, task_dict=loaded, bootstrap_iters=0, log_samples=True)
    key = str(documents[0]["max_length"])
    samples = sorted(found["samples"][task.harness], key=lambda sample: sample["doc_id"])
    return [
        Answer(one["arguments"][0][0], one["filtered_resps"][0], list(one["doc"]["outputs"]), float(one[key]))
        for one in samples
    ]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep lm_eval's bars and advice out of ours."""
    log = logging.getLogger("lm_eval")
    level, bar = log.level, backend.tqdm
    log.setLevel(logging.ERROR)
    backend.tqdm = task_module.tqdm = lambda *rows, **options: bar(*rows, **options | {"disable": True})
    try:
        yield
    finally:
        log.setLevel(level)
        backend.tqdm = task_module.tqdm = bar

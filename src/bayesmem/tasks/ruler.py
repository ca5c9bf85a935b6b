"""RULER's documents, made by lm-evaluation-harness' own generators: seeded, without a network, as many as asked for.

The generators draw from global random states, make 500 documents whatever is wanted, download what they miss, and
hang at lengths that leave them no room. Here each call has a seed of its own and leaves the global states as they were,
the user's files stand for the downloads, and what would hang is refused first.
"""

import contextlib
import hashlib
import importlib
import io
import json
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from bayesmem.tasks import haystack

INSTALL = "lm-evaluation-harness is not installed; pip install 'bayesmem[eval]' (or lm_eval[ruler])"
MODULES = ("prepare_niah", "niah_utils", "vt_utils", "cwe_utils", "fwe_utils", "qa_utils")
SPARE = 1.1  # documents are drawn at random: what just fits once may not the next time


@dataclass(frozen=True, slots=True)
class RulerTask:
    """One of RULER's tasks.

    Attributes:
        name: short.
        harness: its name in lm_eval, and of its YAML file there.
        says: what is asked.
        needs: what the user's files must give: ``haystack``, ``questions``, or nothing.
        most_tokens: generated for an answer.
    """

    name: str
    harness: str
    says: str
    needs: str | None = None
    most_tokens: int = 128

    @property
    def file(self) -> str:
        """Of the task's definition in lm_eval."""
        return f"{self.harness.removeprefix('ruler_')}.yaml"


TASKS = {
    task.name: task
    for task in (
        RulerTask("s-niah-1", "niah_single_1", "one number in a noise of repeated sentences"),
        RulerTask("s-niah-2", "niah_single_2", "one number in a text", "haystack"),
        RulerTask("s-niah-3", "niah_single_3", "one UUID in a text", "haystack"),
        RulerTask("multi-key-1", "niah_multikey_1", "one of four keys in a text", "haystack"),
        RulerTask("multi-key-2", "niah_multikey_2", "one key where all the text is other keys"),
        RulerTask("multi-key-3", "niah_multikey_3", "the same with UUIDs for keys and values"),
        RulerTask("multi-value", "niah_multivalue", "four values of one key in a text", "haystack"),
        RulerTask("multi-query", "niah_multiquery", "four keys at once in a text", "haystack"),
        RulerTask("vt", "ruler_vt", "variables tracked through a chain of assignments", None, 30),
        RulerTask("cwe", "ruler_cwe", "the ten words that are common in a list", None, 120),
        RulerTask("fwe", "ruler_fwe", "the three most frequent made-up words", None, 50),
        RulerTask("qa", "ruler_qa_squad", "a question on one of many documents", "questions", 32),
    )
}
GROUPS = {
    "s-niah": ("s-niah-1", "s-niah-2", "s-niah-3"),
    "multi-key": ("multi-key-1", "multi-key-2", "multi-key-3"),
    "offline": tuple(name for name, task in TASKS.items() if task.needs is None),
    "all": tuple(TASKS),
}


@dataclass(frozen=True, slots=True)
class Sources:
    """The user's files.

    Attributes:
        haystack: text files or folders in which needles are hidden, in place of the essays that RULER downloads.
        questions: a file of questions (``haystack.questions``).
    """

    haystack: tuple[str, ...] = ()
    questions: str | None = None


def find_tasks(names: Sequence[str]) -> tuple[RulerTask, ...]:
    """Tasks by short name, group, or lm_eval's name, each once, in the order given.

    Raises:
        ValueError: an unknown name.
    """
    known = {task.harness: task for task in TASKS.values()} | TASKS
    found: dict[str, RulerTask] = {}
    for name in names:
        members = GROUPS.get(name, (name,))
        for member in members:
            if member not in known:
                raise ValueError(f"no RULER task {name!r}; expected of {', '.join([*TASKS, *GROUPS])}.")
            found[known[member].name] = known[member]
    return tuple(found.values())


def check_sources(tasks: Sequence[RulerTask], sources: Sources) -> None:
    """Say what must be supplied, before any work.

    Raises:
        ValueError: files that the tasks need and that were not given, or cannot be read.
    """
    told = {
        "haystack": "hide their needles in essays that RULER downloads; give --haystack a text file or folder (a book "
        "in English does)",
        "questions": f"needs questions that RULER downloads; give --questions a file: {haystack.QA_FORMS}",
    }
    for need, given in (("haystack", sources.haystack), ("questions", sources.questions)):
        wanting = [task.name for task in tasks if task.needs == need]
        if wanting and not given:
            raise ValueError(f"{', '.join(wanting)}: {told[need]}. Tasks without: {', '.join(GROUPS['offline'])}.")
    if sources.haystack:
        haystack.words(sources.haystack, 1)
    if sources.questions is not None:
        haystack.questions(sources.questions)


def make_documents(
    task: RulerTask,
    length: int,
    count: int,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sources | None = None,
) -> list[dict[str, Any]]:
    """Documents of one task at one length, the same wherever they are made.

    Args:
        task: of ``TASKS``.
        length: tokens at most, the answer's included; lm_eval's fwe goes a few beyond.
        count: documents; of questions that do not fit the length there are fewer.
        seed: of all that is drawn.
        tokenizer: that lengths are counted by.
        sources: the user's files.

    Returns:
        lm_eval's rows: ``input``, ``outputs``, ``gen_prefix``, ``length``, ``max_length``.

    Raises:
        ValueError: files that the task needs are missing or too short, or the length leaves no room.
        ImportError: no lm_eval.
    """
    sources = sources or Sources()
    check_sources((task,), sources)
    if length < 1 or count < 1:
        raise ValueError(f"length is {length}, documents {count}; expected at least 1 of each.")
    with _seeded("imports draw too"):
        for name in MODULES:
            import_generators(name)
    with _seeded(f"{seed} {task.name} {length}"):
        if task.harness.startswith("niah"):
            rows = _needles(task, length, count, tokenizer, sources)
        elif task.needs == "questions":
            rows = _questions(length, count, tokenizer, sources)
        else:
            rows = {"vt": _variables, "cwe": _common, "fwe": _frequent}[task.name](length, count, tokenizer)
    lost = task.needs != "questions" and (
        len(rows) < count
        or any(not row["outputs"] or any(o not in row["input"] for o in row["outputs"]) for row in rows)
    )
    if lost or not rows:
        raise _no_room(task.name, length)
    return rows


def source_mark(task: RulerTask, sources: Sources, length: int) -> str | None:
    """Fingerprint of what a task takes from the user's files, wherever they lie; ``None`` where it takes nothing."""
    if task.needs is None:
        return None
    taken: object = haystack.words(sources.haystack, length) if task.needs == "haystack" else None
    if sources.questions is not None and taken is None:
        taken = haystack.questions(sources.questions)
    return hashlib.sha256(json.dumps(taken, sort_keys=True).encode()).hexdigest()[:16]


def fingerprint(rows: Sequence[dict[str, Any]]) -> str:
    """Of documents: two runs with the same one were asked the same."""
    return hashlib.sha256(json.dumps(list(rows), sort_keys=True).encode()).hexdigest()[:16]


def _needles(
    task: RulerTask, length: int, count: int, tokenizer: PreTrainedTokenizerBase, sources: Sources
) -> list[dict[str, Any]]:
    makers, prepare = import_generators("niah_utils"), import_generators("prepare_niah")
    if length <= task.most_tokens:
        raise _no_room(task.name, length)
    text = haystack.words(sources.haystack, length) if task.needs == "haystack" else []
    if text and (held := _count(tokenizer, " ".join(text))) < length - task.most_tokens:
        raise ValueError(f"--haystack has {held} tokens of text; a length of {length} takes as many: give more.")
    real, known = prepare.generate_samples, prepare.get_haystack

    def generate(given: Any, **options: Any) -> Any:
        return real(given, **options | {"num_samples": count})

    own: dict[str, Any] = {
        "generate_samples": generate,
        "get_haystack": lambda type_haystack: text if type_haystack == "essay" else known(type_haystack),
        "get_tokenizer": lambda *_: tokenizer,
        "resolve_tokenizer_name": lambda *_: None,
        "download_dataset": lambda rows: list(chain.from_iterable(rows)),
    }
    prepare.cached_sent_tokenize.cache_clear()
    with _patched(makers, **own), _patched(prepare, tqdm=_no_bar, sent_tokenize=haystack.sentences):
        try:
            return getattr(makers, task.harness)(max_seq_lengths=[length])
        except ValueError as error:
            raise _no_room(task.name, length) from error


def _variables(length: int, count: int, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    module = import_generators("vt_utils")
    make, shortest = module.sys_vartrack_w_noise_random, module.generate_input_output
    with _patched(module, tqdm=_no_bar, print=lambda *_: None):
        if SPARE * _count(tokenizer, " ".join(map(str, shortest(5, 1, 4, is_icl=True)))) + 30 > 500:
            raise ValueError("vt: its worked example has at most 500 tokens, too few for this tokenizer; leave vt out.")
        example = make(tokenizer=tokenizer, num_samples=1, max_seq_length=500, incremental=5)[0]
        needed = _count(tokenizer, " ".join([example["input"], *example["outputs"]]))
        if SPARE * _count(tokenizer, " ".join(map(str, shortest(10, 1, 4)))) + 30 + needed > length:
            raise _no_room("vt", length)
        return make(tokenizer=tokenizer, num_samples=count, max_seq_length=length, icl_example=example)


def _common(length: int, count: int, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    module = import_generators("cwe_utils")
    # The module's own generator remembers what was made before.
    with _patched(module, tqdm=_no_bar, RNG=random.Random(random.getrandbits(64))):
        example, text, answer = module.generate_input_output(10, length)
        if SPARE * _count(tokenizer, " ".join([example, text, *answer])) + 120 > length:
            raise _no_room("cwe", length)
        return module.sys_word_pair_random(num_samples=count, max_seq_length=length, tokenizer=tokenizer)


def _frequent(length: int, count: int, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    module = import_generators("fwe_utils")
    if 2 * _count(tokenizer, module.TEMPLATE) > length:
        raise _no_room("fwe", length)
    with _patched(module, tqdm=_no_bar):
        return module.sys_kwext(tokenizer=tokenizer, max_seq_length=length, num_samples=count)


def _questions(length: int, count: int, tokenizer: PreTrainedTokenizerBase, sources: Sources) -> list[dict[str, Any]]:
    module = import_generators("qa_utils")
    assert sources.questions is not None
    asked, texts = haystack.questions(sources.questions)
    if count > len(asked):
        raise ValueError(f"{sources.questions} has {len(asked)} questions; ask for at most so many --documents.")
    random.shuffle(asked)
    real = module.generate_input_output

    def generate(index: int, num_docs: int, qas: Any, docs: Any) -> Any:
        return real(index, num_docs, qas=qas, docs=list(docs))  # it shuffles in place what it should not

    with _patched(module, tqdm=_no_bar, generate_input_output=generate):
        try:
            return module.generate_samples(tokenizer, texts, asked, length, num_samples=count)
        except ValueError as error:
            raise _no_room("qa", length) from error


def _no_room(name: str, length: int) -> ValueError:
    return ValueError(
        f"{name} at {length} tokens: text, question and answer do not fit with this tokenizer; ask for longer ones."
    )


def _count(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    return len(tokenizer(text).input_ids)


def import_generators(name: str = "prepare_niah") -> ModuleType:
    """One of lm_eval's modules for RULER, imported without its download of nltk's data and its half minute of sorting.

    Raises:
        ImportError: no lm_eval.
    """
    try:
        nltk, wonderwords = map(importlib.import_module, ("nltk", "wonderwords"))
        if "lm_eval.tasks.ruler.prepare_niah" not in sys.modules:
            drawn = wonderwords.RandomWord()._categories
            few = SimpleNamespace(_categories={kind: ["few"] for kind in drawn})
            with (
                _patched(nltk, download=lambda *_, **__: False),
                _patched(wonderwords, RandomWord=lambda: few),
                contextlib.redirect_stdout(io.StringIO()),
            ):
                prepare = importlib.import_module("lm_eval.tasks.ruler.prepare_niah")
            vars(prepare)["WORDS"] = _Pairs(sorted(set(drawn["adjectives"])), sorted(set(drawn["nouns"])))
        return importlib.import_module(f"lm_eval.tasks.ruler.{name}")
    except ImportError as error:
        raise ImportError(f"{INSTALL}: {error}") from error


class _Pairs(Sequence[str]):
    """Every adjective with every noun, six million, written only when drawn."""

    def __init__(self, first: list[str], second: list[str]):
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.first) * len(self.second)

    def __getitem__(self, index: Any) -> Any:
        return f"{self.first[index // len(self.second)]}-{self.second[index % len(self.second)]}"


def _no_bar(rows: Iterable[Any], **_: Any) -> Iterable[Any]:
    return rows


@contextlib.contextmanager
def _patched(module: ModuleType, **names: Any) -> Iterator[None]:
    """Names of a module replaced for a while, those that it did not have too."""
    missing = object()
    before = {name: vars(module).get(name, missing) for name in names}
    vars(module).update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is missing:
                vars(module).pop(name)
            else:
                vars(module)[name] = value


@contextlib.contextmanager
def _seeded(seed: str) -> Iterator[None]:
    """The global random states seeded for a while, and as they were afterwards."""
    before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(random.getrandbits(32))
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])

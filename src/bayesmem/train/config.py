"""How to train: of any rows, and of a language model on text."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

SCHEDULES = ("cosine", "wsd", "constant")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How to train on rows that are given.

    Attributes:
        steps: optimiser steps.
        batch_size: rows a step and device.
        learning_rate: peak of a cosine schedule.
        warmup: fraction of the steps over which the learning rate rises.
        weight_decay: AdamW's, on matrices only; gates, norms and convolutions have none.
        clip: largest gradient norm.
        save_every: steps between checkpoints, of which the last is kept.
        log_every: steps between logged losses.
        seed: of initialisation order, shuffling and everything else.
        bf16: mixed precision; the filter's covariance stays float32.
    """

    steps: int = 1000
    batch_size: int = 32
    learning_rate: float | int = 3e-3
    warmup: float | int = 0.1
    weight_decay: float | int = 0.1
    clip: float | int = 1.0
    save_every: int = 200
    log_every: int = 20
    seed: int = 0
    bf16: bool = False

    def __post_init__(self) -> None:
        _at_least_one(self, "steps", "batch_size", "save_every", "log_every")
        _positive(self, "learning_rate")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """A whole run of language modelling, from texts to a model. Nothing in it depends on how many devices run it.

    Attributes:
        data: files and folders to train on.
        held_out: files and folders to evaluate on; none, and nothing is evaluated.
        text_field: key of the text in JSON lines.
        tokenizer: ``bytes``, ``bpe`` (trained on ``data``), or the folder of one.
        vocab: tokens of a BPE that is trained.
        prepared: folder of tokens and trained tokenizer, which several runs may share; default: in the run's own.
        start: folder of a model (and tokenizer) to fine-tune, in place of ``model`` and ``tokenizer``.
        model: options of ``BayesMemConfig`` but its vocabulary, where a tokenizer sets it.
        tokens: budget: tokens to train on, repeats counted.
        length: tokens a row.
        isolate: whether documents packed in a row neither see nor predict each other.
        batch_size: rows an optimiser step, over all devices.
        micro_batch: rows a device holds at a time; default: its whole share of the batch. Gradients accumulate.
        learning_rate: the peak.
        schedule: ``cosine``, ``wsd`` (warm up, stay, decay) or ``constant``, each after a linear warm-up.
        warmup: share of the steps that warm up.
        decay: share of the steps over which ``wsd`` comes down.
        min_lr: learning rate at the end, as a share of the peak.
        weight_decay: AdamW's, on matrices only; gates, noises, norms, biases and convolutions have none.
        beta1: AdamW's.
        beta2: AdamW's.
        clip: largest gradient norm.
        bf16: mixed precision; parameters, their gradients' sums and the filter's covariance stay float32.
        recompute: gradient checkpointing: activations are computed once more rather than kept.
        fsdp: shard parameters and optimiser over the devices (FSDP2), in place of copies (DDP).
        evaluate_every: steps between evaluations; there is one at the end in any case.
        evaluate_tokens: of the held-out text, from its start, to evaluate on; 0 is all.
        save_every: steps between checkpoints.
        keep: checkpoints kept.
        log_every: steps between logged losses.
        seed: of initialisation, order and everything else.

    Raises:
        ValueError: an option out of its bounds, or options that contradict.
    """

    data: tuple[str, ...]
    held_out: tuple[str, ...] = ()
    text_field: str = "text"
    tokenizer: str = "bytes"
    vocab: int = 8192
    prepared: str | None = None
    start: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    tokens: int = 10_000_000
    length: int = 512
    isolate: bool = False
    batch_size: int = 16
    micro_batch: int | None = None
    learning_rate: float | int = 1e-3
    schedule: str = "cosine"
    warmup: float | int = 0.05
    decay: float | int = 0.2
    min_lr: float | int = 0.1
    weight_decay: float | int = 0.1
    beta1: float | int = 0.9
    beta2: float | int = 0.95
    clip: float | int = 1.0
    bf16: bool = False
    recompute: bool = False
    fsdp: bool = False
    evaluate_every: int = 500
    evaluate_tokens: int = 0
    save_every: int = 500
    keep: int = 1
    log_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least_one(
            self, "length", "batch_size", "evaluate_every", "save_every", "keep", "log_every", "vocab", "tokens"
        )
        _positive(self, "learning_rate", "clip")
        for name in ("warmup", "decay", "min_lr", "beta1", "beta2"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a share within [0, 1].")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule is {self.schedule!r}; expected one of {', '.join(SCHEDULES)}.")
        if self.schedule == "wsd" and self.warmup + self.decay > 1:
            raise ValueError(f"warmup {self.warmup} and decay {self.decay} are more than the whole; make them smaller.")
        if self.micro_batch is not None and (self.micro_batch < 1 or self.batch_size % self.micro_batch):
            raise ValueError(f"micro_batch is {self.micro_batch}; expected a divisor of batch_size {self.batch_size}.")
        if self.tokens < self.step_tokens:
            raise ValueError(
                f"tokens is {self.tokens}, less than one step's {self.step_tokens} (batch_size {self.batch_size} of "
                f"length {self.length}); ask for more, or make the batch smaller."
            )
        if self.start is not None and self.model:
            raise ValueError("start (--from) and model options are both given; the model in that folder has its own.")
        if self.start is not None and self.tokenizer != RunConfig.__dataclass_fields__["tokenizer"].default:
            raise ValueError("start (--from) and a tokenizer are both given; the folder's own is used: leave it out.")
        if self.seed < 0 or self.evaluate_tokens < 0:
            raise ValueError(
                f"seed is {self.seed}, evaluate_tokens {self.evaluate_tokens}; expected 0 or more of each."
            )

    @property
    def step_tokens(self) -> int:
        """Tokens an optimiser step."""
        return self.batch_size * self.length

    @property
    def steps(self) -> int:
        """Optimiser steps that the budget pays for."""
        return self.tokens // self.step_tokens

    def to_json(self) -> str:
        """As text, one field a line."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "RunConfig":
        """What ``to_json`` wrote.

        Raises:
            ValueError: no JSON, or options that are unknown.
        """
        return cls.of(json.loads(text))

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "RunConfig":
        """A config of plain options.

        Raises:
            ValueError: options that are unknown, missing or refused.
        """
        known = {one.name for one in fields(cls)}
        if unknown := sorted(set(given) - known):
            raise ValueError(f"unknown options {', '.join(unknown)}; a run has {', '.join(sorted(known))}.")
        if not given.get("data"):
            raise ValueError("no text given; name text files, folders or .jsonl(.xz, .gz) files to train on.")
        options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
        return cls(**options)


def _at_least_one(config: Any, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; expected at least 1.")


def _positive(config: Any, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} is {getattr(config, name)}; expected a positive number.")

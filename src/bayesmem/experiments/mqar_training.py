"""Training of one MQAR model: the project's Trainer, fed from the device, logits only where asked."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from bayesmem.experiments.mqar_config import Job
from bayesmem.experiments.mqar_data import Asked, Batches
from bayesmem.experiments.mqar_testing import accuracy, asked_hidden
from bayesmem.models import BayesMemForCausalLM
from bayesmem.models.loss import next_token_loss
from bayesmem.train import Diverged
from bayesmem.train.callbacks import Bar, Log
from bayesmem.train.checkpoints import check_fingerprint, last_checkpoint, step_of
from bayesmem.train.trainer import WholeTrainer, diverged, fit

REACHED = 0.99  # accuracy on the milestone that counts as learned


@dataclass(frozen=True, slots=True)
class Training:
    """What a training left.

    Attributes:
        losses: (step, loss), averaged between logs.
        milestones: (step, seconds of training, accuracy) on the milestone.
        steps: optimiser steps made.
        seconds: of training, evaluations left out, this run's and those before a resume.
    """

    losses: list[tuple[int, float]]
    milestones: list[tuple[int, float, float]]
    steps: int
    seconds: float

    @property
    def reached(self) -> tuple[int, float] | None:
        """Step and seconds at which the milestone was first passed; ``None``: never."""
        return next(((step, seconds) for step, seconds, right in self.milestones if right >= REACHED), None)


class RecallTrainer(WholeTrainer):
    """The Trainer for rows that ask at a few known places.

    Nothing in a step waits for the device: batches are cut there, the loss is read when it is logged.

    Args:
        milestone: rows to look at now and then.
        stop_below: logged loss at which training ends; ``None``: never.
        kwargs: as of ``WholeTrainer``.
    """

    def __init__(self, *, milestone: Asked, stop_below: float | None, **kwargs: Any):
        super().__init__(**kwargs)
        self.milestone, self.stop_below = milestone, stop_below
        self.loss_is_scaled_for_ga = True
        self.seconds, self.since = 0.0, time.monotonic()

    def get_train_dataloader(self) -> DataLoader:
        """Whole batches in order, as they lie on the device."""
        return DataLoader(self.train_dataset, batch_size=1, shuffle=False, collate_fn=_only)

    def floating_point_ops(self, inputs: dict[str, Tensor]) -> int:
        """Not counted."""
        return 0

    def _clip_grad_norm(self, model: torch.nn.Module) -> Tensor:
        """As the Trainer's, without accelerate's searches through all parameters."""
        return torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Any:
        """Cross-entropy where something is asked: the model's own loss, its other logits left out."""
        try:
            hidden = asked_hidden(model, inputs["input_ids"], inputs["places"])
        except ValueError as error:  # a filter on a CPU reads its inputs: a run away model shows there first
            if all(bool(p.isfinite().all()) for p in model.parameters()):
                raise
            raise Diverged(diverged(self.state.global_step)) from error
        with self.accelerator.autocast():
            head, vocab = self.model.lm_head, self.model.config.vocab_size
            return next_token_loss(hidden[None], head, inputs["answers"][None], vocab)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Refuse a loss that is no number, and end early where asked."""
        if "loss" in logs:
            if not math.isfinite(logs["loss"]):
                raise Diverged(diverged(self.state.global_step))
            if self.stop_below is not None and logs["loss"] < self.stop_below:
                self.control.should_training_stop = self.control.should_save = True
        super().log(logs)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Accuracy on the milestone, and the seconds of training so far."""
        with self.paused():
            right = accuracy(self.model, self.milestone, self.args.bf16)
            self.model.train()
        metrics = {"eval_accuracy": right, "eval_seconds": self.seconds}
        self.log(metrics)
        return metrics

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave something out of the seconds of training."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds += time.monotonic() - self.since
        try:
            yield
        finally:
            self.since = time.monotonic()


def _only(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return items[0]


def train(model: BayesMemForCausalLM, job: Job, batches: Batches, milestone: Asked, out: Path) -> Training:
    """Train ``model`` in place as ``job`` says; goes on from the last checkpoint in ``out``.

    Raises:
        Diverged: the loss is no number any more.
        Interrupted: a signal came; a checkpoint was written first.
        ValueError: ``out`` holds checkpoints of another job.
    """
    out.mkdir(parents=True, exist_ok=True)
    check_fingerprint(out, job.settings)
    trainer = RecallTrainer(
        model=model,
        args=_arguments(job, out),
        train_dataset=batches,
        eval_dataset=batches,  # the Trainer wants one; the milestone is what is evaluated
        milestone=milestone,
        stop_below=job.stop_below,
    )
    last = last_checkpoint(out)
    if last is not None:
        trainer.seconds = _seconds_before(last)
    trainer.since = time.monotonic()
    result = fit(trainer, last, [Bar(job.folder), Log(out, step_of(last) if last else 0)])
    with trainer.paused():
        history = trainer.state.log_history
    looks = {row["step"]: (row["eval_seconds"], row["eval_accuracy"]) for row in history if "eval_accuracy" in row}
    milestones = [(step, *found) for step, found in looks.items()]
    return Training(result.losses, milestones, trainer.state.global_step, trainer.seconds)


def _seconds_before(checkpoint: Path) -> float:
    """Seconds of training up to the last look before a checkpoint; those between the two are not known."""
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return next((row["eval_seconds"] for row in reversed(history) if "eval_seconds" in row), 0.0)


def _arguments(job: Job, out: Path) -> TrainingArguments:
    made = TrainingArguments(
        output_dir=str(out),
        max_steps=job.steps,
        per_device_train_batch_size=1,
        learning_rate=job.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=job.steps // 10,
        weight_decay=0.1,
        max_grad_norm=1.0,
        logging_steps=job.log_every,
        logging_nan_inf_filter=False,  # its look at every loss waits for the device
        eval_strategy="steps",
        eval_steps=job.evaluate_every,
        save_steps=job.save_every,
        seed=job.seed,
        data_seed=job.seed,
        bf16=job.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        report_to="none",
        disable_tqdm=True,
    )
    if made.n_gpu > 1:
        made._n_gpu = 1  # several GPUs are the queue's affair
    return made

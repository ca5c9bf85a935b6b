"""Training on transformers' Trainer: seeds, checkpoints, resume after a kill, progress."""

import json
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import Dataset
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

FINGERPRINT = "fingerprint.json"


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop; a checkpoint holds what was learned so far."""


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How to train.

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
        for name in ("steps", "batch_size", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; expected a positive number.")


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training left.

    Attributes:
        losses: logged (step, loss) pairs, those before a resume included.
        seconds: wall-clock of this process's part.
        resumed_from: step of the checkpoint it went on from; 0 for a fresh start.
    """

    losses: list[tuple[int, float]]
    seconds: float
    resumed_from: int


class _Trainer(Trainer):
    """The Trainer, but for which parameters decay."""

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        matrices = (name for name, parameter in model.named_parameters() if parameter.ndim > 1)
        return [name for name in matrices if ".gates." not in name and "conv1d" not in name]


class _Bar(TrainerCallback):
    """A progress bar where someone watches; a line now and then where nobody does."""

    def __init__(self, title: str):
        self.title = title
        self.console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.printed = 0.0

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.progress.start()
        self.task = self.progress.add_task(self.title, total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.progress.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            text = f"{self.title}  loss {logs['loss']:.3f}"
            self.progress.update(self.task, description=text)
            if not self.console.is_terminal and time.monotonic() - self.printed > 15:
                self.printed = time.monotonic()
                self.console.print(f"{text}  step {state.global_step}/{state.max_steps}", highlight=False)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.progress.stop()


class _StopOnSignal(TrainerCallback):
    """Turns the first Ctrl-C (or SIGTERM) into a checkpoint and a clean stop."""

    def __init__(self) -> None:
        self.asked = False

    def ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.asked:
            control.should_save = control.should_training_stop = True


@contextmanager
def _listening(stop: _StopOnSignal) -> Iterator[None]:
    try:
        before = {number: signal.signal(number, stop.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: nobody can signal us here
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(
    model: PreTrainedModel, data: Dataset, config: TrainConfig, out: Path, title: str = "training"
) -> TrainResult:
    """Train ``model`` in place on rows of ``input_ids`` and ``shift_labels`` (or ``labels``).

    Checkpoints lie in ``out``. A call with the same model and config goes on from the last one,
    on a CPU bit for bit; a call with others is refused, so that nothing is overwritten or mixed.

    Args:
        model: any transformers causal language model.
        data: a dataset with a length; its rows are dicts of tensors.
        config: how to train.
        out: folder of the checkpoints.
        title: what the progress bar says.

    Raises:
        ValueError: ``out`` holds checkpoints of another training.
        Interrupted: a signal came; a checkpoint was written first.
    """
    out.mkdir(parents=True, exist_ok=True)
    _check_fingerprint(out, {"train": asdict(config), "model": json.loads(model.config.to_json_string())})
    stop = _StopOnSignal()
    trainer = _Trainer(
        model=model,
        args=_arguments(config, out),
        train_dataset=data,
        callbacks=[_Bar(title), stop],
    )
    for default in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(default)
    last = get_last_checkpoint(str(out))
    while last is not None and not (Path(last) / "trainer_state.json").is_file():
        shutil.rmtree(last)  # killed while it was being written
        last = get_last_checkpoint(str(out))
    started = time.monotonic()
    with _listening(stop):
        trainer.train(resume_from_checkpoint=last)
    if stop.asked and trainer.state.global_step < config.steps:
        raise Interrupted(f"stopped at step {trainer.state.global_step} of {config.steps}; its checkpoint is in {out}")
    losses = [(row["step"], row["loss"]) for row in trainer.state.log_history if "loss" in row]
    resumed = int(last.rsplit("-", 1)[1]) if last else 0
    return TrainResult(losses, time.monotonic() - started, resumed)


def _arguments(config: TrainConfig, out: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(out),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=int(config.warmup * config.steps),
        weight_decay=config.weight_decay,
        max_grad_norm=config.clip,
        logging_steps=config.log_every,
        save_steps=config.save_every,
        save_total_limit=1,
        seed=config.seed,
        data_seed=config.seed,
        bf16=config.bf16,
        label_names=["shift_labels"],
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=True,
    )


def _check_fingerprint(out: Path, fingerprint: dict[str, Any]) -> None:
    for key in ("transformers_version", "_name_or_path"):
        fingerprint["model"].pop(key, None)
    path = out / FINGERPRINT
    if path.is_file():
        before = json.loads(path.read_text())
        if before != json.loads(json.dumps(fingerprint)):
            raise ValueError(
                f"{out} holds checkpoints of a training with other settings; give another --out, or remove it."
            )
    path.write_text(json.dumps(fingerprint, indent=1))

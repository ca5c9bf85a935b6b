"""Training on transformers' Trainer: seeds, whole checkpoints, resume after a kill, progress."""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
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

from bayesmem.train.callbacks import Bar, StopOnSignal, listening
from bayesmem.train.checkpoints import WRITING, check_fingerprint, full_disk_told, last_checkpoint, publish, step_of
from bayesmem.train.config import TrainConfig


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop; a checkpoint holds what was learned so far."""


class Diverged(ValueError):
    """The loss is no longer a number."""


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


class WholeTrainer(Trainer):
    """The Trainer, but for which parameters decay, and that a checkpoint is whole or not there.

    Args:
        keep: checkpoints kept.
        kwargs: the Trainer's own.
    """

    def __init__(self, *, keep: int = 1, **kwargs: Any):
        super().__init__(**kwargs)
        self.keep = keep
        self._writing = False
        self._tr_loss = torch.zeros(())  # the Trainer's: losses since the last log

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """Matrices, but not those of gates and convolutions."""
        matrices = (name for name, parameter in model.named_parameters() if parameter.ndim > 1)
        return [name for name in matrices if ".gates." not in name and "conv1d" not in name]

    def _get_output_dir(self, trial: Any) -> str:
        out = super()._get_output_dir(trial)
        return str(Path(out) / WRITING) if self._writing else out

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        out = Path(self.args.output_dir)
        folder = out / WRITING / f"checkpoint-{self.state.global_step}"
        if not torch.isfinite(self._tr_loss):
            raise Diverged(diverged(self.state.global_step))
        self._writing = True
        try:
            with full_disk_told(out, f"checkpoint {self.state.global_step}"):
                super()._save_checkpoint(model, trial)
                sums = {"sum": self._tr_loss.item(), "since": self._globalstep_last_logged}
                (folder / _sums_file(self.args.process_index)).write_text(json.dumps(sums))
                if self.args.world_size > 1:
                    dist.barrier()
                if self.args.should_save:
                    publish(folder, out, self.keep)
        except OSError:
            shutil.rmtree(out / WRITING, ignore_errors=True)
            raise
        finally:
            self._writing = False

    def restore_sums(self, checkpoint: Path) -> None:
        """Losses summed since the last log, so that the next one is what it would have been."""
        path = checkpoint / _sums_file(self.args.process_index)
        if path.is_file():
            sums = json.loads(path.read_text())
            self._tr_loss = torch.tensor(sums["sum"], dtype=self._tr_loss.dtype, device=self._tr_loss.device)
            self._globalstep_last_logged = sums["since"]


class _GoesOn(TrainerCallback):
    def __init__(self, trainer: WholeTrainer, checkpoint: Path):
        self.trainer, self.checkpoint = trainer, checkpoint

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.trainer.restore_sums(self.checkpoint)


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
        OSError: the disk is full.
        Interrupted: a signal came; a checkpoint was written first.
    """
    out.mkdir(parents=True, exist_ok=True)
    described = json.loads(model.config.to_json_string())
    for key in ("transformers_version", "_name_or_path"):
        described.pop(key, None)
    check_fingerprint(out, {"train": asdict(config), "model": described})
    trainer = WholeTrainer(model=model, args=_arguments(config, out), train_dataset=data)
    return fit(trainer, last_checkpoint(out), [Bar(title)])


def fit(
    trainer: WholeTrainer, last: Path | None, callbacks: Sequence[TrainerCallback], deadline: float | int | None = None
) -> TrainResult:
    """Run a trainer from a checkpoint, or from the start, to the end of its steps or a signal.

    Args:
        trainer: all set.
        last: checkpoint to go on from.
        callbacks: what else happens.
        deadline: of ``time.monotonic``: training stops there as it does on a signal.

    Raises:
        OSError: the disk is full.
        Interrupted: a signal came, or the deadline; a checkpoint was written first.
    """
    stop = StopOnSignal(deadline)
    for default in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(default)
    for one in (*callbacks, stop, *([_GoesOn(trainer, last)] if last else [])):
        trainer.add_callback(one)
    out, steps = Path(trainer.args.output_dir), trainer.args.max_steps
    started = time.monotonic()
    with listening(stop), full_disk_told(out, "a log"):
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    if stop.asked and trainer.state.global_step < steps:
        raise Interrupted(f"stopped at step {trainer.state.global_step} of {steps}; its checkpoint is in {out}")
    losses = [(row["step"], row["loss"]) for row in trainer.state.log_history if "loss" in row]
    return TrainResult(losses, time.monotonic() - started, step_of(last) if last else 0)


def diverged(step: int) -> str:
    """What to say of a training that has run away."""
    return (
        f"by step {step} the loss is no number any more; training stops, and checkpoints from before are kept. "
        "Give a smaller --lr, a longer --warmup, or a smaller --clip, and another --out."
    )


def _sums_file(rank: int) -> str:
    return f"loss_since_log_{rank}.json"


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
        seed=config.seed,
        data_seed=config.seed,
        bf16=config.bf16,
        label_names=["shift_labels"],
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=True,
    )

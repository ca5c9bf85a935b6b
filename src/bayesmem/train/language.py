"""Language modelling on a stream of tokens: one device or many, evaluated in bits per byte."""

import importlib.util
import math
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import AutocastKwargs, DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.utils.data import SequentialSampler
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainingArguments,
    default_data_collator,
)

from bayesmem.train.callbacks import Bar, Log, Speed
from bayesmem.train.checkpoints import check_room, full_disk_told, last_checkpoint
from bayesmem.train.config import RunConfig
from bayesmem.train.flops import peak_flops, training_flops
from bayesmem.train.rows import IGNORED, TokenRows
from bayesmem.train.trainer import Diverged, TrainResult, WholeTrainer, diverged, fit


@dataclass(frozen=True, slots=True)
class Streams:
    """What is trained and evaluated on.

    Attributes:
        train: rows to train on, in order.
        held_out: rows to evaluate on.
        tokens_per_byte: of the held-out text.
    """

    train: TokenRows
    held_out: TokenRows | None = None
    tokens_per_byte: float = 1.0


@dataclass(frozen=True, slots=True)
class LanguageResult:
    """What a run left.

    Attributes:
        training: losses, seconds, and where it went on from.
        evaluations: one dict an evaluation: ``step``, ``eval_loss`` (nats a token), ``eval_perplexity`` (of a
            token) and ``eval_bits_per_byte``.
        folder: of the model and its tokenizer.
    """

    training: TrainResult
    evaluations: list[dict[str, float]]
    folder: Path


class LanguageTrainer(WholeTrainer):
    """The Trainer on rows in order, with exact evaluation and speeds.

    Args:
        tokens_per_byte: of the held-out text.
        step_tokens: tokens a step.
        token_flops: operations a token.
        peak: operations a second of all devices, where known.
        tokenizer: saved beside the model, whose config it does not touch; ``None`` where nothing is saved.
        kwargs: as of ``WholeTrainer``.
    """

    def __init__(
        self,
        *,
        tokens_per_byte: float | int,
        step_tokens: int,
        token_flops: float | int,
        peak: float | int | None,
        tokenizer: PreTrainedTokenizerBase | None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.tokens_per_byte, self.step_tokens = tokens_per_byte, step_tokens
        self.token_flops, self.peak = token_flops, peak
        self.tokenizer = tokenizer
        self.control: TrainerControl
        self.is_fsdp_enabled: bool
        self.speed = Speed()
        self.add_callback(self.speed)

    def create_accelerator_and_postprocess(self) -> None:
        """Shard on a CPU too, where accelerate would make copies in silence."""
        super().create_accelerator_and_postprocess()
        if self.args.fsdp_plugin_args and self.args.world_size > 1 and not self.is_fsdp_enabled:
            state = self.accelerator.state
            state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
            self.is_fsdp_enabled = True

    def compute_loss_context_manager(self) -> ExitStack:
        """Autocast, which accelerate puts around a model's forward pass unless it shards the model (FSDP2).

        Weights' copies of 16 bits are not cached: a cached one would outlive its layer's turn, whole on every device.
        """
        stack: ExitStack = super().compute_loss_context_manager()
        if self.is_fsdp_enabled:
            stack.enter_context(self.accelerator.autocast(AutocastKwargs(cache_enabled=False)))
        return stack

    def _get_train_sampler(self, *_: Any, **__: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # the rows are shuffled by themselves

    def floating_point_ops(self, inputs: dict[str, Tensor]) -> float:
        """Operations of a batch, for ``total_flos``."""
        return self.token_flops * inputs["input_ids"].numel()

    def training_step(self, model: torch.nn.Module, *rest: Any, **options: Any) -> Tensor:
        """One forward and backward pass; a model that has run away is told so, whichever layer notices first."""
        try:
            return super().training_step(model, *rest, **options)
        except ValueError as error:
            if all(bool(p.isfinite().all()) for p in model.parameters()):
                raise
            raise Diverged(diverged(self.state.global_step)) from error

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add tokens and speeds to what is logged, and refuse a loss that is none."""
        if "loss" in logs:
            if not math.isfinite(logs["loss"]):
                raise Diverged(diverged(self.state.global_step))
            logs["tokens"] = self.state.global_step * self.step_tokens
            rate = self.speed.since_last(self.state.global_step)
            if rate is not None:
                logs["tokens_per_second"] = rate * self.step_tokens
                if self.peak is not None:
                    logs["model_flops_utilisation"] = logs["tokens_per_second"] * self.token_flops / self.peak
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Every held-out token once, summed over devices: nats a token, perplexity, bits a byte of text."""
        with self.speed.pause(), torch.no_grad():
            self.model.eval()
            sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)
            for batch in self.get_eval_dataloader(eval_dataset):
                inputs = self._prepare_inputs(batch)
                with self.compute_loss_context_manager():
                    nats = self.model(**inputs, num_items_in_batch=1, use_cache=False).loss
                sums += torch.stack([nats.double(), (inputs["labels"] != IGNORED).sum().double()])
            nats, count = self.accelerator.reduce(sums, "sum").tolist()
            self.model.train()
        loss = nats / count
        metrics = {
            f"{metric_key_prefix}_loss": loss,
            f"{metric_key_prefix}_perplexity": math.exp(min(loss, 700.0)),
            f"{metric_key_prefix}_bits_per_byte": loss / math.log(2) * self.tokens_per_byte,
            f"{metric_key_prefix}_tokens": int(count),
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def save_whole(self, folder: Path) -> None:
        """Write model and tokenizer as one process would, however the parameters are sharded. All ranks call it."""
        if not self.is_fsdp_enabled:
            self.save_model(str(folder))
            return
        whole = get_model_state_dict(self.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        self._save(str(folder), whole)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save and self.tokenizer is not None:
            self.tokenizer.save_pretrained(output_dir or self.args.output_dir)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        with self.speed.pause():
            super()._save_checkpoint(model, trial)


def train_language(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    streams: Streams,
    config: RunConfig,
    args: TrainingArguments,
    kind: Callable[..., LanguageTrainer] = LanguageTrainer,
    title: str = "train",
    deadline: float | int | None = None,
) -> LanguageResult:
    """Train ``model`` in place, and save it with its tokenizer in ``out/model``.

    Goes on from the last whole checkpoint in ``out``, on a CPU bit for bit; a caller who does not want that gives an
    empty folder.

    Args:
        model: freshly made, or loaded; the same on every rank.
        tokenizer: saved beside it.
        streams: what to train and evaluate on.
        config: of the run.
        args: its ``arguments``.
        kind: makes the trainer, for a loss of its own.
        title: what the progress bar says.
        deadline: of ``time.monotonic``: training stops there as it does on a signal.

    Raises:
        ValueError: the loss is no longer a number.
        OSError: the disk is full, or would be.
        Interrupted: a signal came, or the deadline; a checkpoint was written first.
    """
    out = Path(args.output_dir)
    main = args.process_index == 0
    if main:
        out.mkdir(parents=True, exist_ok=True)
    last = _agreed(last_checkpoint(out) if main else None, args)
    if main:
        held = 4 * sum(p.numel() for p in model.parameters())
        check_room(out, 3 * held * (config.keep + 1) + held, "checkpoints and the model")
    if config.recompute:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    model.train()
    peak = peak_flops(args.device, config.bf16)
    trainer = kind(
        tokens_per_byte=streams.tokens_per_byte,
        step_tokens=config.step_tokens,
        token_flops=training_flops(model, config.length),
        peak=None if peak is None else peak * args.world_size,
        keep=config.keep,
        model=model,
        args=args,
        train_dataset=streams.train,
        eval_dataset=streams.held_out,
        data_collator=default_data_collator,
        tokenizer=tokenizer,
    )
    callbacks: list[TrainerCallback] = [Bar(title)]
    if main:
        callbacks += [Log(out, int(last.name.rsplit("-", 1)[1]) if last else 0), *_tensorboard(out)]
    result = fit(trainer, last, callbacks, deadline)
    folder = _save(trainer, out)
    evaluations = [row for row in trainer.state.log_history if "eval_loss" in row]
    return LanguageResult(result, evaluations, folder)


def _agreed(last: Path | None, args: TrainingArguments) -> Path | None:
    """The main process's checkpoint, on all ranks."""
    if args.world_size == 1:
        return last
    told: list[str | None] = [None if last is None else str(last)]
    dist.broadcast_object_list(told, src=0)
    return None if told[0] is None else Path(told[0])


def _save(trainer: LanguageTrainer, out: Path) -> Path:
    place, beside = out / "model", out / "model.writing"
    with full_disk_told(out, "the model"):
        trainer.save_whole(beside)
        if trainer.args.should_save:
            (beside / "training_args.bin").unlink(missing_ok=True)
            shutil.rmtree(place, ignore_errors=True)
            beside.rename(place)
    if trainer.args.world_size > 1:
        dist.barrier()
    return place


def _tensorboard(out: Path) -> list[TrainerCallback]:
    if not importlib.util.find_spec("tensorboard"):
        return []
    from transformers.integrations import TensorBoardCallback

    board = TensorBoardCallback()
    board.logging_dir = str(out / "tensorboard")
    return [board]

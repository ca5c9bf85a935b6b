"""A distillation and its controls: each arm trained from the same teacher, evaluated on the same text, recorded.

The student's covariance is opened; a control is the same model with the covariance kept reset, trained by the same loss
on the same rows in the same order, for as many tokens, floating-point operations, or seconds of the devices. What the
student has over a control is thus the covariance's, not the training's.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import PreTrainedTokenizerFast, TrainingArguments

from bayesmem.experiments import distill_measure as measure
from bayesmem.experiments import pretrain
from bayesmem.experiments.distill_config import ARMS, STUDENT, DistillConfig, mark_of
from bayesmem.experiments.eval_checkpoint import weights_of
from bayesmem.models import BayesMemForCausalLM
from bayesmem.models.opening import Start, start
from bayesmem.report.records import Record, Records, records_in
from bayesmem.tasks.tokenizer import load_tokenizer
from bayesmem.train import DistillTrainer, Interrupted, RunConfig, Streams, arguments, choose_trained, train_language
from bayesmem.train.checkpoints import full_disk_told, write_whole
from bayesmem.train.flops import forward_flops, training_flops

EXPERIMENT = "distill"
TEACHER = "teacher"
WORK = "runs"  # under the output folder: an arm's checkpoints and log while it trains


@dataclass(frozen=True, slots=True)
class Setting:
    """What all arms share.

    Attributes:
        config: of the distillation.
        start: the three models.
        out: folder of all output.
        tokenizer: of all of them.
        records: where results go.
        deadline: of ``time.monotonic``.
        tell: is told what happens.
    """

    config: DistillConfig
    start: Start
    out: Path
    tokenizer: PreTrainedTokenizerFast
    records: Records
    deadline: float | None
    tell: Callable[[str], None]


def run(
    config: DistillConfig,
    out: Path,
    *,
    resume: bool = False,
    time_limit: float | int | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Record]:
    """Distil and train the controls, in folder ``out``; arms that are finished are not trained again.

    Args:
        config: of the distillation.
        out: holds at the end ``teacher``, ``student`` and ``control-...``, models that load, and ``records.jsonl``.
        resume: go on with what is there; nothing there is no error.
        time_limit: seconds after which a checkpoint is written and the run stops.
        tell: is told what happens.

    Returns:
        A record for the teacher and every arm, by name.

    Raises:
        ValueError: a teacher that cannot be converted or does not fit its tokenizer, bad data, another run's folder.
        OSError: the disk is full.
        Interrupted: a signal came, or the time is up; a checkpoint was written first.
    """
    deadline = None if time_limit is None else time.monotonic() + time_limit
    teacher = Path(str(config.run.start))
    begun = start(teacher, config.conversion())
    config = replace(config, mark=mark_of(teacher))
    pretrain.check_folder(config, out, resume)
    tokenizer = _tokenizer(config, teacher, begun)
    folder = Path(config.run.prepared) if config.run.prepared else out / "data"
    files, held_out = pretrain.find_texts(config.run, folder)
    args = arguments(config.run, out / WORK / STUDENT)
    tell = tell if args.process_index == 0 else lambda _: None
    with pretrain.main_first(args):
        if args.process_index == 0:
            out.mkdir(parents=True, exist_ok=True)
            if not (out / pretrain.RUN).is_file():
                write_whole(out / pretrain.RUN, config.to_json())
        with full_disk_told(out, "tokens"):
            train = pretrain.prepared_text(config.run, folder, "train", files, tokenizer, tell)
            held = pretrain.prepared_text(config.run, folder, "held_out", held_out, tokenizer, tell)
        if args.process_index == 0:
            with full_disk_told(out, "the teacher"):
                _publish_teacher(begun, tokenizer, out)
    setting = Setting(config, begun, out, tokenizer, records_in(out), deadline, tell)
    found = {TEACHER: _teacher(setting, pretrain.streams_of(config.run, train, held, args), args)}
    for name in (STUDENT, *(ARMS[control] for control in config.controls)):
        arm = replace(config.run, tokens=_steps(setting, name, found) * config.run.step_tokens)
        args = arguments(arm, out / WORK / name)
        found[name] = _arm(setting, name, arm, pretrain.streams_of(arm, train, held, args), args)
    return found


def saved_config(out: Path) -> dict[str, Any] | None:
    """The config of the distillation in a folder as plain data, its mark left out; ``None`` where there is none.

    Raises:
        ValueError: what is there is none.
    """
    path = out / pretrain.RUN
    if not path.is_file():
        return None
    try:
        given = measure.read_object(path)
        DistillConfig.of(given)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return {name: value for name, value in given.items() if name != "mark"}


def _tokenizer(config: DistillConfig, teacher: Path, begun: Start) -> PreTrainedTokenizerFast:
    """The teacher's, or the one that is given in its place; its ids are rows of the teacher's embedding."""
    own = any(path.name.startswith("tokenizer") for path in begun.source.companions())
    if config.tokenizer is None and not own:
        raise ValueError(f"{teacher} holds no tokenizer; name the folder of the one it was trained with, --tokenizer.")
    found = load_tokenizer(config.tokenizer or teacher)
    vocab = begun.teacher.config.vocab_size
    if len(found) > vocab:
        raise ValueError(
            f"the tokenizer in {config.tokenizer or teacher} has {len(found)} tokens, the teacher's vocabulary "
            f"{vocab}; they do not belong together."
        )
    if config.tokenizer is not None and own and load_tokenizer(teacher).get_vocab() != found.get_vocab():
        raise ValueError(
            f"the tokenizer in {config.tokenizer} is not the teacher's own in {teacher}: ids would change their "
            "meaning. Leave out --tokenizer."
        )
    return found


def _publish_teacher(begun: Start, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """The teacher as one of ours beside the arms, in the dtype that it has, for evaluation."""
    if not (out / TEACHER).is_dir():
        beside = out / f"{TEACHER}.writing"
        shutil.rmtree(beside, ignore_errors=True)
        model = begun.teacher.build(begun.source)
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        beside.rename(out / TEACHER)


def _teacher(setting: Setting, streams: Streams, args: TrainingArguments) -> Record:
    """The teacher's own figures."""
    settings = _settings(setting, setting.config.run, args)
    found = setting.records.find(EXPERIMENT, TEACHER, settings)
    if found is None:
        setting.tell("the teacher on the held-out text")
        model = setting.start.build("teacher")
        figures = measure.held_out(model, streams, args) | {"parameters": model.num_parameters()}
        figures |= measure.trained_as(Path(str(setting.config.run.start)))
        found = _record(setting, TEACHER, settings, figures, args)
    return found


def _arm(setting: Setting, name: str, arm: RunConfig, streams: Streams, args: TrainingArguments) -> Record:
    """Train one arm to its end, publish its model and record it, unless that was done."""
    config, settings, place = setting.config, _settings(setting, arm, args), setting.out / name
    found = setting.records.find(EXPERIMENT, name, settings)
    if found is not None and place.is_dir():
        setting.tell(f"{name}: finished before, {found.figures['bits_per_byte']:.4f} bits per byte")
        return found
    if measure.agreed(setting.deadline is not None and time.monotonic() > setting.deadline, args):
        raise Interrupted(f"the time is up before {name}")
    teacher = setting.start.build("teacher")
    model = setting.start.build("student" if name == STUDENT else "control")
    model.generation_config.eos_token_id = setting.tokenizer.eos_token_id
    if scaled := measure.scaled(model, teacher, streams, args):
        setting.tell(f"{name}: {scaled} memories scaled to the attention that they replace")
    trained = choose_trained(model, config.options.trains)
    sizes = {"parameters": model.num_parameters(), "trained": trained, "steps": arm.steps}
    sizes |= {"flops": arm_flops(config, model, teacher, arm.steps)}
    setting.tell(f"{name}: {arm.steps:,} steps of {arm.step_tokens:,} tokens, {sizes['flops']:.3g} operations")
    before = measure.beginning(model, teacher, streams, args)
    kind = partial(DistillTrainer, teacher=teacher, options=config.options)
    result = train_language(model, setting.tokenizer, streams, arm, args, kind, name, setting.deadline)
    last = result.evaluations[-1]
    figures: dict[str, Any] = {key.removeprefix("eval_"): last[key] for key in last if key.startswith("eval_")}
    figures |= sizes | measure.speed(Path(args.output_dir), arm, args.world_size)
    figures |= {"beginning": before, "ending": measure.memory(model, streams, args), "losses": result.training.losses}
    figures["evaluations"] = [[row["step"], row["eval_bits_per_byte"]] for row in result.evaluations]
    if args.process_index == 0:
        shutil.rmtree(place, ignore_errors=True)
        result.folder.rename(place)
    found = _record(setting, name, settings, figures, args)
    if args.process_index == 0:  # the log stays
        for checkpoint in Path(args.output_dir).glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    return found


def _steps(setting: Setting, name: str, found: dict[str, Record]) -> int:
    """Optimiser steps of an arm."""
    config = setting.config
    steps = config.run.steps
    if name == ARMS["flops"]:
        teacher, student, control = (setting.start.build(kind) for kind in (TEACHER, STUDENT, "control"))
        for model in (student, control):
            choose_trained(model, config.options.trains)
        budget = arm_flops(config, student, teacher, steps)
        return matched_steps(budget, partial(arm_flops, config, control, teacher), steps)
    if name == ARMS["seconds"]:
        spent = found[STUDENT].figures["device_seconds"]
        return max(1, round(spent / (found[ARMS["tokens"]].figures["device_seconds"] / steps)))
    return steps


def arm_flops(config: DistillConfig, model: BayesMemForCausalLM, teacher: BayesMemForCausalLM, steps: int) -> float:
    """Operations of an arm: those of its training, and of the teacher's forward in the steps that ask for it."""
    length, options = config.run.length, config.options
    own = steps * training_flops(model, length) + options.mix.teacher_steps(steps) * forward_flops(teacher, length)
    return own * config.run.step_tokens


def matched_steps(budget: float | int, spent: Callable[[int], float | int], guess: int) -> int:
    """The fewest steps whose operations reach a budget.

    Args:
        budget: operations.
        spent: operations of so many steps, rising.
        guess: steps to begin from.
    """
    steps = max(1, int(guess * budget / spent(guess)))
    while spent(steps) < budget:
        steps += 1
    while steps > 1 and spent(steps - 1) >= budget:
        steps -= 1
    return steps


def _settings(setting: Setting, arm: RunConfig, args: TrainingArguments) -> dict[str, Any]:
    """All that the figures depend on, an arm's own budget in it."""
    whole = asdict(setting.config) | {"run": asdict(arm), "devices": args.world_size}
    del whole["controls"]  # which others there are changes nothing
    whole["kind"] = setting.start.kind
    return whole


def _record(
    setting: Setting, name: str, settings: dict[str, Any], figures: dict[str, Any], args: TrainingArguments
) -> Record:
    """Added by the main process, and found by all."""
    if args.process_index == 0:
        figures["weights"] = weights_of(setting.out / name)  # by which evaluations find it
        setting.records.add(EXPERIMENT, name, settings, figures)
    if args.world_size > 1:
        dist.barrier()
    found = setting.records.find(EXPERIMENT, name, settings)
    assert found is not None
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache() if hasattr(torch.accelerator, "empty_cache") else torch.cuda.empty_cache()
    return found

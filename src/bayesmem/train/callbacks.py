"""What happens beside the steps: a progress bar, a clean stop on a signal, a log one line a time."""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState

from bayesmem.train.checkpoints import write_whole

QUIET = 15.0  # seconds between lines where nobody watches a bar


class Bar(TrainerCallback):
    """A progress bar where someone watches; a line now and then where nobody does.

    Args:
        title: what is trained.
    """

    def __init__(self, title: str):
        self.title = title
        self.console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.printed = 0.0

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Show the bar, on the main process alone."""
        self.main = state.is_world_process_zero
        if self.main:
            self.progress.start()
            self.task = self.progress.add_task(self.title, total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move it."""
        if self.main:
            self.progress.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any) -> None:
        """Tell the figures."""
        text = _told(logs or {})
        if not text or not state.is_world_process_zero:
            return
        evaluated = "eval_loss" in logs
        if hasattr(self, "task") and not evaluated:
            self.progress.update(self.task, description=f"{self.title}  {text}")
        if evaluated or (not self.console.is_terminal and time.monotonic() - self.printed > QUIET):
            self.printed = time.monotonic() if not evaluated else self.printed
            self.console.print(f"{self.title}  {text}  step {state.global_step}/{state.max_steps}", highlight=False)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Take it away."""
        self.progress.stop()


class StopOnSignal(TrainerCallback):
    """Turns the first Ctrl-C (or SIGTERM) into a checkpoint and a clean stop, of all ranks after the same step.

    Args:
        deadline: of ``time.monotonic``, when to stop unasked.
    """

    def __init__(self, deadline: float | int | None = None) -> None:
        self.asked = False
        self.deadline = deadline

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Take a signal; a second one stops at once."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stop here if any rank was asked; several ranks agree when they log."""
        if self.deadline is not None and time.monotonic() > self.deadline:
            self.asked = True
        if args.world_size > 1:
            if state.global_step % args.logging_steps:
                return
            asked = torch.tensor(float(self.asked), device=args.device)
            dist.all_reduce(asked, dist.ReduceOp.MAX)
            self.asked = bool(asked.item())
        if self.asked:
            control.should_save = control.should_training_stop = True


class Log(TrainerCallback):
    """One JSON object a line for every log and evaluation, in ``log.jsonl``.

    Args:
        out: folder of the run.
        step: where training goes on from: what was logged after it is taken back.
    """

    def __init__(self, out: Path, step: int):
        self.path = out / "log.jsonl"
        kept = [row for row in rows(self.path) if row["step"] <= step]
        write_whole(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any) -> None:
        """Append a line."""
        if logs and state.is_world_process_zero:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


class Speed(TrainerCallback):
    """Steps a second between logs; the first step, which compiles and tunes, and pauses do not count."""

    def __init__(self) -> None:
        self.since: float | None = None
        self.step = 0
        self.paused = 0.0

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Begin to count after the first step."""
        if self.since is None:
            self.since, self.step = time.monotonic(), state.global_step

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave out the time of an evaluation or a checkpoint."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self.paused += time.monotonic() - begun

    def since_last(self, step: int) -> float | None:
        """Steps a second since the last call, and count anew; ``None`` before there is anything to tell."""
        if self.since is None or step <= self.step:
            return None
        now = time.monotonic()
        rate = (step - self.step) / max(now - self.since - self.paused, 1e-9)
        self.since, self.step, self.paused = now, step, 0.0
        return rate


def rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; a last one that a kill cut short is left out."""
    found: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_text().splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                break
    return found


@contextmanager
def listening(stop: StopOnSignal) -> Iterator[None]:
    """Take signals while training, where this is the thread that can."""
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


def _told(logs: dict[str, Any]) -> str:
    forms = {
        "loss": "loss {:.3f}",
        "align": "alignment {:.3g}",
        "kl": "KL {:.3g}",
        "ce": "cross-entropy {:.3f}",
        "tokens_per_second": "{:,.0f} tokens/s",
        "model_flops_utilisation": "MFU {:.1%}",
        "eval_loss": "held out: loss {:.3f}",
        "eval_perplexity": "perplexity {:,.1f}",
        "eval_bits_per_byte": "{:.4f} bits per byte",
    }
    return "  ".join(form.format(logs[name]) for name, form in forms.items() if name in logs)

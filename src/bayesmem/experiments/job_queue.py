"""A queue of jobs, several side by side, each in its own process; stopped at any moment, it goes on from its folder."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Generic

import torch

from bayesmem.experiments.job_process import BESIDE, J, quiet
from bayesmem.train import Interrupted

POLL = 0.2  # seconds between looks at the processes
GRACE = 120.0  # seconds that a job has to save when it is asked to stop
WORD = 30.0  # seconds between words about what runs
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Due(Generic[J]):
    """What a study has left to do.

    Attributes:
        jobs: those that can start now, in order.
        waiting: what has to wait, in words.
        done: jobs of the same stages with a record.
    """

    jobs: list[J]
    waiting: list[str]
    done: int


@dataclass(frozen=True, slots=True)
class Work(Generic[J]):
    """A study, as a queue sees it.

    Attributes:
        command: program that runs one job; the folder of all output follows, and settings come on its standard input.
        run: the same in this process.
        due: what is left, asked again whenever a job has ended.
        told: what to say of a job that has its record.
        prepare: makes what all jobs share, before the first; called only where a job is due.
    """

    command: tuple[str, ...]
    run: Callable[[J, Path], None]
    due: Callable[[], Due[J]]
    told: Callable[[J], str]
    prepare: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a queue ended.

    Attributes:
        finished: jobs that got their record.
        left: jobs that are due still.
        failed: jobs that ended with an error, with the file of what they said.
        waiting: what waits for jobs that are not due, in words.
    """

    finished: int
    left: int
    failed: dict[str, Path]
    waiting: list[str]


def run_jobs(work: Work[J], out: Path, jobs: int = 1, time_limit: float | None = None, tell: Tell = print) -> Outcome:
    """Run what is due of a study, as far as the time allows.

    What is under way lies in ``out/jobs``; the same call with the same folder, on this machine or another, goes on from
    there.

    Args:
        work: the study.
        out: folder of all output.
        jobs: how many train side by side; they share the visible GPUs evenly.
        time_limit: seconds after which those under way save and stop (which takes some seconds more).
        tell: is told what happens.

    Raises:
        ValueError: settings that do not fit.
        KeyboardInterrupt: Ctrl-C or SIGTERM; those under way have saved.
    """
    if jobs < 1:
        raise ValueError(f"jobs is {jobs}; expected at least 1.")
    end = float("inf") if time_limit is None else time.monotonic() + time_limit
    first = work.due()
    tell(f"{first.done} jobs have a record, {len(first.jobs)} are due")
    if first.jobs:
        work.prepare()
    queue = _Queue(work, out, jobs, tell)
    with _asked_to_stop() as asked:
        (_one_by_one if jobs == 1 else _side_by_side)(queue, end, asked)
    last = work.due()
    if asked:
        raise KeyboardInterrupt
    return Outcome(queue.finished, len(last.jobs), queue.failed, last.waiting)


@dataclass(slots=True)
class _Queue(Generic[J]):
    work: Work[J]
    out: Path
    slots: int
    tell: Tell
    running: dict[int, tuple[subprocess.Popen[str], J, float]] = field(default_factory=dict)
    failed: dict[str, Path] = field(default_factory=dict)
    finished: int = 0
    stopping: bool = False

    def start(self, job: J) -> None:
        slot = next(i for i in range(self.slots) if i not in self.running)
        place = self.out / "jobs" / job.folder
        place.mkdir(parents=True, exist_ok=True)
        with (self.out / "jobs" / f"{job.folder}.log").open("a") as log:
            process = subprocess.Popen(
                [*self.work.command, str(self.out)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                text=True,
                env=_environment(slot, self.slots),
            )
        assert process.stdin is not None
        with process.stdin as pipe:
            pipe.write(json.dumps(job.settings))
        self.running[slot] = process, job, time.monotonic()

    def collect(self) -> bool:
        """Take note of jobs that ended; whether any did."""
        ended = [slot for slot, (process, *_) in self.running.items() if process.poll() is not None]
        for slot in ended:
            process, job, begun = self.running.pop(slot)
            log = self.out / "jobs" / f"{job.folder}.log"
            if process.returncode == 0:
                log.unlink(missing_ok=True)
                self.ended(job, begun)
            elif not self.stopping:  # asked to stop, they end as they can; their checkpoints are kept
                self.failed[job.folder] = log
                last = log.read_text().strip().rsplit("\n", 1)[-1]
                self.tell(f"{job.folder} failed with status {process.returncode}: {last} ({log})")
        return bool(ended)

    def ended(self, job: J, begun: float) -> None:
        """Tell of a job that has its record."""
        self.finished += 1
        self.tell(f"{self.work.told(job)}  ({time.monotonic() - begun:.0f} s)")

    def stop(self) -> None:
        """Have all save, and wait for them."""
        self.stopping = True
        for process, *_ in self.running.values():
            process.send_signal(signal.SIGTERM)
        until = time.monotonic() + GRACE
        while self.running and time.monotonic() < until:
            self.collect()
            time.sleep(POLL)
        for process, *_ in self.running.values():
            process.kill()

    def ordered(self, jobs: list[J]) -> list[J]:
        """What is due and neither runs nor failed; that which has a checkpoint first."""
        taken = {job.folder for _, job, _ in self.running.values()} | set(self.failed)
        free = [job for job in jobs if job.folder not in taken]
        return sorted(free, key=lambda job: not any((self.out / "jobs" / job.folder).glob("checkpoint-*")))


def _one_by_one(queue: _Queue[Any], end: float, asked: list[int]) -> None:
    """All jobs in this process, which saves starting one for each; an error of one ends all."""
    timed: list[bool] = []

    def time_is_up() -> None:
        timed.append(True)
        os.kill(os.getpid(), signal.SIGTERM)  # which a training takes as it takes a user's: it saves

    quiet()
    timer = threading.Timer(min(end - time.monotonic(), threading.TIMEOUT_MAX), time_is_up)
    timer.daemon = True
    timer.start()
    try:
        while not asked and (jobs := queue.ordered(queue.work.due().jobs)):
            begun = time.monotonic()
            queue.work.run(jobs[0], queue.out)
            queue.ended(jobs[0], begun)
    except Interrupted as stop:
        if not timed:
            raise
        queue.tell(f"the time is up: {stop}")
    finally:
        timer.cancel()
    if timed:
        asked.clear()  # the signal was ours


def _side_by_side(queue: _Queue[Any], end: float, asked: list[int]) -> None:
    """Jobs in processes of their own, as many as there are slots."""
    jobs, spoken = queue.work.due().jobs, time.monotonic()
    while time.monotonic() < end and not asked:
        for job in queue.ordered(jobs)[: queue.slots - len(queue.running)]:
            queue.start(job)
        if not queue.running:
            break
        time.sleep(POLL)
        if queue.collect():
            jobs = queue.work.due().jobs
        if time.monotonic() - spoken > WORD:
            spoken = time.monotonic()
            queue.tell(f"{len(queue.running)} run, {queue.finished} are done, {len(jobs)} are left")
    if queue.running:
        queue.tell(f"{'asked to stop' if asked else 'the time is up'}: {len(queue.running)} jobs save")
        queue.stop()


def _environment(slot: int, slots: int) -> dict[str, str]:
    """Of a job: one of the GPUs, its share of the cores, and how many others there are."""
    here = dict(os.environ)
    named = here.get("CUDA_VISIBLE_DEVICES")
    devices = named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]
    if devices:
        here["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    here.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // slots)))
    return here | {BESIDE: str(slots), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}


@contextmanager
def _asked_to_stop() -> Iterator[list[int]]:
    """Holds the signals that came; a second one stops at once."""
    asked: list[int] = []

    def take(number: int, _: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before: dict[int, Any] = {number: signal.signal(number, take) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

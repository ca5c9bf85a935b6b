"""A queue of jobs, several side by side, each in its own process; stopped at any moment, it goes on from its folder."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from bayesmem.experiments.mqar_config import EXPERIMENT, Job
from bayesmem.experiments.mqar_data import prepare
from bayesmem.experiments.mqar_job import BESIDE, quiet, run
from bayesmem.experiments.mqar_stages import Sweep, due, every_data
from bayesmem.report.records import records_in
from bayesmem.train import Interrupted

COMMAND = (sys.executable, "-m", "bayesmem.experiments.mqar_job")
POLL = 0.2  # seconds between looks at the processes
GRACE = 120.0  # seconds that a job has to save when it is asked to stop
WORD = 30.0  # seconds between words about what runs
Tell = Callable[[str], None]


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


@dataclass(slots=True)
class _Queue:
    out: Path
    slots: int
    tell: Tell
    running: dict[int, tuple[subprocess.Popen, Job, float]] = field(default_factory=dict)
    failed: dict[str, Path] = field(default_factory=dict)
    finished: int = 0
    stopping: bool = False

    def start(self, job: Job) -> None:
        slot = next(i for i in range(self.slots) if i not in self.running)
        place = self.out / "jobs" / job.folder
        place.mkdir(parents=True, exist_ok=True)
        with (self.out / "jobs" / f"{job.folder}.log").open("a") as log:
            process = subprocess.Popen(
                [*COMMAND, str(self.out)],
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

    def ended(self, job: Job, begun: float) -> None:
        """Tell of a job that has its record."""
        self.finished += 1
        self.tell(f"{self._result(job)}  ({time.monotonic() - begun:.0f} s)")

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

    def _result(self, job: Job) -> str:
        record = records_in(self.out).find(EXPERIMENT, job.model, job.settings)
        if record is None:
            return f"{job.folder} was done already"
        figures = record.figures
        if "diverged" in figures:
            return f"{job.folder} diverged"
        told = "  ".join(f"{length},{pairs} {right:.3f}" for length, pairs, right in figures["accuracy"])
        loss = f"  loss {figures['losses'][-1][1]:.2g}" if figures["losses"] else ""
        return f"{job.folder}  {told}{loss}"


def run_queue(
    sweep: Sweep, stages: tuple[str, ...], out: Path, jobs: int = 1, time_limit: float | None = None, tell: Tell = print
) -> Outcome:
    """Run the stages of a study, as far as the time allows.

    Records lie in ``out/records.jsonl``, rows in ``out/data``, what is under way in ``out/jobs``; the same call with
    the same folder, on this machine or another, goes on from there.

    Args:
        sweep: the study.
        stages: of ``mqar_stages.STAGES``; they run in the study's order.
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
    first = due(sweep, stages, records_in(out).all())
    tell(f"{first.done} jobs have a record, {len(first.jobs)} are due")
    if first.jobs:
        made = prepare(out / "data", every_data(sweep, stages), os.cpu_count() or 1)
        tell(f"rows are ready ({made} parts were made)")
    queue = _Queue(out, jobs, tell)
    with _asked_to_stop() as asked:
        if jobs == 1:
            _one_by_one(queue, sweep, stages, end, asked)
        else:
            _side_by_side(queue, sweep, stages, end, asked)
    last = due(sweep, stages, records_in(out).all())
    if asked:
        raise KeyboardInterrupt
    return Outcome(queue.finished, len(last.jobs), queue.failed, last.waiting)


def _one_by_one(queue: _Queue, sweep: Sweep, stages: tuple[str, ...], end: float, asked: list[int]) -> None:
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
        while not asked and (jobs := _ordered(queue, due(sweep, stages, records_in(queue.out).all()).jobs)):
            begun = time.monotonic()
            run(jobs[0], queue.out)
            queue.ended(jobs[0], begun)
    except Interrupted as stop:
        if not timed:
            raise
        queue.tell(f"the time is up: {stop}")
    finally:
        timer.cancel()
    if timed:
        asked.clear()  # the signal was ours


def _side_by_side(queue: _Queue, sweep: Sweep, stages: tuple[str, ...], end: float, asked: list[int]) -> None:
    """Jobs in processes of their own, as many as there are slots."""
    jobs, spoken = due(sweep, stages, records_in(queue.out).all()).jobs, time.monotonic()
    while time.monotonic() < end and not asked:
        for job in _ordered(queue, jobs)[: queue.slots - len(queue.running)]:
            queue.start(job)
        if not queue.running:
            break
        time.sleep(POLL)
        if queue.collect():
            jobs = due(sweep, stages, records_in(queue.out).all()).jobs
        if time.monotonic() - spoken > WORD:
            spoken = time.monotonic()
            queue.tell(f"{len(queue.running)} run, {queue.finished} are done, {len(jobs)} are left")
    if queue.running:
        queue.tell(f"{'asked to stop' if asked else 'the time is up'}: {len(queue.running)} jobs save")
        queue.stop()


def _ordered(queue: _Queue, jobs: list[Job]) -> list[Job]:
    """What is due and neither runs nor failed; that which has a checkpoint first."""
    taken = {job.folder for _, job, _ in queue.running.values()} | set(queue.failed)
    free = [job for job in jobs if job.folder not in taken]
    return sorted(free, key=lambda job: not any((queue.out / "jobs" / job.folder).glob("checkpoint-*")))


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

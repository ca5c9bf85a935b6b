"""Ops side by side: each contender in a process of its own, same inputs, every result a record at once."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import TextIOBase
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from bayesmem.experiments.bench_config import CEILINGS, PRESETS, WHATS, Job, shapes
from bayesmem.experiments.bench_contenders import contenders
from bayesmem.report.records import Records, context, records_in

EXPERIMENT = "bench"
COMMAND = [sys.executable, "-m", "bayesmem.experiments.bench_measure"]
CUT = "cut short"  # how the reason of a job begins that is tried again next time


@dataclass(frozen=True, slots=True)
class BenchRun:
    """Settings of a run.

    Attributes:
        preset: of ``bench_config.PRESETS``.
        whats: kinds of measurement, of ``bench_config.WHATS``.
        only: contenders; empty for all.
        limit: seconds a contender may take, compilation and autotuning included.
        compile_ahead: call every op once at a small size first, contenders side by side, so that compilation
            uses all cores; what autotuning finds then, under such load, is not kept.
        seed: of the inputs.
    """

    preset: str = "headline"
    whats: tuple[str, ...] = WHATS
    only: tuple[str, ...] = ()
    limit: float | int = 300.0
    compile_ahead: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"shapes is {self.preset!r}; expected one of {', '.join(PRESETS)}.")
        if not self.whats or (unknown := sorted(set(self.whats) - set(WHATS))):
            told = ", ".join(map(repr, unknown)) if self.whats else "empty"
            raise ValueError(f"what is {told}; expected some of {', '.join(WHATS)}, with commas between.")
        if not self.limit > 0:
            raise ValueError(f"limit is {self.limit:g} seconds; expected more than 0.")


def jobs(config: BenchRun, device: str) -> list[Job]:
    """All measurements of a run: the ceilings, then contender by contender.

    Args:
        config: settings.
        device: ``cuda`` or ``cpu``.

    Raises:
        ValueError: a contender that there is not on this device.
    """
    known = contenders(device)
    if unknown := sorted(set(config.only) - set(known)):
        raise ValueError(
            f"there is no contender {', '.join(unknown)} on {device}; expected some of {', '.join(known)}."
        )
    dtype = "bfloat16" if device == "cuda" else "float32"
    found = [Job(CEILINGS, what, None, dtype, config.seed) for what in ("matmul", "copy")]
    for name, contender in known.items():
        for what in (what for what in WHATS if what in config.whats and (not config.only or name in config.only)):
            if contender.op(what):
                found += [Job(name, what, shape, dtype, config.seed) for shape in shapes(config.preset, what, device)]
    return found


def run(config: BenchRun, out: Path) -> None:
    """Measure what is not in the records yet (same device, versions and commit), and write each result to them.

    Args:
        config: settings.
        out: folder of the records.

    Raises:
        ValueError: contenders that there are not.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    records = records_in(out)
    here, done = context(), _recorded(records)
    todo = [job for job in jobs(config, device) if _key(job, here) not in done]
    console = Console(stderr=True)
    if not todo:
        console.print("every measurement is in the records already (same device, versions and commit)")
        return
    if config.compile_ahead:
        _compile_ahead(config, device, todo, console)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("bench", total=len(todo))
        for name, group in groupby(todo, key=lambda job: job.contender):
            progress.update(task, description=name)
            for job, result in contend(list(group), config, device):
                figures = result | ({} if job.contender == CEILINGS else {"compiled_ahead": config.compile_ahead})
                records.add(EXPERIMENT, name, job.settings(), figures)
                progress.console.print(told(job, result), highlight=False, soft_wrap=True, markup=False)
                progress.advance(task)


def told(job: Job, figures: dict[str, Any]) -> str:
    """A result in one line."""
    size = " ".join(f"{axis}={n}" for axis, n in job.settings().items() if axis in "BTHKV")
    head = f"{job.contender:26} {job.what:8} {size}"
    if "reason" in figures:
        return f"{head}  {figures['reason']}"
    more = f"  steps {figures['steps_ms']:.4g} ms" if "steps_ms" in figures else ""
    return f"{head}  {figures['median_ms']:.4g} ms ({figures['low_ms']:.4g} to {figures['high_ms']:.4g}){more}"


def contend(
    todo: Sequence[Job], config: BenchRun, device: str, ahead: bool = False
) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Results of one contender's jobs as they come: figures, or a ``reason`` why there are none.

    A process that dies takes one job with it, and a new one goes on with the next; past the time limit the job
    under way is cut short and the rest are left for another run.

    Args:
        todo: jobs of one contender.
        config: settings.
        device: ``cuda`` or ``cpu``.
        ahead: only compile.
    """
    deadline = time.monotonic() + config.limit
    left = list(todo)
    while left:
        order = {"jobs": [job.as_dict() for job in left], "device": device, "preset": config.preset, "ahead": ahead}
        finished, under_way = 0, False
        with _process(order, ahead) as (events, errors):
            while event := _next(events, deadline):
                under_way = "started" in event
                if not under_way:
                    yield left[finished], event.get("figures", {"reason": event.get("reason")})
                    finished += 1
            if event is None:
                if finished < len(left):
                    yield left[finished], {"reason": f"{CUT} at the limit of {config.limit:g} s"}
                return
            if under_way or not finished:
                ended = {"reason": f"its process ended: {_last_line(errors)}"}
                for job in left[finished : finished + 1] if under_way else left:  # all, where it cannot even start
                    yield job, ended
                finished = finished + 1 if under_way else len(left)
        left = left[finished:]


def _next(events: "queue.Queue[dict[str, Any]]", deadline: float | int) -> dict[str, Any] | None:
    """The next event; an empty one at the process's end, ``None`` at the deadline."""
    try:
        return events.get(timeout=max(deadline - time.monotonic(), 0.0))
    except queue.Empty:
        return None


@contextlib.contextmanager
def _process(order: dict[str, Any], ahead: bool) -> Iterator[tuple["queue.Queue[dict[str, Any]]", TextIOBase]]:
    """A contender's process: its events, and what it says on standard error. It and its own end with the block."""
    # Autotuning beside other processes finds other kernels: those of compiling ahead must not be kept.
    environment = os.environ | ({"FLA_CACHE_RESULTS": "0"} if ahead else {})
    events: queue.Queue[dict[str, Any]] = queue.Queue()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
            start_new_session=True,
        )
        assert process.stdin and process.stdout
        reader = threading.Thread(target=_read, args=(process.stdout, events), daemon=True)
        reader.start()
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(order))
                process.stdin.close()
            yield events, errors
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            reader.join()
            process.stdout.close()


def _read(lines: Iterable[str], events: "queue.Queue[dict[str, Any]]") -> None:
    try:
        for line in lines:
            events.put(json.loads(line))
    finally:
        events.put({})


def _last_line(errors: TextIOBase) -> str:
    errors.seek(0)
    lines = [line.strip() for line in errors.read().splitlines() if line.strip()]
    return lines[-1][:300] if lines else "without a word"


def _compile_ahead(config: BenchRun, device: str, todo: Sequence[Job], console: Console) -> None:
    """Every op once, the contenders side by side; failures will show again when they are timed."""
    kinds: dict[str, dict[tuple[Any, ...], Job]] = {}
    for job in todo:
        if job.shape:
            kinds.setdefault(job.contender, {})[job.what, job.shape.H, job.shape.K, job.shape.V] = job
    started = time.monotonic()

    def one(name: str) -> str:
        begun = time.monotonic()
        failed = [figures for _, figures in contend(list(kinds[name].values()), config, device, ahead=True) if figures]
        return f"compiled {name} in {time.monotonic() - begun:.0f} s" + (f", {len(failed)} failed" if failed else "")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for line in pool.map(one, kinds):
            console.print(line, highlight=False)
    console.print(f"compiled ahead in {time.monotonic() - started:.0f} s", highlight=False)


Key = tuple[str, str, str]


def _key(job: Job, where: dict[str, Any]) -> Key:
    place = [where["device"], where["commit"], where["versions"]]
    return job.contender, json.dumps(job.settings(), sort_keys=True), json.dumps(place, sort_keys=True)


def _recorded(records: Records) -> set[Key]:
    found = set()
    for record in records.all():
        if record.experiment == EXPERIMENT and not record.figures.get("reason", "").startswith(CUT):
            place = [record.context[part] for part in ("device", "commit", "versions")]
            settings, where = (json.dumps(x, sort_keys=True) for x in (record.settings, place))
            found.add((record.name, settings, where))
    return found

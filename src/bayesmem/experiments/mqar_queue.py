"""The MQAR study as a queue of jobs; stopped at any moment, it goes on from its folder."""

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from bayesmem.experiments.job_queue import Due, Outcome, Tell, Work, run_jobs
from bayesmem.experiments.mqar_config import EXPERIMENT, Job
from bayesmem.experiments.mqar_data import prepare
from bayesmem.experiments.mqar_job import run
from bayesmem.experiments.mqar_stages import Sweep, due, every_data
from bayesmem.report.records import records_in

COMMAND = (sys.executable, "-m", "bayesmem.experiments.mqar_job")


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

    def left() -> Due[Job]:
        return due(sweep, stages, records_in(out).all())

    return run_due(left, every_data(sweep, stages), out, jobs, time_limit, tell)


def run_due(
    left: Callable[[], Due[Job]],
    kinds: Iterable[Job],
    out: Path,
    jobs: int = 1,
    time_limit: float | None = None,
    tell: Tell = print,
) -> Outcome:
    """Run whatever jobs are due; ``kinds`` has one for each kind of rows, the rest is as of ``run_queue``."""

    def make_rows() -> None:
        made = prepare(out / "data", kinds, os.cpu_count() or 1)
        tell(f"rows are ready ({made} parts were made)")

    return run_jobs(Work(COMMAND, run, left, lambda job: _told(job, out), make_rows), out, jobs, time_limit, tell)


def _told(job: Job, out: Path) -> str:
    record = records_in(out).find(EXPERIMENT, job.model, job.settings)
    if record is None:
        return f"{job.folder} was done already"
    figures = record.figures
    if "diverged" in figures:
        return f"{job.folder} diverged"
    told = "  ".join(f"{length},{pairs} {right:.3f}" for length, pairs, right in figures["accuracy"])
    loss = f"  loss {figures['losses'][-1][1]:.2g}" if figures["losses"] else ""
    return f"{job.folder}  {told}{loss}"

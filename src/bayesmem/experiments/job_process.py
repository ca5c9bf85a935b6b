"""What one job of a queue is told, and how it answers: settings come in, a record or an exit status goes out."""

import fcntl
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import transformers

from bayesmem.train import Interrupted

BESIDE = "BAYESMEM_JOBS_BESIDE"  # how many jobs share the machine; their clocks are then no clocks of one job
STOPPED = 75  # exit status of a job that was asked to stop and has saved


@runtime_checkable
class Job(Protocol):
    """One training of a study, with everything that its result depends on."""

    @property
    def settings(self) -> dict[str, Any]:
        """All of it as plain data: the settings of its record."""

    @property
    def folder(self) -> str:
        """Name of its folder."""


J = TypeVar("J", bound=Job)


def serve(of: Callable[[Mapping[str, Any]], J], run: Callable[[J, Path], None]) -> None:
    """Run the job whose settings come as JSON on standard input, in the folder that the command line names.

    Args:
        of: makes the job of its settings.
        run: trains, tests and appends the record.
    """
    quiet()
    job = of(json.load(sys.stdin))
    try:
        run(job, Path(sys.argv[1]))
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(STOPPED)


def beside() -> int:
    """How many jobs share the machine, this one counted."""
    return int(os.environ.get(BESIDE, "1"))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def quiet() -> None:
    """Keep transformers' progress bars and hints out of ours."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()

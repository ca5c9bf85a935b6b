"""Records of runs: one JSON line a result, with all that is needed to run it again."""

import json
import os
import platform
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

COMMIT = "BAYESMEM_COMMIT"  # names the commit where there is no git, such as on a machine lent for a measurement
KERNELS = ("triton", "fla-core")


@dataclass(frozen=True, slots=True)
class Record:
    """One result.

    Attributes:
        experiment: which experiment.
        name: which part of it, such as a model's name.
        settings: everything that the figures depend on, the seed included.
        figures: what was measured.
        context: command, commit, device, versions and time.
    """

    experiment: str
    name: str
    settings: dict[str, Any]
    figures: dict[str, Any]
    context: dict[str, Any] = field(default_factory=dict)


class Records:
    """An append-only file of records, which is also what an interrupted run goes on from.

    Args:
        path: the JSONL file; made at the first record.
    """

    def __init__(self, path: Path):
        self.path = path

    def all(self) -> list[Record]:
        """Every record, oldest first.

        Raises:
            ValueError: a line that is no record. A last line cut short by a kill is left out.
        """
        if not self.path.is_file():
            return []
        lines = self.path.read_text().split("\n")
        records = []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                records.append(Record(**json.loads(line)))
            except (json.JSONDecodeError, TypeError) as error:
                if number == len(lines):
                    break
                raise ValueError(f"{self.path}, line {number} is no record ({error}); remove that line.") from error
        return records

    def find(self, experiment: str, name: str, settings: dict[str, Any] | None = None) -> Record | None:
        """The newest record of a part, at these settings where given."""
        wanted = None if settings is None else json.loads(json.dumps(settings))
        for record in reversed(self.all()):
            if (record.experiment, record.name) == (experiment, name) and wanted in (None, record.settings):
                return record
        return None

    def add(self, experiment: str, name: str, settings: dict[str, Any], figures: dict[str, Any]) -> Record:
        """Append a record, on disk before this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        record = Record(experiment, name, settings, figures, context())
        torn = self.path.is_file() and not self.path.read_text().endswith("\n")
        if torn:  # a kill cut the last line short: end it, and it will be dropped
            kept = self.path.read_text().rsplit("\n", 1)[0]
            self.path.write_text(kept + "\n" if kept else "")
        with self.path.open("a") as file:
            file.write(json.dumps({f: getattr(record, f) for f in Record.__slots__}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return record


def records_in(out: Path) -> Records:
    """The records of a run's folder."""
    return Records(out / "records.jsonl")


def context() -> dict[str, Any]:
    """Command, commit, device, versions and time of this process."""
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": _commit(),
        "device": _device(),
        "versions": {name: _version(name) for name in ("bayesmem", "torch", "transformers", "numpy", *KERNELS)}
        | {"python": platform.python_version()},
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _commit() -> str:
    if given := os.environ.get(COMMIT):
        return given
    where = Path(__file__).parent
    try:
        run = subprocess.run(
            ["git", "-C", str(where), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "not in a git checkout"
    return run.stdout.strip()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()

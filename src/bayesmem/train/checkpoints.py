"""Checkpoints that are whole or not there, folders that belong to one training, and disks that are full."""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers.trainer_utils import get_last_checkpoint

FINGERPRINT = "fingerprint.json"
WRITING = "writing"  # a checkpoint is written in here, and moved out when it is whole
STATE = "trainer_state.json"


class FullDisk(OSError):
    """The disk is full, told so that a user can mend it."""

    def __init__(self, folder: Path, what: str):
        while not folder.is_dir():
            folder = folder.parent
        free = _size(shutil.disk_usage(folder).free)
        super().__init__(
            errno.ENOSPC,
            f"the disk is full: {what}, {free} are free in {folder}. Make room and resume; what was whole is kept",
        )


def last_checkpoint(out: Path) -> Path | None:
    """The newest whole checkpoint; half-written ones, left by a kill, are removed."""
    shutil.rmtree(out / WRITING, ignore_errors=True)
    while (last := get_last_checkpoint(str(out))) is not None:
        if _whole(Path(last)):
            return Path(last)
        shutil.rmtree(last)
    return None


def step_of(checkpoint: Path) -> int:
    """The optimiser step after which a checkpoint was written."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def publish(written: Path, out: Path, keep: int) -> None:
    """Move a checkpoint that is whole to its place, by one rename, and remove the oldest beyond ``keep``."""
    for path in written.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    place = out / written.name
    if place.exists():  # of this step, from before: a resume that had nothing left to do
        shutil.rmtree(place)
    written.rename(place)
    written.parent.rmdir()
    older = sorted((path for path in out.glob("checkpoint-*") if path.is_dir()), key=step_of)
    for path in older[:-keep]:
        shutil.rmtree(path)


@contextmanager
def full_disk_told(folder: Path, what: str) -> Iterator[None]:
    """Say plainly that the disk is full, in whatever words the writer says it.

    Raises:
        FullDisk: it is; other errors pass.
    """
    try:
        yield
    except FullDisk:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        text = str(error)
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        full = full or any(sign in text for sign in ("os error 28", "os error 27", "No space left", "File too large"))
        writer = "PytorchStreamWriter" in text or "unexpected pos" in text or "inline_container" in text
        if not (full or writer):
            raise
        raise FullDisk(folder, f"{what} could not be written") from error


def check_room(folder: Path, need: int, what: str) -> None:
    """Refuse to start where the disk has too little room.

    Raises:
        FullDisk: less than ``need`` bytes are free.
    """
    if shutil.disk_usage(folder).free < need:
        raise FullDisk(folder, f"{what} take about {_size(need)}")


def check_fingerprint(out: Path, fingerprint: Mapping[str, Any]) -> None:
    """Take a folder for one training.

    Raises:
        ValueError: it holds the checkpoints of another one.
    """
    path = out / FINGERPRINT
    plain = json.loads(json.dumps(fingerprint))
    if path.is_file():
        if json.loads(path.read_text()) != plain:
            raise ValueError(
                f"{out} holds checkpoints of a training with other settings; give another --out, or remove it."
            )
        return
    write_whole(path, json.dumps(fingerprint, indent=1))


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a kill leaves the old one or the new one."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text(text)
    beside.replace(path)


def _whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / STATE).read_text())
    except (OSError, ValueError):
        return False
    return True


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"

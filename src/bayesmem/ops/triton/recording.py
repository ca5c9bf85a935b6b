"""Where launches are told to while a call is recorded (``tape``)."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any


class Recording(ABC):
    """What is told: ``tape.Recorder``, which knows of launches, and not they of it.

    Attributes:
        refused: why what is done cannot be done again from a tape; empty while it can.
    """

    refused = ""

    @abstractmethod
    def note(self, launch: Any, args: Iterable[Any]) -> None:
        """A launch with these arguments; ``launch(stream, numbers)`` is what makes it again."""


_thread = threading.local()


def recording() -> Recording | None:
    """What this thread's launches are told to, if anything."""
    return getattr(_thread, "recorder", None)


def record(recorder: Recording | None) -> None:
    """Let this thread's launches be told to ``recorder``, or to nobody."""
    _thread.recorder = recorder


def refuse(reason: str) -> None:
    """Tell whoever records that what is done now cannot be done again from a tape."""
    if (recorder := recording()) is not None:
        recorder.refused = recorder.refused or reason

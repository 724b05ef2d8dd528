"""How a module that reads for long ends early: by a signal, or when nobody waits. Standard library only."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ansible.module_utils.progress import Progress

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PROGRESS_SECONDS = 1.0
MIB = 1 << 20


class Stopped(BaseException):
    """This module was told to end."""


@contextmanager
def stop_signals_raise() -> Iterator[None]:
    """Within it, a signal to end raises Stopped."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise Stopped(signal.Signals(number).name)

    previous = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class ReadProgress:
    """How far the reading is, at most one line in a second."""

    def __init__(self, progress: Progress, total_bytes: int) -> None:
        """Nothing of so many bytes is read yet."""
        self._progress = progress
        self._total_mib = total_bytes / MIB
        self._next = time.monotonic() + PROGRESS_SECONDS

    def read(self, bytes_read: int) -> None:
        """Note what was read; raises Stopped when nobody waits for it any more."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + PROGRESS_SECONDS
            self._progress.say(f"read {bytes_read / MIB:.0f} of at most {self._total_mib:.0f} MiB")
        if abandoned := self._progress.abandoned():
            raise Stopped(f"itself, as {abandoned}")

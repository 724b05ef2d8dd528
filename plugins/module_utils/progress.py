"""The file between a long module and the controller that waits for it.

The controller makes the file before it starts the module, reads the lines that the module appends, and at
each poll sets the file's access time. To stop the module it removes the file. So the module knows by itself
that nobody waits for it any more, whatever became of the controller, its worker or the connection.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress

# Longer than a connection takes to come back, shorter than what is left running would disturb anybody
PATIENCE_SECONDS = 60.0
# A machine that was paused has missed polls and is not a controller that has gone: a gap counts as this much.
LONGEST_STEP_SECONDS = 10.0
LOOK_SECONDS = 1.0


class ProgressError(Exception):
    """The file can't be used; the message is one sentence for the user."""


class Progress:
    """Lines for a person, and whether somebody still waits for them."""

    def __init__(
        self, path: str | None, patience_seconds: float = PATIENCE_SECONDS, *, keeps: bool = False
    ) -> None:
        """Open the file, which whoever waits has made.

        Args:
            path: the file; without one nothing is written and nobody is expected to ask.
            patience_seconds: so long without a poll, and nobody waits any more.
            keeps: leave the file then; else it is removed, since nobody is there who would.

        Raises ProgressError.
        """
        self._path = path
        self._patience_seconds = patience_seconds
        self._keeps = keeps
        self._file: int | None = None
        if not path:
            return
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.open(path, flags)
        except FileNotFoundError:
            raise ProgressError(f"progress_path {path} is not there: nobody waits for this module") from None
        except OSError as error:
            raise ProgressError(f"progress_path {path} cannot be written: {error.strerror}") from None
        self._inode = os.fstat(self._file).st_ino
        self._polled_at = os.fstat(self._file).st_atime_ns
        self._silent_seconds = 0.0
        self._looked_at = time.monotonic()

    def say(self, line: str) -> None:
        """Append a line; a full disk must not end a measurement."""
        if self._file is not None:
            with suppress(OSError):
                os.write(self._file, f"{line}\n".encode())

    def abandoned(self) -> str | None:
        """Why nobody waits any more, as the end of a sentence; None while somebody does.

        To be called again and again: polls are counted as missed from call to call.
        """
        if self._file is None or self._path is None:
            return None
        try:
            seen = os.stat(self._path, follow_symlinks=False)  # noqa: PTH116 -- as cheap as it can be
        except OSError:
            return "its controller asked it to end"
        if seen.st_ino != self._inode:
            return "its controller asked it to end"
        now = time.monotonic()
        step = min(now - self._looked_at, LONGEST_STEP_SECONDS)
        self._looked_at = now
        # Compared for being another one only: the host's clock may be set meanwhile.
        if seen.st_atime_ns != self._polled_at:
            self._polled_at = seen.st_atime_ns
            self._silent_seconds = 0.0
        else:
            self._silent_seconds += step
        if self._silent_seconds > self._patience_seconds:
            if not self._keeps:
                with suppress(OSError):
                    os.unlink(self._path)  # noqa: PTH108 -- as above
            return f"its controller has not asked for {self._patience_seconds:g} s"
        return None


def end_when_abandoned(progress: Progress) -> None:
    """End this process, without cleaning up, as soon as nobody waits for it any more.

    For a module whose traces the next run removes: what it is in the middle of may take minutes.
    """

    def watch() -> None:
        while progress.abandoned() is None:
            time.sleep(LOOK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

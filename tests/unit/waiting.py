"""Wait for an event. No test says how long a thing takes: on a busy machine it takes as long as it takes."""

from __future__ import annotations

import time
from collections.abc import Callable

# Against a test that hangs, never a measure of anything.
FOREVER_SECONDS = 300


def wait_until(happened: Callable[[], object], what: str) -> None:
    """Return when it has happened; AssertionError that names it when it never does."""
    end = time.monotonic() + FOREVER_SECONDS
    while not happened():
        assert time.monotonic() < end, f"this never came: {what}"
        time.sleep(0.1)

"""The lease of a host: the files that say who has it, and the process on the host that holds it.

One run at a time has a host. What it owes the host (the steps of a putting right) stands beside the lease, so
that the holder pays it when the run's controller is heard of no more, or has gone without paying.

    lock              locked by the holder as long as it lives
    owner.json        who holds it; with ``ending`` from when it is given back
    renewal-TOKEN     touched by the controller; its removal gives the lease back (module_utils/progress.py)
    owed.json         what is to be put right; written by module host_put_right
    holder-TOKEN/     the holder's program
    ended.json        that the run before lost its lease, and why: for that run, and for a person

All of it is root's, in /run, and gone after a reboot. Nothing here reads a clock that somebody may set, but
for what is told to a person.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.module_utils.progress import LOOK_SECONDS, Progress, ProgressError
from ansible.module_utils.putting_right import put_right

DIRECTORY = "/run/ksm-testbed-lease"
# A probe of the lock has it for an instant.
LOCK_SECONDS = 5.0
ATTEMPTS = 3
ATTEMPT_SECONDS = 10.0


class Lease:
    """The files of a host's lease."""

    def __init__(self, folder: Path) -> None:
        """Know where they are."""
        self.folder = folder
        self.lock = folder / "lock"
        self.owner = folder / "owner.json"
        self.owed = folder / "owed.json"
        self.ended = folder / "ended.json"

    def renewal(self, token: str) -> Path:
        """What the controller of this run touches."""
        return self.folder / f"renewal-{token}"

    def program(self, token: str) -> Path:
        """The folder that Python runs as this run's holder."""
        return self.folder / f"holder-{token}"

    def loss(self, token: str) -> dict[str, Any]:
        """Why and when this run lost its lease, and what was ``left`` then; empty where it has not."""
        lost = read(self.ended)
        return lost if lost.get("token") == token else {}

    def take_lock(self) -> int | None:
        """The descriptor of the lock, or None where a holder has it."""
        while True:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            try:
                file = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                continue  # the folder went between
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(file).st_ino == self.lock.stat().st_ino:
                    return file
            except BlockingIOError:
                os.close(file)
                return None
            except FileNotFoundError:
                pass
            # What is locked is no longer the lock: its holder removed it.
            os.close(file)

    def is_held(self) -> bool:
        """Whether a holder lives."""
        if not self.folder.is_dir():
            return False
        file = self.take_lock()
        if file is not None:
            os.close(file)
        return file is None


def read(path: Path) -> dict[str, Any]:
    """What a file of the lease says; empty where it is not there."""
    with suppress(FileNotFoundError):
        said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return said
    return {}


def write(path: Path, content: Any) -> None:
    """Put a file in place at once, private."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.touch(mode=0o600)
    draft.write_text(json.dumps(content), encoding="utf-8")
    draft.rename(path)


def now() -> str:
    """UTC, for a person."""
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"


def hold(lease: Lease, owner: dict[str, Any]) -> None:
    """Hold the lease until it is given back or not renewed for ``seconds``; then pay what is owed."""
    token = owner["token"]
    if _lock(lease) is None:
        # No failure: nobody is to start this holder again.
        print("the lease is held", file=sys.stderr)
        return
    renewal, former = lease.renewal(token), read(lease.owner)
    if former.get("token") != token:
        former = {"since": now()}
        renewal.unlink(missing_ok=True)
        renewal.touch(mode=0o600)
    # Stopped by a person, or by a host that shuts down: as if it was given back
    signal.signal(signal.SIGTERM, lambda _number, _frame: renewal.unlink(missing_ok=True))
    write(lease.owner, {**owner, "since": former["since"], "holder_pid": os.getpid()})
    why = _watch(renewal, owner["seconds"])
    write(lease.owner, {**read(lease.owner), "ending": why})
    lost = lease.loss(token)
    if lost or lease.owed.exists() or renewal.exists():
        # First said, then done: its run may come back at any moment.
        lost = {"token": token, "why": why, **lost, "at": now()}
        write(lease.ended, lost)
        write(lease.ended, {**lost, "left": pay(lease.owed)})
    renewal.unlink(missing_ok=True)
    lease.owner.unlink(missing_ok=True)
    shutil.rmtree(lease.program(token), ignore_errors=True)
    if [path.name for path in lease.folder.iterdir()] == [lease.lock.name]:
        lease.lock.unlink()
        with suppress(OSError):  # somebody who comes now is at work in it
            lease.folder.rmdir()


def _watch(renewal: Path, seconds: float) -> str:
    """Wait until the lease is over; why it is."""
    try:
        progress = Progress(str(renewal), seconds, keeps=True)
    except ProgressError:
        return "its controller asked it to end"  # while no holder lived
    while (why := progress.abandoned()) is None:
        time.sleep(LOOK_SECONDS)
    return str(why)


def _lock(lease: Lease) -> int | None:
    end = time.monotonic() + LOCK_SECONDS
    while (file := lease.take_lock()) is None and time.monotonic() < end:
        time.sleep(0.05)
    return file


def pay(owed: Path) -> list[str]:
    """Put right what is owed, in some attempts; what is left stays owed, and is returned."""
    left: list[str] = []
    for attempt in range(ATTEMPTS):
        steps = read(owed).get("steps", [])
        _changed, left, _warnings = put_right(steps)
        if not left:
            owed.unlink(missing_ok=True)
            return []
        if attempt + 1 < ATTEMPTS:
            time.sleep(ATTEMPT_SECONDS)
    return left


def main() -> None:
    """Be the holder: its arguments are the folder and the owner."""
    folder, owner = sys.argv[1:]
    hold(Lease(Path(folder)), json.loads(owner))

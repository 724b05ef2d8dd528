#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Set the pace of KSM: fast while scanning pays, a trickle once the saving is flat, fast again on a change.

It reads the kernel's counters and the sizes of processes that offer memory to KSM, and sets pages_to_scan and
sleep_millisecs. While it runs smart_scan is 0 and the kernel's advisor is off. At its end every knob that is
still as it left it is as it was; what is merged stays merged. Where somebody else sets one of its knobs, it
says so and ends. Standard library only; a counter that an older kernel lacks is done without.
"""

from __future__ import annotations

import argparse
import fcntl
import math
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

NAME = "ksm-pacer"
MERGE = "1"
MIB = 1 << 20
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
KTHREADD_PID = 2
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# A scan in progress when a phase begins is none of it, a page must be unchanged between two scans to be
# merged with one that is not shared yet, and two more show that nothing is left to merge.
LEAST_SCANS = 4
WINDOW_SCANS = 2
FLAT_PART = 0.005
# Guests give memory back for many reasons: it is no longer waited for after so many scans, and so long.
FREEING_SCANS = 20
FREEING_SECONDS = 120.0
# What a change must be worth to be looked at again
WORTH_PART = 0.02
LEAST_GUEST_BYTES = 16 * MIB
FAST_LOOK_SECONDS = 1.0
TRICKLE_LOOK_SECONDS = 2.0
TRICKLE_SLEEP_MILLISECS = 100
# How much longer than a fast scan one of the trickle takes, at least: its share of the CPU is the inverse.
LEAST_SLOWER = 5
LEAST_REST_SECONDS = 30.0
LONGEST_REST_SECONDS = 600.0
# A process that offers nothing is looked at again after this; a young one may still be about to.
YOUNG_SECONDS = 60.0


class PacerError(Exception):
    """Why it ends, in one sentence."""


# What to set, by what is seen. Nothing here reads a clock, a file or a state of its own.


@dataclass(frozen=True)
class Tuning:
    """``lost_part``: of the saving that may wait to be merged again, as slow as the trickle may be."""

    fast_pages_to_scan: int = 20000
    fast_sleep_millisecs: int = 10
    quiet_scan_seconds: float = 600.0
    quiet_cpu_part: float = 0.05
    lost_part: float = 0.01


@dataclass(frozen=True)
class Seen:
    """A look at the host.

    ``seconds``: of a clock that nobody sets. ``saved_pages``: pages_sharing and ksm_zero_pages.
    ``tracked_pages``: all that ksmd looks at in a scan. ``broken_pages``: merged pages that were written to
    since the boot (cow_ksm), 0 where the kernel does not count them. ``guests``: resident bytes of each
    process that offers memory, merged ones included, by pid and start.
    """

    seconds: float
    full_scans: int
    saved_pages: int
    tracked_pages: int
    broken_pages: int
    ksmd_cpu_seconds: float
    guests: Mapping[tuple[int, int], int] = field(default_factory=dict)

    @property
    def resident_bytes(self) -> int:
        """Of all guests."""
        return sum(self.guests.values())


@dataclass(frozen=True)
class State:
    """Where the pacer is; ``why`` for a person.

    ``scan_seconds``: how long a scan is to take, None: as fast as it goes. ``begin``: the look with which the
    phase began. ``marks``: of the newest scans of the phase the first look after each. ``fast_scan``: seconds
    and CPU seconds of the last fast scan. ``broken_per_second``: what the guests break in quiet times.
    ``saved_when_woken``: pages, before this or the last fast phase. ``rest_seconds``: how long a trickle
    goes on whatever changes, but for guests that come: it doubles with each fast phase that brought nothing.
    """

    why: str
    begin: Seen
    marks: tuple[Seen, ...]
    scan_seconds: float | None = None
    fast_scan: tuple[float, float] = (0.0, 0.0)
    broken_per_second: float = 0.0
    saved_when_woken: int = 0
    rest_seconds: float = LEAST_REST_SECONDS


@dataclass(frozen=True)
class Setting:
    """Values of the two knobs."""

    pages_to_scan: int
    sleep_millisecs: int


def first(seen: Seen) -> State:
    """The state with which it begins: fast."""
    return State("it begins", seen, (seen,))


def advance(state: State, seen: Seen, tuning: Tuning) -> State:
    """The state after another look."""
    came = seen.guests.keys() - state.begin.guests.keys()
    if came:
        return _wake(state, seen, f"{_guests(len(came))} came")
    if seen.full_scans > state.marks[-1].full_scans:
        state = replace(state, marks=(*state.marks, seen)[-WINDOW_SCANS - 2 :])
        return _fast(state, seen, tuning) if state.scan_seconds is None else _repaced(state, tuning)
    if state.scan_seconds is not None and seen.seconds - state.begin.seconds >= state.rest_seconds:
        why = _change(state, seen)
        return _wake(state, seen, why) if why else state
    return state


def setting(state: State, tuning: Tuning) -> Setting:
    """What the knobs are to be in this state."""
    if state.scan_seconds is None:
        return Setting(tuning.fast_pages_to_scan, tuning.fast_sleep_millisecs)
    # A scan is so many batches, with a sleep after each, and ksmd's own time for its pages.
    awake = state.fast_scan[1]
    batches = (state.scan_seconds - awake) * 1000 / TRICKLE_SLEEP_MILLISECS
    pages = math.ceil(state.marks[-1].tracked_pages / max(1.0, batches))
    return Setting(min(max(1, pages), tuning.fast_pages_to_scan), TRICKLE_SLEEP_MILLISECS)


def _fast(state: State, seen: Seen, tuning: Tuning) -> State:
    """After a fast scan: go on until the saving, and what the guests have, has stopped to grow.

    And to fall: zero pages of huge pages that ksmd splits are freed, and in no saving that KSM counts.
    """
    took = seen.full_scans - state.begin.full_scans, seen.seconds - state.begin.seconds
    if took[0] < LEAST_SCANS:
        return state
    before = [mark for mark in state.marks if mark.full_scans <= seen.full_scans - WINDOW_SCANS][-1]
    grown = seen.saved_pages - before.saved_pages > FLAT_PART * seen.saved_pages
    freed = sum(max(0, size - seen.guests.get(one, size)) for one, size in before.guests.items())
    early = took[0] < FREEING_SCANS or took[1] < FREEING_SECONDS
    freeing = early and freed > max(FLAT_PART * seen.saved_pages * PAGE_BYTES, MIB)
    more = seen.resident_bytes - before.resident_bytes > WORTH_PART * seen.resident_bytes
    if grown or freeing or more:
        return state
    scans, seconds = seen.full_scans - before.full_scans, seen.seconds - before.seconds
    brought = seen.saved_pages - state.saved_when_woken >= WORTH_PART * seen.saved_pages
    rest = LEAST_REST_SECONDS if brought else min(2 * state.rest_seconds, LONGEST_REST_SECONDS)
    flat = replace(
        state,
        why=f"flat after {took[0]} scans in {took[1]:.0f} s",
        begin=seen,
        marks=(before, seen),
        fast_scan=(seconds / scans, (seen.ksmd_cpu_seconds - before.ksmd_cpu_seconds) / scans),
        rest_seconds=rest,
    )
    return replace(_repaced(flat, tuning), marks=(seen,))


def _repaced(state: State, tuning: Tuning) -> State:
    """The trickle at the pace that what merged in the last scan is worth.

    What guests write to is merged again when ksmd comes by: the slower, the more of the saving waits. A scan
    is to take the time in which ``lost_part`` of it does, between the quiet pace and a fifth of the fast one.
    """
    before, seen = state.marks[-2:]
    seconds = seen.seconds - before.seconds
    broken = seen.broken_pages - before.broken_pages
    merged = max(0, seen.saved_pages - before.saved_pages + broken)
    quiet = max(tuning.quiet_scan_seconds, state.fast_scan[1] / tuning.quiet_cpu_part)
    wanted = tuning.lost_part * seen.saved_pages * seconds / merged if merged else quiet
    scan_seconds = max(min(wanted, quiet), LEAST_SLOWER * state.fast_scan[0])
    return replace(state, scan_seconds=scan_seconds, broken_per_second=broken / seconds)


def _change(state: State, seen: Seen) -> str:
    """What is worth to be fast again, "" where nothing is."""
    flat, mark = state.begin, state.marks[-1]
    gone = flat.guests.keys() - seen.guests.keys()
    if gone:
        return f"{_guests(len(gone))} went"
    new = seen.resident_bytes - flat.resident_bytes
    if new >= max(LEAST_GUEST_BYTES, WORTH_PART * flat.resident_bytes):
        return f"guests have {new >> 20} MiB more"
    worth_pages = max(LEAST_GUEST_BYTES // PAGE_BYTES, WORTH_PART * flat.saved_pages)
    expected = state.broken_per_second * (seen.seconds - mark.seconds)
    if seen.broken_pages - mark.broken_pages - expected >= worth_pages:
        return f"guests wrote to {seen.broken_pages - mark.broken_pages} merged pages"
    if seen.saved_pages - flat.saved_pages >= worth_pages:
        return f"{seen.saved_pages - flat.saved_pages} more pages merged"
    return ""


def _wake(state: State, seen: Seen, why: str) -> State:
    saved = state.saved_when_woken if state.scan_seconds is None else seen.saved_pages
    return replace(state, why=why, begin=seen, marks=(seen,), scan_seconds=None, saved_when_woken=saved)


def _guests(number: int) -> str:
    return "1 guest" if number == 1 else f"{number} guests"


# What is seen


class Host:
    """The kernel's counters, and the processes that offer memory to KSM."""

    def __init__(self, ksm: Path, proc: Path) -> None:
        """Find ksmd. Raises PacerError where it is not there."""
        self.ksm = ksm
        self.proc = proc
        self.ksmd = self._ksmd()
        self._guests: dict[tuple[int, int], int] = {}
        self._refused: dict[int, int] = {}  # pid -> resident bytes when it offered nothing
        self._again: dict[int, float] = {}  # pid -> when it is looked at again

    def _ksmd(self) -> int:
        for pid in self._pids():
            fields = self._stat(pid)
            if fields and fields[0] == "ksmd" and int(fields[2]) == KTHREADD_PID:
                return pid
        raise PacerError(
            f"the kernel thread ksmd is not in {self.proc}: run this on the host, not in a container"
        )

    def look(self) -> Seen:
        """See the host as it is; OSError where a counter cannot be read."""
        counters = {name: self._counter(name) for name in ("pages_shared", "pages_sharing", "pages_unshared")}
        volatile, zero = self._counter("pages_volatile"), self._counter("ksm_zero_pages")
        stat = self._stat(self.ksmd)
        if stat is None:
            raise PacerError("the kernel thread ksmd has gone")
        seconds = time.monotonic()
        return Seen(
            seconds=seconds,
            full_scans=self._counter("full_scans"),
            saved_pages=counters["pages_sharing"] + zero,
            tracked_pages=sum(counters.values()) + volatile,
            broken_pages=self._broken_pages(),
            ksmd_cpu_seconds=(int(stat[12]) + int(stat[13])) / TICKS_PER_SECOND,
            guests=self._look_at_guests(seconds),
        )

    def _counter(self, name: str) -> int:
        """A counter; 0 for one that this kernel lacks."""
        path = self.ksm / name
        return int(path.read_text(encoding="ascii")) if path.exists() else 0

    def _broken_pages(self) -> int:
        lines = (line.split() for line in (self.proc / "vmstat").read_text(encoding="ascii").splitlines())
        return next((int(value) for name, value in lines if name == "cow_ksm"), 0)

    def _pids(self) -> list[int]:
        return [int(path.name) for path in self.proc.iterdir() if path.name.isdecimal()]

    def _stat(self, pid: int) -> list[str] | None:
        """Name, state, parent and so on as in proc(5), without the pid; None where the process has gone."""
        try:
            text = (self.proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        name, _, rest = text.partition("(")[2].rpartition(")")
        return [name, *rest.split()]

    def _look_at_guests(self, seconds: float) -> dict[tuple[int, int], int]:
        """Resident bytes by pid and start. One that offers nothing is not read anew at every look."""
        pids = set(self._pids())
        for remembered in (self._refused, self._again):
            for pid in remembered.keys() - pids:
                del remembered[pid]
        found = {}
        for pid in pids:
            if self._again.get(pid, 0.0) > seconds:
                continue
            fields = self._stat(pid)
            if fields is None:
                continue
            start, resident = int(fields[20]), int(fields[22]) * PAGE_BYTES
            if (pid, start) in self._guests or self._offers(pid, resident):
                found[pid, start] = resident
            elif time.clock_gettime(time.CLOCK_BOOTTIME) - start / TICKS_PER_SECOND > YOUNG_SECONDS:
                self._again[pid] = seconds + YOUNG_SECONDS
        self._guests = found
        return found

    def _offers(self, pid: int, resident_bytes: int) -> bool:
        """Whether a process offers memory; asked again when it has twice as much as when it did not."""
        if resident_bytes < max(LEAST_GUEST_BYTES, 2 * self._refused.get(pid, 0)):
            return False
        folder = self.proc / str(pid)
        try:
            said = (folder / "ksm_stat").read_text(encoding="ascii") if (folder / "ksm_stat").exists() else ""
            if "ksm_mergeable:" in said:
                offers = "ksm_mergeable: yes" in said
            else:
                flags = (folder / "smaps").read_text(encoding="utf-8", errors="replace").splitlines()
                offers = any(line.startswith("VmFlags:") and " mg" in line for line in flags)
        except OSError:
            return False  # it ended meanwhile
        if not offers:
            self._refused[pid] = resident_bytes
        return offers


# What is set


class Knobs:
    """The files that it sets, and what they were."""

    def __init__(self, folder: Path) -> None:
        """Keep what they are now."""
        self.folder = folder
        names = ("run", "advisor_mode", "smart_scan", "sleep_millisecs", "pages_to_scan")
        self.before = {name: self.read(name) for name in names if (folder / name).exists()}
        self.own: dict[str, str] = {}

    def read(self, name: str) -> str:
        """A knob; of several words the selected one."""
        text = (self.folder / name).read_text(encoding="ascii")
        return text.partition("[")[2].partition("]")[0] or text.strip()

    def set(self, name: str, value: str | int) -> None:
        """Write a knob that this kernel has, where it is another by now. Raises PacerError."""
        if name not in self.before or self.own.get(name) == str(value):
            return
        try:
            (self.folder / name).write_text(f"{value}\n", encoding="ascii")
        except OSError as error:
            raise PacerError(
                f"{self.folder / name} refused {value}: {error.strerror}; run it as root"
            ) from None
        self.own[name] = str(value)

    def check(self) -> None:
        """Raise PacerError where somebody else has set one; to stop and start KSM is anybody's right."""
        for name, value in self.own.items():
            if name != "run" and (now := self.read(name)) != value:
                raise PacerError(
                    f"somebody else set {name} from {value} to {now}: {NAME} ends and leaves it so; "
                    "stop what tunes KSM, then start this again"
                )

    def restore(self) -> None:
        """Put back what is still as it was set here. An advisor that was on sets pages_to_scan itself."""
        names = ["run", "smart_scan", "sleep_millisecs", "pages_to_scan", "advisor_mode"]
        if self.before.get("advisor_mode", "none") != "none":
            names.remove("pages_to_scan")
        mine = [name for name in names if name in self.own and self.read(name) == self.own[name]]
        for name in mine:
            (self.folder / name).write_text(f"{self.before[name]}\n", encoding="ascii")


def pace(host: Host, knobs: Knobs, tuning: Tuning) -> str:
    """Set the pace until a stop signal, whose name is returned. Raises PacerError and OSError."""
    state: State | None = None
    while True:
        knobs.check()
        if knobs.read("run") != MERGE:
            state = None
        else:
            seen = host.look()
            state = first(seen) if state is None else advance(state, seen, tuning)
            wanted, former = setting(state, tuning), dict(knobs.own)
            knobs.set("advisor_mode", "none")
            knobs.set("smart_scan", 0)
            knobs.set("sleep_millisecs", wanted.sleep_millisecs)
            knobs.set("pages_to_scan", wanted.pages_to_scan)
            if knobs.own != former:
                say(f"{words(state)}: pages_to_scan {wanted.pages_to_scan} each {wanted.sleep_millisecs} ms")
        fast = state is None or state.scan_seconds is None
        received = signal.sigtimedwait(STOP_SIGNALS, FAST_LOOK_SECONDS if fast else TRICKLE_LOOK_SECONDS)
        if received is not None:
            return signal.Signals(received.si_signo).name


def words(state: State) -> str:
    """The state, for a person."""
    saved = f"{state.marks[-1].saved_pages * PAGE_BYTES >> 20} MiB saved"
    if state.scan_seconds is None:
        return f"fast, since {state.why}; {saved}"
    return f"a scan in {state.scan_seconds:.0f} s, {state.why}; {saved}"


def say(text: str) -> None:
    """Print a line with the time."""
    print(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {text}", file=sys.stderr, flush=True)


def take(lock: Path) -> int:
    """The descriptor of the lock, with this process' number in it. Raises PacerError where another has it."""
    file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(file, 32, 0).decode(errors="replace").strip()
        raise PacerError(f"process {pid} paces KSM already ({lock}): stop that one first") from None
    os.ftruncate(file, 0)
    os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
    return file


def holder(lock: Path) -> int | None:
    """The process that has the lock; None where none has."""
    try:
        file = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(file, 32, 0).strip()
        return int(text) if text else None
    finally:
        os.close(file)
    return None


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    usual = Tuning()
    parser = argparse.ArgumentParser(prog=NAME, description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument(
        "--start",
        action="store_true",
        help="start KSM (run=1); without it KSM is paced as long as somebody has it run",
    )
    parser.add_argument(
        "--fast-pages",
        metavar="N",
        type=positive,
        default=usual.fast_pages_to_scan,
        help=f"pages_to_scan while it is fast, every {usual.fast_sleep_millisecs} ms (%(default)s)",
    )
    parser.add_argument(
        "--quiet-seconds",
        metavar="S",
        type=positive,
        default=int(usual.quiet_scan_seconds),
        help="the longest that a scan of all memory is to take (%(default)s); longer where ksmd would need "
        f"more than {100 * usual.quiet_cpu_part:g} %% of a CPU for it",
    )
    parser.add_argument(
        "--lock", metavar="FILE", type=Path, default=Path(f"/run/{NAME}.lock"), help="%(default)s"
    )
    parser.add_argument(
        "--ksm", metavar="DIR", type=Path, default=Path("/sys/kernel/mm/ksm"), help="%(default)s"
    )
    parser.add_argument("--proc", metavar="DIR", type=Path, default=Path("/proc"), help="%(default)s")
    return parser.parse_args(arguments)


def positive(text: str) -> int:
    """A number from 1."""
    if not text.isdecimal() or not 1 <= int(text) < 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 to {2**32 - 1}")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    """Run until a signal; 0 after one, 1 with a sentence where it cannot go on."""
    given = parse(arguments)
    tuning = replace(
        Tuning(), fast_pages_to_scan=given.fast_pages, quiet_scan_seconds=float(given.quiet_seconds)
    )
    # Blocked, so that they end a wait and never a write.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        Path("/proc/self/comm").write_text(NAME, encoding="ascii")  # as others look for tuners of KSM
        if not (given.ksm / "run").exists():
            raise PacerError(f"{given.ksm} is missing: this kernel is built without KSM (CONFIG_KSM)")
        lock = take(given.lock)
        knobs = Knobs(given.ksm)
        try:
            host = Host(given.ksm, given.proc)
            if given.start:
                knobs.set("run", MERGE)
            say(f"{pace(host, knobs, tuning)}: {NAME} ends and puts its knobs back")
        finally:
            knobs.restore()
            os.close(lock)
    except (PacerError, OSError) as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/python3
"""Ansible module: what the pages of all guests hold, counted at one instant."""

from __future__ import annotations

DOCUMENTATION = r"""
module: census
short_description: Count equal pages within and between the guests of a KSM host
description:
  - Stops ksmd where it runs (O(sys_root)/kernel/mm/ksm/run becomes 0, and 1 again afterwards) and pauses the
    guests through libvirt, hashes every resident page of their mergeable memory (VmFlags mg), looks which of
    them are on frames that KSM has merged, reads KSM's counters, lets all run again and counts equal hashes.
    Nothing of the guests is changed, and merged pages stay merged.
  - Hashes are xxh3_64 with a random seed that is forgotten; they never leave this host's memory, and contents
    are not kept either. The result has numbers only.
  - A guest that was paused before stays paused. The others, and ksmd, run again whatever happens, by a second
    process if this one is killed outright.
options:
  domains:
    description: Guest name to libvirt domain name; empty means every running guest of this testbed.
    type: dict
    default: {}
  uri:
    description: The libvirt connection.
    type: str
    default: qemu:///system
  processes:
    description: Processes that read; 0 means one for each CPU.
    type: int
    default: 0
  progress_path:
    description: File that takes a line for each step; whoever waits makes it and sets its access time.
    type: path
    default: ""
  patience_seconds:
    description: Let the guests run again and end when that access time has been the same for so long.
    type: float
    default: 60
  sys_root:
    description: The folder /sys, or a recorded one.
    type: path
    default: /sys
  run_root:
    description: The folder /run, or another one.
    type: path
    default: /run
author: KSM testbed
"""

EXAMPLES = r"""
- name: Count the equal pages of two guests
  census:
    domains:
      guest01: ksm-testbed-guest01
      guest02: ksm-testbed-guest02
"""

RETURN = r"""
observed:
  description: The census as in analysis/records/models.py, CensusObserved.
  type: dict
  returned: success
provenance:
  description: Kernel, CPU, distribution, QEMU, libvirt, THP and KSM settings as read back.
  type: dict
  returned: success
recorded_at:
  description: The host's UTC time at the instant that was counted.
  type: str
  returned: success
monotonic_seconds:
  description: The host's monotonic clock at that time.
  type: float
  returned: success
"""

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible.module_utils.ksm_probe import (
    ProbeError,
    Roots,
    domain_pid,
    ksm_counters,
    parse_ksm_stat,
    provenance,
    read_optional,
    read_required,
)
from ansible.module_utils.names import guest_of
from ansible.module_utils.progress import PATIENCE_SECONDS, Progress, ProgressError

MISSING = []
try:
    import libvirt
except ImportError:
    MISSING.append("libvirt")
try:
    from ansible.module_utils.page_census import (
        LARGEST_CONTENTS,
        CensusError,
        Layout,
        Reader,
        Reading,
        Tally,
        merged,
        parse_smaps,
        tally,
    )
except ImportError as error:
    MISSING.append(str(error.name))

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PROGRESS_SECONDS = 1.0
MIB = 1 << 20
# What the guardian is told: to resume a domain, to write a value to run; and that this has been done
RESUME, RUN, DONE = "resume ", "run ", "done "


class GuestError(Exception):
    """A guest cannot be paused, or ksmd not stopped; the message is one sentence for the user."""


class Stopped(BaseException):
    """This module was told to end."""


@dataclass(frozen=True)
class Guest:
    """A guest that is counted."""

    name: str
    domain: str
    pid: int


class Guardian:
    """A process that lets guests and ksmd run again should this one be killed outright.

    It holds the reading end of a pipe: at its end every writer is gone, and what was promised in it and not
    done is due.
    """

    def __init__(self, uri: str, roots: Roots) -> None:
        """Fork it; before any connection to libvirt, which no two processes may share."""
        reader, self.writer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                os.setsid()
                os.close(self.writer)
                # Ansible waits until nobody holds the module's output open.
                nowhere = os.open(os.devnull, os.O_RDWR)
                for descriptor in (0, 1, 2):
                    os.dup2(nowhere, descriptor)
                for number in STOP_SIGNALS:
                    signal.signal(number, signal.SIG_IGN)
                with os.fdopen(reader) as lines:
                    self._put_right(due(lines.read().splitlines()), uri, roots)
            finally:
                os._exit(0)
        os.close(reader)

    @staticmethod
    def _put_right(words: list[str], uri: str, roots: Roots) -> None:
        for word in words:
            if word.startswith(RUN):
                write_run(roots, word.removeprefix(RUN))
        domains = [word.removeprefix(RESUME) for word in words if word.startswith(RESUME)]
        if domains:
            connection = libvirt.open(uri)
            for domain in domains:
                try:
                    connection.lookupByName(domain).resume()
                except libvirt.libvirtError:
                    continue  # it was not paused yet, or has ended

    def promise(self, word: str) -> None:
        """Tell what will be due, before the change that asks for it."""
        os.write(self.writer, f"{word}\n".encode())

    def done(self, word: str) -> None:
        """What was promised has been done."""
        os.write(self.writer, f"{DONE}{word}\n".encode())

    def dismiss(self) -> None:
        """End it; it does first what is due."""
        os.close(self.writer)
        os.waitpid(self._pid, 0)


def due(lines: list[str]) -> list[str]:
    """What was promised and not done, in the order of the promises."""
    promised = dict.fromkeys(line for line in lines if not line.startswith(DONE))
    for line in lines:
        if line.startswith(DONE):
            promised.pop(line.removeprefix(DONE), None)
    return list(promised)


def write_run(roots: Roots, value: str) -> None:
    """Write to the file run of KSM; with 0 it returns when ksmd has stopped (ksm_thread_mutex, mm/ksm.c)."""
    try:
        (roots.ksm / "run").write_text(f"{value}\n", encoding="ascii")
    except OSError as error:
        raise GuestError(f"{roots.ksm / 'run'} refused {value}: {error.strerror}") from None


class KsmdStopped:
    """ksmd at rest, from entering to leaving; what is merged stays so."""

    def __init__(self, roots: Roots, guardian: Guardian) -> None:
        """Nothing is stopped yet."""
        self._roots = roots
        self._guardian = guardian
        self.run_before = 0

    def __enter__(self) -> KsmdStopped:
        """Stop it if it runs."""
        self.run_before = self._run()
        if self.run_before == 1:
            self._guardian.promise(f"{RUN}1")
            write_run(self._roots, "0")
        return self

    def __exit__(self, *_error: object) -> None:
        """Let it run if it did."""
        if self.run_before == 1:
            write_run(self._roots, "1")
            self._guardian.done(f"{RUN}1")

    def check(self) -> None:
        """GuestError where something else let it run."""
        if self.run_before == 1 and self._run() != 0:
            raise GuestError("something else on the host switched KSM on while its pages were counted")

    def _run(self) -> int:
        return int(read_required(self._roots.ksm / "run"))


class Pause:
    """Guests paused at the same time, from entering to leaving."""

    def __init__(self, connection: Any, guests: list[Guest], guardian: Guardian) -> None:
        """Nothing is paused yet."""
        self._domains = {guest.name: connection.lookupByName(guest.domain) for guest in guests}
        self._guardian = guardian
        self._ours: list[str] = []
        self._begin = 0.0
        self.seconds = 0.0

    def __enter__(self) -> Pause:
        """Pause every guest that runs; on a failure those that were paused run again."""
        self._begin = time.monotonic()
        try:
            for name, domain in self._domains.items():
                state = domain.state()[0]
                if state in (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PMSUSPENDED):
                    continue
                if state not in (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_BLOCKED):
                    raise GuestError(
                        f"domain {domain.name()} of {name} does not run, so its pages can't be counted"
                    )
                self._guardian.promise(f"{RESUME}{domain.name()}")
                self._ours.append(name)
                domain.suspend()
        except BaseException:
            self._resume()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        """Let those run again that ran before."""
        self._resume()

    def was_paused(self, name: str) -> bool:
        """Whether the guest was paused before."""
        return name not in self._ours

    def _resume(self) -> None:
        previous = {number: signal.signal(number, signal.SIG_IGN) for number in STOP_SIGNALS}
        failed = []
        for name in self._ours:
            domain = self._domains[name]
            try:
                if domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
                    domain.resume()
                self._guardian.done(f"{RESUME}{domain.name()}")
            except libvirt.libvirtError as error:
                failed.append(f"{domain.name()} ({error})")
        self.seconds = time.monotonic() - self._begin
        for number, handler in previous.items():
            signal.signal(number, handler)
        if failed:
            raise GuestError(
                f"these domains may still be paused, resume them with virsh: {', '.join(failed)}"
            )


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


@contextmanager
def connected(uri: str) -> Iterator[Any]:
    """Open libvirt, without its habit of printing errors to the terminal."""
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    try:
        connection = libvirt.open(uri)
    except libvirt.libvirtError as error:
        raise GuestError(f"libvirt does not answer at {uri}: {error}; run the kvm_host role first") from None
    try:
        yield connection
    finally:
        connection.close()


def find_guests(connection: Any, domains: Mapping[str, str], roots: Roots) -> list[Guest]:
    """The guests by name, or all running ones of this testbed, in the order of their names."""
    wanted = dict(domains)
    if not wanted:
        for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
            guest = guest_of(domain.XMLDesc())
            if guest is not None:
                wanted[guest] = domain.name()
    if not wanted:
        raise GuestError(
            "no guest of this testbed runs: start some that stay, with "
            "`ansible-playbook playbooks/experiment.yml -e focus=1 -e keep_guests=true`"
        )
    return [Guest(name, wanted[name], domain_pid(wanted[name], roots)) for name in sorted(wanted)]


def layout_of(guest: Guest, roots: Roots) -> Layout:
    """The guest's mergeable memory; GuestError where it has none."""
    layout = parse_smaps(read_required(roots.proc / str(guest.pid) / "smaps"))
    if not layout.areas:
        raise GuestError(
            f"domain {guest.domain} has no memory that KSM may merge (no mapping with the VmFlag mg): "
            "guest memory must be private and anonymous, without nosharepages"
        )
    return layout


class ReadProgress:
    """How far the reading is, at most one line in a second."""

    def __init__(self, progress: Progress, total_bytes: int) -> None:
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


def take(params: dict[str, Any], roots: Roots) -> dict[str, Any]:
    """Take the census; the module's result."""
    guardian = Guardian(params["uri"], roots)
    try:
        with connected(params["uri"]) as connection, stop_signals_raise():
            return count(connection, params, roots, guardian)
    finally:
        guardian.dismiss()


def count(connection: Any, params: dict[str, Any], roots: Roots, guardian: Guardian) -> dict[str, Any]:
    """Stop ksmd, pause, read, let run again, count."""
    guests = find_guests(connection, params["domains"], roots)
    host = provenance(roots)
    areas = [layout_of(guest, roots) for guest in guests]
    progress = Progress(params["progress_path"], params["patience_seconds"])
    reads = ReadProgress(progress, sum(layout.mergeable_bytes for layout in areas))
    processes = params["processes"] or len(os.sched_getaffinity(0))
    pids = [guest.pid for guest in guests]
    ksmd, pause = KsmdStopped(roots, guardian), Pause(connection, guests, guardian)
    with Reader(pids, areas, processes=processes, close=guardian.writer) as reader:
        with ksmd, pause:
            recorded_at, monotonic_seconds = datetime.now(UTC), time.monotonic()
            layouts, ksm_stats = [], []
            for guest, before in zip(guests, areas, strict=True):
                layout = layout_of(guest, roots)
                stat = read_optional(roots.proc / str(guest.pid) / "ksm_stat")
                if layout.areas != before.areas:
                    raise GuestError(
                        f"domain {guest.domain} got or lost memory just now: take the census again"
                    )
                layouts.append(layout)
                ksm_stats.append(None if stat is None else parse_ksm_stat(stat))
            ksm = {**ksm_counters(roots), "run": ksmd.run_before}
            reading = reader.read(reads.read)
            ksmd.check()
        progress.say(f"{len(guests)} guests run again after a pause of {pause.seconds:.1f} s")
    begin = time.monotonic()
    equal = tally([counted.hashes for counted in reading.counted], reading.known["zero"])
    seen = {
        guest.name: {
            "pid": guest.pid,
            "was_paused": pause.was_paused(guest.name),
            "mergeable_bytes": layout.mergeable_bytes,
            **pages(counted.zero_mapped_pages, ksm_stat, len(counted.hashes), zeros),
            "distinct_pages": distinct,
            "swapped_pages": counted.swapped_pages,
            "ksm_stat": ksm_stat,
        }
        for guest, layout, ksm_stat, counted, zeros, distinct in zip(
            guests, layouts, ksm_stats, reading.counted, equal.zero_pages, equal.distinct_pages, strict=True
        )
    }
    by_ksm = merged(reading.counted)
    # Then its zero pages are not told from those that a guest only read.
    uncounted = ksm["ksm_zero_pages"] is None and host["ksm_knobs"].get("use_zero_pages") == 1
    return {
        "observed": {
            "guests": seen,
            "contents": {
                "guests": [held for held, _, _ in equal.contents],
                "copies": [copies for _, copies, _ in equal.contents],
                "contents": [number for _, _, number in equal.contents],
            },
            "largest_contents": largest_contents(
                equal, reading, [guest["zero_pages"] for guest in seen.values()]
            ),
            "shared_contents": [list(row) for row in equal.shared],
            "ksm": ksm,
            "merged": {
                "mapped_pages": by_ksm.mapped_pages,
                "frames": by_ksm.frames,
                "zero_pages": None
                if uncounted
                else sum(
                    merged_zero_pages(counted.zero_mapped_pages, ksm_stat)
                    for counted, ksm_stat in zip(reading.counted, ksm_stats, strict=True)
                ),
            },
            "pause_seconds": pause.seconds,
            "read_seconds": reading.seconds,
            "count_seconds": time.monotonic() - begin,
            "bytes_read": reading.bytes_read,
            "processes": reading.processes,
        },
        "provenance": host,
        "recorded_at": recorded_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "monotonic_seconds": monotonic_seconds,
    }


def merged_zero_pages(mapped: int, ksm_stat: dict[str, Any] | None) -> int:
    """Of so many mappings of the kernel's zero page those that KSM made (use_zero_pages=1)."""
    return min(mapped, int((ksm_stat or {}).get("ksm_zero_pages", 0)))


def pages(mapped: int, ksm_stat: dict[str, Any] | None, present: int, zeros: int) -> dict[str, int]:
    """Resident pages of a guest and zero pages among them.

    A mapping of the kernel's zero page takes no memory: the guest read it and never wrote, or KSM put it
    there. Only the latter was a page before.
    """
    zero_pages = max(0, zeros - mapped + merged_zero_pages(mapped, ksm_stat))
    return {
        "resident_pages": present - zeros + zero_pages,
        "zero_pages": zero_pages,
        "zero_mapped_pages": mapped,
    }


def largest_contents(equal: Tally, reading: Reading, zero_pages: list[int]) -> list[dict[str, Any]]:
    """The contents with most copies, and of what origin each is, as far as that is known."""
    zero = (sum(zero_pages), sum(pages > 0 for pages in zero_pages), reading.known["zero"])
    kinds = {content: kind for kind, content in reading.known.items()}
    largest = sorted((zero, *equal.largest), reverse=True)[:LARGEST_CONTENTS]
    return [
        {"copies": copies, "guests": held_by, "kind": kinds.get(content, "other")}
        for copies, held_by, content in largest
        if copies
    ]


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "domains": {"type": "dict", "default": {}},
            "uri": {"type": "str", "default": "qemu:///system"},
            "processes": {"type": "int", "default": 0},
            "progress_path": {"type": "path", "default": ""},
            "patience_seconds": {"type": "float", "default": PATIENCE_SECONDS},
            "sys_root": {"type": "path", "default": "/sys"},
            "run_root": {"type": "path", "default": "/run"},
        },
        supports_check_mode=True,
    )
    if MISSING:
        module.fail_json(
            msg=missing_required_lib(MISSING[0], reason="to take a census; the role census installs it")
        )
    if module.params["processes"] < 0:
        module.fail_json(
            msg=f"processes is {module.params['processes']}: allowed is 0 (one for each CPU) or more"
        )
    if module.check_mode:
        module.exit_json(changed=False, msg="would pause the guests for a moment and count their pages")
    # Other processes' memory is readable at the real /proc alone.
    roots = Roots(sys=Path(module.params["sys_root"]), run=Path(module.params["run_root"]))
    try:
        module.exit_json(changed=False, **take(module.params, roots))
    except (ProbeError, ProgressError, GuestError, CensusError) as error:
        module.fail_json(msg=str(error))
    except libvirt.libvirtError as error:
        module.fail_json(msg=f"libvirt refused: {error}")
    except Stopped as error:
        module.fail_json(msg=f"stopped by {error}; the guests run again")


if __name__ == "__main__":
    main()

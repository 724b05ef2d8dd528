#!/usr/bin/python3
"""Sample KSM's counters until the saving has settled."""

from __future__ import annotations

DOCUMENTATION = r"""
module: measure_series
short_description: Sample KSM's counters until the saving has settled
description:
  - Samples at a fixed cadence until the convergence rule holds, a timeout, or for a given time.
  - With O(start_ksm) the first act is to write 1 to the file run of KSM, the only write of this module, so
    that second 0 of the series is the moment of the change that it follows. Else nothing is changed.
  - Right before that, other processes whose memory KSM could merge are looked for, as O(others) says.
  - On SIGTERM or SIGINT it returns what it has; so it does when O(progress_path) was removed, or nobody
    asked for its progress for O(patience_seconds). With O(until=told) that is how it is meant to end.
options:
  start_ksm:
    description: Write 1 to run at second 0.
    type: bool
    default: false
  may_stop:
    description: The series begins and goes on while KSM stands, too, as where a daemon starts and stops it.
    type: bool
    default: false
  others:
    description:
      - With O(start_ksm), V(refuse) to start KSM while processes other than the testbed's guests offer memory
        to it, and name them; V(allow) does not look.
    type: str
    choices: [refuse, allow]
    default: refuse
  interval_seconds:
    description: Time from sample to sample, 0.1 or more.
    type: float
    default: 1.0
  until:
    description:
      - What ends the series. With V(told) it goes on, whether KSM runs or not, until O(progress_path) is
        removed.
    type: str
    choices: [converged, seconds, told]
    default: converged
  duration_seconds:
    description: Length of the series with O(until=seconds).
    type: float
  timeout_seconds:
    description: With O(until=converged) or O(until=told), give up after this time and say so.
    type: float
    default: 900
  min_full_scans:
    description: Complete scans before anything counts as settled; at least 10 while smart_scan is on.
    type: int
    default: 3
  window_scans:
    description: Complete scans over which the saving must keep still.
    type: int
    default: 2
  threshold_percent:
    description:
      - Largest spread of the saved pages in that window, in percent of the saving; by no more may the guests'
        anonymous memory have fallen, or by a MiB.
    type: float
    default: 0.5
  guests:
    description: Number of guests, for the progress lines only.
    type: int
    default: 0
  domains:
    description:
      - Guest name to libvirt domain; the series fails as soon as one of them has stopped or is gone.
      - Adds the anonymous pages of their processes to the series, those that are merged included.
    type: dict
    default: {}
  envelope_path:
    description: Folder of the memory cgroup that holds the guests; adds its working set to the series.
    type: path
  progress_path:
    description: File to which progress lines are appended; whoever waits makes it and sets its access time.
    type: path
  patience_seconds:
    description: End when the access time of O(progress_path) has been the same for so long.
    type: float
    default: 60
  proc_root:
    description: The folder /proc, or a recorded one.
    type: path
    default: /proc
  sys_root:
    description: The folder /sys, or a recorded one.
    type: path
    default: /sys
  run_root:
    description: The folder /run, or a recorded one.
    type: path
    default: /run
author: KSM testbed
"""

EXAMPLES = r"""
- name: Start merging and follow it until it has settled
  measure_series:
    start_ksm: true
    timeout_seconds: 600
"""

RETURN = r"""
observed:
  description:
    - The series in columns of equal length, whether and when it settled, and what sampling cost.
    - C(knob_changes) has each change of a knob, C(run) among them, that was seen from one sample to the next.
  type: dict
  returned: success
provenance:
  description: What the host is, as the module measure_host returns it; read before the first sample.
  type: dict
  returned: success
recorded_at:
  description: The host's UTC time at the end.
  type: str
  returned: success
monotonic_seconds:
  description: The host's monotonic clock at the end.
  type: float
  returned: success
began_monotonic_seconds:
  description: The same clock at the first sample.
  type: float
  returned: success
"""

import math
import os
import re
import signal
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.guest_channel import not_running
from ansible.module_utils.ksm_convergence import ConvergenceRule, Verdict, judge, saved_pages
from ansible.module_utils.ksm_probe import (
    KIB,
    ProbeError,
    Roots,
    find_ksmd,
    knob_files,
    other_mergeable,
    others_words,
    own_pids,
    parse_stat,
    provenance,
    read_optional,
    selected,
    tuners,
)
from ansible.module_utils.progress import PATIENCE_SECONDS, Progress, ProgressError

KSM_COLUMNS = ("full_scans", "pages_shared", "pages_sharing")
KSM_OPTIONAL_COLUMNS = (
    "pages_unshared",
    "pages_volatile",
    "pages_scanned",
    "ksm_zero_pages",
    "general_profit",
)
MEMINFO_COLUMNS = (
    "MemAvailable",
    "MemFree",
    "AnonPages",
    "AnonHugePages",
    "Slab",
    "PageTables",
    "Cached",
)
VMSTAT_COLUMNS = ("pswpin", "pswpout")
VMSTAT_OPTIONAL_COLUMNS = ("cow_ksm",)
MEMINFO_LINE = re.compile(rf"^({'|'.join(MEMINFO_COLUMNS)}):\s+(\d+) kB$".encode(), re.MULTILINE)
VMSTAT_LINE = re.compile(
    rf"^({'|'.join((*VMSTAT_COLUMNS, *VMSTAT_OPTIONAL_COLUMNS))}) (\d+)$".encode(), re.MULTILINE
)
# Usage and inactive file pages of a memory cgroup, v2 and v1
ENVELOPE_FILES = (("memory.current", b"inactive_file"), ("memory.usage_in_bytes", b"total_inactive_file"))
PER_CPU_COUNT = re.compile(rb"^\s+count:\s+(\d+)$", re.MULTILINE)
PRESSURE_TOTAL = re.compile(rb"^some .*total=(\d+)$", re.MULTILINE)
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
PROGRESS_SECONDS = 2.0
PROGRESS_QUIET_SECONDS = 10.0
LEAST = {"interval_seconds": 0.1, "duration_seconds": 0.1, "timeout_seconds": 1, "patience_seconds": 0.1}
MIB = 1 << 20
MERGE = "1"


class Sampler:
    """Reads one row at a time through descriptors that stay open, so that a sample costs microseconds."""

    def __init__(self, roots: Roots, envelope: Path | None = None, domains: Iterable[str] = ()) -> None:
        self.ksm = {name: self._open(roots.ksm / name) for name in KSM_COLUMNS}
        self.ksm_optional = {name: self._open_optional(roots.ksm / name) for name in KSM_OPTIONAL_COLUMNS}
        self.meminfo = self._open(roots.proc / "meminfo")
        self.vmstat = self._open(roots.proc / "vmstat")
        self.zoneinfo = self._open_optional(roots.proc / "zoneinfo")
        self.ksmd = self._open(find_ksmd(roots))
        self.pressure = self._open_optional(roots.proc / "pressure/memory")
        self.envelope = None if envelope is None else self._open_envelope(envelope)
        self.proc = roots.proc
        libvirt = roots.run / "libvirt/qemu"
        self.pid_files = [libvirt / f"{domain}.pid" for domain in domains]

    def _open_envelope(self, folder: Path) -> tuple[int, int, re.Pattern[bytes]]:
        for usage, inactive in ENVELOPE_FILES:
            if (folder / usage).exists():
                line = re.compile(rb"^" + inactive + rb" (\d+)$", re.MULTILINE)
                return self._open(folder / usage), self._open(folder / "memory.stat"), line
        raise ProbeError(f"{folder} is no memory cgroup; a series of the envelope needs it")

    def _open(self, path: Path) -> int:
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ProbeError(f"{path} cannot be read: {error.strerror}; a series needs it") from None

    def _open_optional(self, path: Path) -> int | None:
        # psi=0 leaves the file in place and refuses to open or read it.
        return None if read_optional(path) is None else self._open(path)

    def row(self) -> dict[str, Any]:
        """One sample, all columns but `seconds`."""
        row: dict[str, Any] = {name: int(os.pread(fd, 32, 0)) for name, fd in self.ksm.items()}
        # Absent on a kernel without huge pages, or older than 5.8
        row.update(dict.fromkeys(("AnonHugePages_bytes", *VMSTAT_OPTIONAL_COLUMNS)))
        for name, fd in self.ksm_optional.items():
            row[name] = None if fd is None else int(os.pread(fd, 32, 0))
        for name, kib in MEMINFO_LINE.findall(os.pread(self.meminfo, 65536, 0)):
            row[f"{name.decode()}_bytes"] = int(kib) * KIB
        for name, pages in VMSTAT_LINE.findall(self._whole(self.vmstat)):
            row[name.decode()] = int(pages)
        # MemAvailable counts the free pages on these lists as used (mm/show_mem.c).
        row["per_cpu_free_pages"] = (
            None
            if self.zoneinfo is None
            else sum(map(int, PER_CPU_COUNT.findall(self._whole(self.zoneinfo))))
        )
        row["ksmd_cpu_seconds"] = parse_stat(
            os.pread(self.ksmd, 4096, 0).decode(errors="replace")
        ).cpu_seconds
        total = None if self.pressure is None else PRESSURE_TOTAL.search(os.pread(self.pressure, 4096, 0))
        row["memory_some_total_microseconds"] = int(total.group(1)) if total else None
        if self.pid_files:
            row["guests_anon_pages"] = sum(map(self._anon_pages, self.pid_files))
        if self.envelope is not None:
            usage, stat, line = self.envelope
            inactive = line.search(self._whole(stat))
            row["envelope_working_set_bytes"] = max(
                0, int(os.pread(usage, 32, 0)) - (int(inactive.group(1)) if inactive else 0)
            )
        return row

    def _anon_pages(self, pid_file: Path) -> int:
        """Resident pages of a guest that are of no file (proc(5), statm); 0 of one that does not run."""
        try:
            statm = (self.proc / pid_file.read_text(encoding="ascii").strip() / "statm").read_text("ascii")
        except OSError:
            return 0
        _size, resident, shared, *_rest = map(int, statm.split())
        return resident - shared

    @staticmethod
    def _whole(fd: int) -> bytes:
        # vmstat is handed out in pieces of a page.
        text = b""
        while piece := os.pread(fd, 65536, len(text)):
            text += piece
        return text


class Knobs:
    """What somebody changes while KSM is followed: each change of a knob, and of run."""

    def __init__(self, roots: Roots) -> None:
        paths = [roots.ksm / "run", *knob_files(roots)]
        self.files = {path.name: os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths}
        self.last: dict[str, str] = {}
        self.changes: list[dict[str, Any]] = []

    def read(self) -> dict[str, str]:
        """All of them as they are."""
        return {name: selected(os.pread(fd, 256, 0).decode()) for name, fd in self.files.items()}

    def look(self, seconds: float) -> bool:
        """Note what is not as at the look before; whether ksmd is still told to merge."""
        seen = self.read()
        for name, before in self.last.items():
            if seen[name] != before:
                change = {"seconds": seconds, "knob": name, "before": before, "after": seen[name]}
                self.changes.append(change)
        self.last = seen
        return seen["run"] == MERGE


def check_columns(row: dict[str, Any]) -> None:
    """ProbeError that names a line of meminfo or vmstat that the kernel does not show."""
    for name in (*(f"{name}_bytes" for name in MEMINFO_COLUMNS), *VMSTAT_COLUMNS):
        if name not in row:
            raise ProbeError(
                f"{name.removesuffix('_bytes')} is missing from meminfo and vmstat; a series needs it"
            )


def wait_until(deadline: float) -> str | None:
    """Sleep to a moment of the monotonic clock; the name of a stop signal that came meanwhile, else None."""
    received = signal.sigtimedwait(STOP_SIGNALS, max(0.0, deadline - time.monotonic()))
    return None if received is None else signal.Signals(received.si_signo).name


class ScanProgress:
    """Lines for a person, each new scan but not more often than a terminal can be read."""

    def __init__(self, progress: Progress, guests: int) -> None:
        self.progress = progress
        self.guests = guests
        self.page_bytes = os.sysconf("SC_PAGE_SIZE")
        self.last_scan = -1
        self.last_seconds = -math.inf

    def show(self, scan: int, saved: int, seconds: float, *, last: bool = False) -> None:
        """Note a sample; the last one is always shown, once."""
        wait = PROGRESS_SECONDS if scan != self.last_scan else PROGRESS_QUIET_SECONDS
        if last:
            wait = 0.001
        if seconds - self.last_seconds >= wait:
            mib = saved * self.page_bytes / MIB
            each = f" ({mib / self.guests:.1f} MiB/VM)" if self.guests else ""
            self.progress.say(f"scan {scan}, saved {mib:.0f} MiB{each}, {seconds:.0f} s")
            self.last_scan, self.last_seconds = scan, seconds


def refuse_others(roots: Roots) -> None:
    """ProbeError that names what else on the host KSM would merge."""
    others = other_mergeable(own_pids(roots), roots)
    if others:
        raise ProbeError(
            "KSM was not started, since other processes offer memory to it by now: "
            f"{others_words(others, roots)}; end them, or give -e others=allow"
        )


def start(roots: Roots) -> None:
    """Tell ksmd to merge."""
    try:
        (roots.ksm / "run").write_text(f"{MERGE}\n", encoding="ascii")
    except OSError as error:
        raise ProbeError(f"{roots.ksm / 'run'} refused 1: {error.strerror}") from None


class Series:
    """The samples so far and whether they have settled."""

    def __init__(self, rule: ConvergenceRule, *, smart_scan: bool, before_pages: int = 0) -> None:
        self.rule = rule
        # Of others than the guests; the rule is of what these save.
        self.before_pages = before_pages
        self.smart_scan = smart_scan
        self.rows: list[dict[str, Any]] = []
        self.full_scans: list[int] = []
        self.saved: list[int] = []
        self.guests_anon: list[int] = []
        self.volatile: list[int] = []
        self.verdict = Verdict(False, "")
        self.converged_after_seconds: float | None = None

    @property
    def complete_scans(self) -> int:
        """Full scans since the first sample."""
        return self.full_scans[-1] - self.full_scans[0]

    def add(self, seconds: float, row: dict[str, Any]) -> None:
        """Take a sample; the first one with which the rule holds is kept as the moment of convergence."""
        self.rows.append({"seconds": seconds, **row})
        self.full_scans.append(row["full_scans"])
        self.saved.append(saved_pages(row["pages_sharing"], row["ksm_zero_pages"]) - self.before_pages)
        if "guests_anon_pages" in row:
            self.guests_anon.append(row["guests_anon_pages"])
        if row["pages_volatile"] is not None:
            self.volatile.append(row["pages_volatile"])
        if self.converged_after_seconds is None:
            self.verdict = judge(
                self.full_scans,
                self.saved,
                self.rule,
                smart_scan=self.smart_scan,
                guests_anon=self.guests_anon or None,
                volatile=self.volatile or None,
            )
            if self.verdict.settled:
                self.converged_after_seconds = seconds

    def columns(self) -> dict[str, list[Any]]:
        """The samples by column."""
        return {name: [row[name] for row in self.rows] for name in self.rows[0]}


def begun(params: dict[str, Any], roots: Roots, row: dict[str, Any]) -> Series:
    """A series with nothing in it yet; the row is of before KSM is started, where that is asked for."""
    check_columns(row)
    return Series(
        ConvergenceRule(params["min_full_scans"], params["window_scans"], params["threshold_percent"]),
        smart_scan=(read_optional(roots.ksm / "smart_scan") or "0").strip() != "0",
        before_pages=saved_pages(row["pages_sharing"], row["ksm_zero_pages"]) if params["start_ksm"] else 0,
    )


def follow(params: dict[str, Any], roots: Roots) -> tuple[dict[str, Any], float]:
    """Take the series; `observed` of a merge record, and when it began on the monotonic clock."""
    settles, told = params["until"] == "converged", params["until"] == "told"
    may_stop = told or params["may_stop"]
    limit = params["timeout_seconds"] if settles or told else params["duration_seconds"]
    sampler = Sampler(
        roots,
        Path(params["envelope_path"]) if params["envelope_path"] else None,
        params["domains"].values(),
    )
    series = begun(params, roots, sampler.row())
    knobs = Knobs(roots)
    if params["start_ksm"] and params["others"] == "refuse":
        refuse_others(roots)
    progress = Progress(params["progress_path"], params["patience_seconds"])
    libvirt = roots.run / "libvirt/qemu"
    running = {
        guest: domain for guest, domain in params["domains"].items() if (libvirt / f"{domain}.xml").exists()
    }
    scans = ScanProgress(progress, params["guests"])
    # Blocked, so that they end a sleep and never a read.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)

    started_at = datetime.now(UTC)
    begin_cpu = time.process_time()
    begin = time.monotonic()
    if params["start_ksm"]:
        start(roots)
    elif not may_stop and knobs.read()["run"] != MERGE:
        raise ProbeError("KSM is not running (run is not 1) and start_ksm is false; nothing would be merged")
    end = ""
    while not end:
        seconds = round(time.monotonic() - begin, 3)
        series.add(seconds, sampler.row())
        merging = knobs.look(seconds)
        scans.show(series.complete_scans, series.saved[-1], seconds)
        if stopped := not_running(running, libvirt):
            raise ProbeError(f"{stopped}; KSM was followed for {seconds:.0f} s")
        if settles and series.verdict.settled:
            end = "settled"
        elif seconds >= limit:
            state = "settled" if series.verdict.settled else "not settled"
            end = f"{state} when the {limit:g} s were over"
        elif not merging and not may_stop:
            end = f"something else on the host stopped KSM after {seconds:.0f} s"
        elif abandoned := progress.abandoned():
            end = f"interrupted after {seconds:.0f} s, {abandoned}"
        else:
            slot = math.floor((time.monotonic() - begin) / params["interval_seconds"]) + 1
            received = wait_until(begin + min(slot * params["interval_seconds"], limit))
            if received:
                end = f"interrupted by {received} after {time.monotonic() - begin:.0f} s"
    scans.show(series.complete_scans, series.saved[-1], seconds, last=True)
    reason = f"{end}: {series.verdict.reason}"
    progress.say(f"{reason}, {seconds:.0f} s")
    observed = {
        "started_at": started_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "converged": series.converged_after_seconds is not None,
        "reason": reason,
        "converged_after_seconds": series.converged_after_seconds,
        "full_scans": series.complete_scans,
        "duration_seconds": seconds,
        "samples": series.columns(),
        "knob_changes": knobs.changes,
        "tuners": tuners(roots),
        "sampler_cpu_seconds": round(time.process_time() - begin_cpu, 6),
    }
    return observed, begin


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "start_ksm": {"type": "bool", "default": False},
            "may_stop": {"type": "bool", "default": False},
            "others": {"type": "str", "choices": ["refuse", "allow"], "default": "refuse"},
            "interval_seconds": {"type": "float", "default": 1.0},
            "until": {"type": "str", "choices": ["converged", "seconds", "told"], "default": "converged"},
            "duration_seconds": {"type": "float"},
            "timeout_seconds": {"type": "float", "default": 900},
            "min_full_scans": {"type": "int", "default": 3},
            "window_scans": {"type": "int", "default": 2},
            "threshold_percent": {"type": "float", "default": 0.5},
            "guests": {"type": "int", "default": 0},
            "domains": {"type": "dict", "default": {}},
            "envelope_path": {"type": "path"},
            "progress_path": {"type": "path"},
            "patience_seconds": {"type": "float", "default": PATIENCE_SECONDS},
            "proc_root": {"type": "path", "default": "/proc"},
            "sys_root": {"type": "path", "default": "/sys"},
            "run_root": {"type": "path", "default": "/run"},
        },
        required_if=[("until", "seconds", ["duration_seconds"])],
        supports_check_mode=True,
    )
    params = module.params
    for name, least in LEAST.items():
        if params[name] is not None and params[name] < least:
            module.fail_json(msg=f"{name} is {params[name]:g}; it must be {least:g} or more")
    if module.check_mode:
        module.exit_json(changed=params["start_ksm"], msg="would sample KSM's counters")
    try:
        roots = Roots(*(Path(params[f"{name}_root"]) for name in ("proc", "sys", "run")))
        # A host that cannot be described is found before the minutes of sampling.
        host = provenance(roots)
        observed, began = follow(params, roots)
    except (ProbeError, ProgressError, ValueError) as error:
        module.fail_json(msg=str(error))
    now = datetime.now(UTC)
    module.exit_json(
        changed=params["start_ksm"],
        observed=observed,
        provenance=host,
        recorded_at=now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        monotonic_seconds=time.monotonic(),
        began_monotonic_seconds=began,
    )


if __name__ == "__main__":
    main()

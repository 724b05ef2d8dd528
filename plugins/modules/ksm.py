#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Set, read back, snapshot and restore the KSM and THP settings of a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ksm
short_description: Set, read back, snapshot and restore KSM and THP settings
description:
  - Manages every writable file of C(/sys/kernel/mm/ksm) (knobs) and C(/sys/kernel/mm/transparent_hugepage).
  - Which settings exist is read from the running kernel, never derived from its version.
  - All values are checked before the first one is written, and each is read back after it was written.
  - Writes are put in an order that the kernel accepts. C(max_page_sharing) and C(merge_across_nodes) answer
    EBUSY while pages are merged, so pages are unmerged (C(run=2)) before one of them changes, and C(run) then
    goes to what was asked, or back to what it was. C(pages_to_scan) answers EINVAL unless C(advisor_mode) is
    C(none), and a change of C(advisor_mode) resets it (to 100 for C(none)), so it is written afterwards.
  - Unmerging needs memory. It is refused unless (C(pages_sharing) + C(ksm_zero_pages)) x page size is below
    MemAvailable less 5 % of MemTotal. The counters keep pages of processes that ended until ksmd passes by,
    so no more is counted than what processes still have merged, where the kernel tells it. In check mode it
    is not refused, and what the testbed's guests have merged does not count, since they may be away by the
    time that counts.
  - What processes had merged when O(snapshot) was stored, and still have, is never unmerged. In place of
    unmerging, KSM is then stopped (C(run=0)) when its counters hold nothing more than what processes that
    live have merged; ksmd runs until it has passed by those that ended. A knob that answers EBUSY then
    is refused before anything is changed.
options:
  state:
    description:
      - V(present) sets O(knobs) and O(thp).
      - V(unmerged) turns KSM off truly. It writes C(run=2), waits until nothing is merged, then writes
        C(run=0).
      - V(restored) puts everything that O(snapshot) holds back, verifies it and removes the file. Where
        O(snapshot) is absent nothing is done. C(pages_to_scan) is left to the kernel where C(advisor_mode)
        was C(scan-time). Pages are unmerged too where KSM was stopped and nothing was merged at the snapshot.
    type: str
    choices: [present, unmerged, restored]
    default: present
  knobs:
    description:
      - Values by name of the file in C(/sys/kernel/mm/ksm), for O(state=present).
      - C(run=0) alone stops scanning but keeps merged pages merged; to undo merging use O(state=unmerged).
    type: dict
    default: {}
  thp:
    description:
      - Values by path of the file below C(/sys/kernel/mm/transparent_hugepage), such as C(enabled) or
        C(khugepaged/defrag), for O(state=present).
    type: dict
    default: {}
  reset:
    description:
      - With O(state=present), every setting but C(run) that O(knobs) and O(thp) leave out goes back to what
        O(snapshot) holds, so that nothing of what was set before stays in force.
    type: bool
    default: false
  unmerge:
    description:
      - With O(state=present), first turn KSM off truly, as O(state=unmerged) does; off it stays unless
        O(knobs) has run. An advisor that is on and asked for again goes off first where it has scanned, so
        that it begins anew, too.
    type: bool
    default: false
  optional:
    description: Knobs that this kernel may lack; those it lacks are reported in RV(missing) and not set.
    type: list
    elements: str
    default: []
  snapshot:
    description:
      - Where all settings are stored before anything is changed, with mode 0600, written atomically.
      - A file of this boot is never overwritten, so it keeps the state before the first change.
      - One of another boot of the host is never restored, since a boot undoes all settings and the user may
        have set others since. It is put aside as C(<snapshot>.other-boot<n>), and a warning says so.
      - One that does not tell its boot, as earlier versions wrote it, is refused; the user has to look.
    type: path
  unmerge_timeout_seconds:
    description: How long to wait after C(run=2) until the counters of merged pages are 0.
    type: int
    default: 60
  sysfs_root:
    description: The folder that holds C(ksm) and C(transparent_hugepage).
    type: path
    default: /sys/kernel/mm
  proc_root: {description: for tests, type: path, default: /proc}
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
author: KSM testbed
"""

EXAMPLES = r"""
- name: Scan fast, and keep what the host had
  ksm:
    knobs:
      pages_to_scan: 20000
      sleep_millisecs: 10
      smart_scan: 0
    optional: [smart_scan]
    thp:
      enabled: madvise
    snapshot: /var/lib/ksm-testbed/ksm-snapshot.json

- name: Let the kernel's advisor choose, with all else as the host had it
  ksm:
    knobs:
      advisor_mode: scan-time
    unmerge: true
    reset: true
    snapshot: /var/lib/ksm-testbed/ksm-snapshot.json

- name: Unmerge everything and stop KSM
  ksm:
    state: unmerged

- name: Put all settings back
  ksm:
    state: restored
    snapshot: /var/lib/ksm-testbed/ksm-snapshot.json
"""

RETURN = r"""
knobs:
  description: Every KSM knob of this kernel as read back (in check mode, as it is); numbers as integers.
  returned: success
  type: dict
  sample: {"run": 0, "pages_to_scan": 20000, "advisor_mode": "none"}
thp:
  description: Every THP setting of this kernel as read back, by path; the selected one of several choices.
  returned: success
  type: dict
  sample: {"enabled": "madvise", "khugepaged/defrag": "1"}
before:
  description: What run was, and how many pages processes had merged, when O(snapshot) was stored; else now.
  returned: success
  type: dict
  sample: {"run": 0, "merged_pages": 0}
missing:
  description: What was to be set or restored but this kernel does not have.
  returned: success
  type: list
  elements: str
  sample: [smart_scan]
diff:
  description: Settings before and after as text, one on each line.
  returned: success
  type: dict
"""

import json
import os
import re
import stat
import tempfile
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.ksm_probe import Roots, own_pids

# Settings go by their path below sysfs_root.
KSM = "ksm/"
THP = "transparent_hugepage/"
RUN = "ksm/run"
ADVISOR_MODE = "ksm/advisor_mode"
ADVISOR_MIN_PAGES_TO_SCAN = "ksm/advisor_min_pages_to_scan"
PAGES_TO_SCAN = "ksm/pages_to_scan"
REFUSED_WHILE_MERGED = frozenset({"ksm/max_page_sharing", "ksm/merge_across_nodes"})

STOP = "0"
MERGE = "1"
UNMERGE = "2"

# pages_shared counts too: a stable node that lost all but one mapping still makes the kernel answer EBUSY.
MERGED_COUNTERS = ("pages_shared", "pages_sharing", "ksm_zero_pages")
TRACKED_COUNTERS = (*MERGED_COUNTERS, "pages_unshared", "pages_volatile")
UNMERGE_COST_COUNTERS = ("pages_sharing", "ksm_zero_pages")
# Of these each belongs to a process: what ksm_merging_pages counts there.
STABLE_COUNTERS = ("pages_shared", "pages_sharing")
OPTIONAL_COUNTERS = frozenset({"ksm_zero_pages"})

INT_MAX = 2**31 - 1
UINT_MAX = 2**32 - 1
ULONG_MAX = 2**64 - 1
# What mm/ksm.c, mm/huge_memory.c and mm/khugepaged.c accept; any other number is an unsigned long.
RANGES = {
    RUN: (0, 2),
    PAGES_TO_SCAN: (0, UINT_MAX),
    "ksm/sleep_millisecs": (0, UINT_MAX),
    "ksm/stable_node_chains_prune_millisecs": (0, INT_MAX),
    "ksm/max_page_sharing": (2, INT_MAX),
    "ksm/merge_across_nodes": (0, 1),
    "ksm/use_zero_pages": (0, 1),
    "ksm/smart_scan": (0, 1),
    "ksm/advisor_max_cpu": (0, UINT_MAX),
    "ksm/advisor_target_scan_time": (1, ULONG_MAX),
    "transparent_hugepage/use_zero_page": (0, 1),
    "transparent_hugepage/shrink_underused": (0, 1),
    "transparent_hugepage/khugepaged/defrag": (0, 1),
    "transparent_hugepage/khugepaged/pages_to_scan": (1, UINT_MAX),
    "transparent_hugepage/khugepaged/scan_sleep_millisecs": (0, UINT_MAX),
    "transparent_hugepage/khugepaged/alloc_sleep_millisecs": (0, UINT_MAX),
}
UNMERGE_RESERVE_PERCENT = 5
# ksmd goes by processes that ended next, but finishes the one that it is at, with the slowest policy too.
FORGET_SECONDS = 900
FORGET_STEP_SECONDS = 0.5
SNAPSHOT_SCHEMA_VERSION = 2


class KsmError(Exception):
    """A refusal or a failure, told in one sentence."""


@dataclass(frozen=True)
class Setting:
    """The value of one file, and the words it offers (empty unless the kernel lists them)."""

    value: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Snapshot:
    """All settings of a host at one moment, how many pages were merged then, and which boot it was."""

    settings: dict[str, str]
    merged_pages: int
    boot_id: str


@dataclass(frozen=True)
class Host:
    """What /proc says: memory, the size of a page, this boot, and what processes have merged.

    ``process_merged_pages``: zero pages included; None where the kernel does not tell it of each process.
    ``proc``: where it was read, to be read again.
    """

    available_bytes: int
    total_bytes: int
    page_size_bytes: int
    boot_id: str
    process_merged_pages: int | None = None
    proc: Path = Path("/proc")


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    state: str
    knobs: Mapping[str, object]
    thp: Mapping[str, object]
    optional: Collection[str]
    reset: bool
    unmerge: bool
    snapshot: Path | None
    unmerge_timeout_seconds: int


@dataclass(frozen=True)
class Outcome:
    """What was done (in check mode: would be done), the settings then in force, and those at first."""

    changed: bool
    settings: dict[str, str]
    missing: list[str]
    before: str
    after: str
    first: Snapshot
    warnings: list[str]


def parse_setting(text: str) -> Setting:
    """Read a number, or the bracketed one of several words as in `[none] scan-time`."""
    selected = re.search(r"\[(\S+)\]", text)
    if selected is None:
        return Setting(text.strip())
    return Setting(selected.group(1), tuple(text.replace("[", "").replace("]", "").split()))


class Sysfs:
    """The two folders of settings and counters under `root`, which is /sys/kernel/mm on a real host."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def _text(self, name: str) -> str:
        try:
            return (self.root / name).read_text(encoding="ascii")
        except (OSError, ValueError) as error:
            raise KsmError(f"{self.root / name} could not be read: {reason(error)}") from error

    def settings(self) -> dict[str, Setting]:
        """Every file that its mode calls writable, by path below the root."""
        if not (self.root / KSM).is_dir():
            raise KsmError(f"{self.root / KSM} is missing: this kernel is built without KSM (CONFIG_KSM)")
        files = [path for folder in (KSM, THP) for path in sorted((self.root / folder).rglob("*"))]
        names = [str(path.relative_to(self.root)) for path in files if is_setting(path.stat().st_mode)]
        return {name: parse_setting(self._text(name)) for name in names}

    def read(self, name: str) -> str:
        return parse_setting(self._text(name)).value

    def has(self, name: str) -> bool:
        return (self.root / name).is_file()

    def pages(self, counters: Iterable[str]) -> int:
        """Sum of KSM counters, in pages; only a counter that older kernels lack may be absent."""
        names = [name for name in counters if name not in OPTIONAL_COUNTERS or self.has(KSM + name)]
        return sum(int(self.read(KSM + name)) for name in names)

    def huge_page_bytes(self) -> int | None:
        name = THP + "hpage_pmd_size"
        return int(self.read(name)) if self.has(name) else None

    def write(self, name: str, value: str) -> None:
        """Write one value; an OSError is the kernel's answer."""
        (self.root / name).write_text(f"{value}\n", encoding="ascii")


def reason(error: Exception) -> str:
    """The bare reason of an error, without its path and number."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def is_setting(mode: int) -> bool:
    return stat.S_ISREG(mode) and bool(mode & stat.S_IRUSR) and bool(mode & stat.S_IWUSR)


def short(name: str) -> str:
    """The name as the user gives it in `knobs` or `thp`."""
    return name.removeprefix(KSM).removeprefix(THP)


def names_of(names: Iterable[str], folder: str) -> str:
    found = [short(name) for name in names if name.startswith(folder)]
    return ", ".join(found) or "none"


def allowed_ranges(huge_page_bytes: int | None, page_size_bytes: int) -> dict[str, tuple[int, int]]:
    """RANGES and, where the kernel tells the size of a huge page, the limits that follow from it."""
    if huge_page_bytes is None:
        return RANGES
    limits = (0, huge_page_bytes // page_size_bytes - 1)
    return {**RANGES, **{f"{THP}khugepaged/max_ptes_{kind}": limits for kind in ("none", "swap", "shared")}}


def checked_value(name: str, value: object, setting: Setting, ranges: Mapping[str, tuple[int, int]]) -> str:
    """`value` as the kernel prints it, or a KsmError that says what is allowed."""
    label = f"{'knob' if name.startswith(KSM) else 'thp'} {short(name)}"
    text = str(value).strip()
    if setting.choices:
        if text not in setting.choices:
            raise KsmError(f"{label} must be one of {', '.join(setting.choices)}, not {value!r}")
        return text
    # The kernel lists the words it offers; a plain word is left of them in a copied tree that was written to.
    if not setting.value.isdecimal():
        if not re.fullmatch(r"[a-z][a-z_+-]*", text):
            raise KsmError(f"{label} must be a word like {setting.value}, not {value!r}")
        return text
    low, high = ranges.get(name, (0, ULONG_MAX))
    if not re.fullmatch(r"[0-9]{1,20}", text) or not low <= int(text) <= high:
        raise KsmError(f"{label} must be a whole number from {low} to {high}, not {value!r}")
    return str(int(text))


def wanted_settings(
    request: Request,
    current: Mapping[str, Setting],
    counters: Collection[str],
    ranges: Mapping[str, tuple[int, int]],
    base: Mapping[str, str],
) -> tuple[dict[str, str], list[str]]:
    """The checked values to set, and the optional knobs that this kernel lacks.

    ``base``: checked values of the settings that the request leaves out; others stay as they are.
    """
    wanted: dict[str, str] = {}
    missing: list[str] = []
    for knob, value in request.knobs.items():
        name = f"{KSM}{knob}"
        if name in current:
            wanted[name] = checked_value(name, value, current[name], ranges)
        elif name in counters:
            known = names_of(current, KSM)
            raise KsmError(f"{knob} is a read-only counter, not a knob; this kernel's knobs are {known}")
        elif knob in request.optional:
            missing.append(name)
        else:
            known = names_of(current, KSM)
            raise KsmError(f"knob {knob} does not exist on this kernel, whose knobs are {known}")
    for path, value in request.thp.items():
        name = f"{THP}{path}"
        if name not in current:
            known = names_of(current, THP)
            raise KsmError(f"thp {path} is not a setting of this kernel, whose THP settings are {known}")
        wanted[name] = checked_value(name, value, current[name], ranges)
    laid = {**base, **wanted}
    advisor = laid.get(ADVISOR_MODE) or (current[ADVISOR_MODE].value if ADVISOR_MODE in current else "none")
    if advisor != "none":
        laid.pop(PAGES_TO_SCAN, None)
    if PAGES_TO_SCAN in wanted and advisor != "none":
        raise KsmError(
            f"knob pages_to_scan cannot be set while advisor_mode is {advisor}: "
            "ask for advisor_mode none too, or leave pages_to_scan out"
        )
    return laid, missing


def plan_writes(
    current: Mapping[str, str], wanted: Mapping[str, str], unmerge: bool, *, renew: bool = False
) -> list[tuple[str, str]]:
    """The writes that turn `current` into `wanted`, in an order that the kernel accepts (mm/ksm.c).

    `unmerge` asks for run=2 first even if no knob needs it, `renew` for the advisor to be off before that.
    Values must have been checked.
    """
    writes = []
    if renew:
        writes.append((ADVISOR_MODE, "none"))
        current = {**current, ADVISOR_MODE: "none"}
    changes = {name: value for name, value in wanted.items() if current[name] != value}
    advisor = changes.get(ADVISOR_MODE)
    if advisor == "none" and PAGES_TO_SCAN in wanted:
        # The change of advisor_mode resets pages_to_scan, also where it is as wanted now.
        changes[PAGES_TO_SCAN] = wanted[PAGES_TO_SCAN]
    run = current[RUN]
    if unmerge or (run != UNMERGE and not REFUSED_WHILE_MERGED.isdisjoint(changes)):
        writes.append((RUN, UNMERGE))
        run = UNMERGE
    # The advisor goes off before pages_to_scan is set, and on after its own limits are set.
    position = {ADVISOR_MODE: 0 if advisor == "none" else 2}
    for name in sorted(changes.keys() - {RUN}, key=lambda name: (position.get(name, 1), name)):
        writes.append((name, changes[name]))
    final_run = wanted.get(RUN, current[RUN])
    if final_run != run:
        writes.append((RUN, final_run))
    return writes


def renews_advisor(request: Request, current: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether the advisor that is asked for is on and has learnt from other pages than those to come.

    The kernel forgets that, and begins at advisor_min_pages_to_scan, where advisor_mode changes alone
    (mm/ksm.c, advisor_mode_store).
    """
    advisor = wanted.get(ADVISOR_MODE, "none")
    if not request.unmerge or advisor == "none" or current[ADVISOR_MODE] != advisor:
        return False
    return current[RUN] == MERGE or current[PAGES_TO_SCAN] != current[ADVISOR_MIN_PAGES_TO_SCAN]


def check_headroom(pages: int, host: Host) -> None:
    """Refuse to unmerge `pages` pages where the host has no room for them."""
    if host.process_merged_pages is not None:
        pages = min(pages, host.process_merged_pages)
    needed_bytes = pages * host.page_size_bytes
    room_bytes = host.available_bytes - host.total_bytes * UNMERGE_RESERVE_PERCENT // 100
    if pages and needed_bytes >= room_bytes:
        raise KsmError(
            f"unmerging needs {needed_bytes >> 20} MiB, and only {max(room_bytes, 0) >> 20} MiB may be used "
            f"(MemAvailable less {UNMERGE_RESERVE_PERCENT} % of MemTotal): stop some guests first"
        )


def read_host(proc: Path, away: Collection[int] = ()) -> Host:
    """The host as it is, or as it will be without these processes."""
    lines = (proc / "meminfo").read_text(encoding="ascii").splitlines()
    fields = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return Host(
        available_bytes=fields["MemAvailable"] * 1024,
        total_bytes=fields["MemTotal"] * 1024,
        page_size_bytes=os.sysconf("SC_PAGE_SIZE"),
        boot_id=(proc / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip(),
        process_merged_pages=process_merged_pages(proc, away),
        proc=proc,
    )


def process_merged_pages(proc: Path, away: Collection[int] = (), *, zero_pages: bool = True) -> int | None:
    """Merged pages of all processes but these; None where one does not tell (before 5.19, or not root)."""
    pages = 0
    for process in proc.iterdir():
        if not process.name.isdecimal() or int(process.name) in away:
            continue
        try:
            # Empty for what has no memory of its own: threads of the kernel, processes that ended.
            pages += int((process / "ksm_merging_pages").read_text(encoding="ascii").strip() or 0)
        except ProcessLookupError:
            continue
        except OSError:
            if process.is_dir():
                return None
            continue  # it ended meanwhile
        pages += _process_zero_pages(process) if zero_pages else 0
    return pages


def _process_zero_pages(process: Path) -> int:
    """Pages that KSM mapped to the kernel's zero page; kernels that do not count them make none by KSM."""
    try:
        lines = (process / "ksm_stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("ksm_zero_pages "))


def load_snapshot(path: Path) -> Snapshot | None:
    """The snapshot in `path`, None where there is no such file; a KsmError where it is damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema_version"] != SNAPSHOT_SCHEMA_VERSION:
            raise ValueError(f"its schema_version is not {SNAPSHOT_SCHEMA_VERSION}")
        settings, merged_pages, boot_id = data["settings"], data["merged_pages"], data["boot_id"]
        texts = (boot_id, *settings.values())
        if not isinstance(merged_pages, int) or not all(isinstance(value, str) for value in texts):
            raise ValueError("a value is of the wrong type")
        if RUN not in settings:
            raise ValueError(f"{RUN} is missing")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise KsmError(
            f"snapshot {path} cannot be used ({reason(error)}): "
            "look at what it holds, set by hand what you need, and remove it"
        ) from error
    return Snapshot(settings, merged_pages, boot_id)


def save_snapshot(path: Path, snapshot: Snapshot) -> None:
    """Store `snapshot` atomically with mode 0600; never replaces a file."""
    data = {
        "schema_version": SNAPSHOT_SCHEMA_VERSION,
        "recorded_at": datetime.now(UTC).isoformat(),
        "kernel_release": os.uname().release,
        "boot_id": snapshot.boot_id,
        "merged_pages": snapshot.merged_pages,
        "settings": snapshot.settings,
    }
    try:
        path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, prefix=f".{path.name}.", encoding="utf-8"
        ) as file:
            json.dump(data, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
            # A link, unlike a rename, fails where the file exists.
            os.link(file.name, path)
    except OSError as error:
        raise KsmError(
            f"snapshot {path} could not be stored, nothing was changed: {reason(error)}"
        ) from error


def restorable_settings(
    snapshot: Snapshot, current: Mapping[str, Setting], ranges: Mapping[str, tuple[int, int]]
) -> tuple[dict[str, str], list[str]]:
    """The settings of `snapshot` that can be written here, and those this kernel lacks."""
    wanted = {
        name: checked_value(name, value, current[name], ranges)
        for name, value in snapshot.settings.items()
        if name in current
    }
    if wanted.get(ADVISOR_MODE, "none") != "none":
        wanted.pop(PAGES_TO_SCAN, None)
    return wanted, [name for name in snapshot.settings if name not in current]


def base_settings(
    snapshot: Snapshot | None, current: Mapping[str, Setting], ranges: Mapping[str, tuple[int, int]]
) -> dict[str, str]:
    """What the settings are that nobody asks for: the host's own, but for run."""
    if snapshot is None:
        return {}
    settings, _ = restorable_settings(snapshot, current, ranges)
    return {name: value for name, value in settings.items() if name != RUN}


def verify(sysfs: Sysfs, wanted: Mapping[str, str]) -> None:
    for name, value in wanted.items():
        got = sysfs.read(name)
        if got != value:
            raise KsmError(
                f"{short(name)} was set to {value} but reads back as {got}: is another tuner at work?"
            )


def write_settings(sysfs: Sysfs, writes: Iterable[tuple[str, str]], unmerge_timeout_seconds: int) -> None:
    """Write in the given order, reading each back, and wait after run=2 until nothing is merged."""
    for name, value in writes:
        try:
            sysfs.write(name, value)
        except OSError as error:
            raise KsmError(f"{short(name)} could not be set to {value}: {reason(error)}") from error
        verify(sysfs, {name: value})
        if (name, value) == (RUN, UNMERGE):
            wait_until_unmerged(sysfs, unmerge_timeout_seconds)


def wait_until_unmerged(sysfs: Sysfs, timeout_seconds: int) -> None:
    deadline = time.monotonic() + timeout_seconds
    while pages := sysfs.pages(MERGED_COUNTERS):
        if time.monotonic() >= deadline:
            raise KsmError(
                f"{pages} pages are still merged {timeout_seconds} s after run was set to {UNMERGE}"
            )
        time.sleep(0.1)


def merged_pages_held(sysfs: Sysfs, host: Host) -> int:
    """Pages that processes have merged; where these do not tell, what the counters say."""
    counted = sysfs.pages(MERGED_COUNTERS)
    return counted if host.process_merged_pages is None else min(counted, host.process_merged_pages)


def refuse_unmerging(writes: Iterable[tuple[str, str]], current: Mapping[str, str], pages: int) -> None:
    """Refuse settings that the kernel takes only while nothing is merged, where pages must stay so."""
    busy = [
        f"{short(name)} {current[name]} to {value}" for name, value in writes if name in REFUSED_WHILE_MERGED
    ]
    if busy and pages:
        raise KsmError(
            f"{', '.join(busy)} cannot be set while {pages} pages are merged that were so before this run, "
            "and these are not unmerged: end what holds them, or choose a policy that leaves the knob"
        )


def forget_ended(sysfs: Sysfs, proc: Path, timeout_seconds: float) -> None:
    """Let ksmd run until KSM's counters hold no page of a process that ended; KSM is stopped then.

    They are looked at while ksmd stands, when both sums hold still.
    """
    deadline = time.monotonic() + timeout_seconds
    while (counted := sysfs.pages(STABLE_COUNTERS)) > (held := _stable_pages(proc)):
        if time.monotonic() >= deadline:
            raise KsmError(
                f"KSM still counts {counted - held} pages of processes that ended, {timeout_seconds:g} s "
                "after it was let pass by them, and nothing is unmerged while others have pages merged: "
                "try a policy that scans faster"
            )
        write_settings(sysfs, [(RUN, MERGE)], 0)
        time.sleep(FORGET_STEP_SECONDS)
        write_settings(sysfs, [(RUN, STOP)], 0)


def _stable_pages(proc: Path) -> int:
    pages = process_merged_pages(proc, zero_pages=False)
    if pages is None:
        raise KsmError(
            "this kernel does not tell what each process has merged, so pages that others had merged before "
            "cannot be told from those of guests that ended: end what holds them"
        )
    return pages


def as_text(settings: Mapping[str, str], extra: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in (*(f"{name} {value}" for name, value in settings.items()), *extra))


def apply(sysfs: Sysfs, request: Request, host: Host, check_mode: bool) -> Outcome:
    """Do what `request` asks for; everything that can be refused is refused before the first write."""
    restoring = request.state == "restored"
    if request.state != "present" and (request.knobs or request.thp):
        raise KsmError(f"knobs and thp are for state present, not {request.state}")
    current = sysfs.settings()
    before = {name: setting.value for name, setting in current.items()}
    ranges = allowed_ranges(sysfs.huge_page_bytes(), host.page_size_bytes)
    stored = load_snapshot(request.snapshot) if request.snapshot else None
    outdated = stored is not None and stored.boot_id != host.boot_id
    snapshot = None if outdated else stored
    may_hold_pages = before[RUN] == MERGE or sysfs.pages(TRACKED_COUNTERS) > 0
    held_pages = merged_pages_held(sysfs, host)
    first = snapshot or Snapshot(before, held_pages, host.boot_id)
    # Somebody else's, and merged before the first change
    spares = request.snapshot is not None and min(first.merged_pages, held_pages) > 0

    wanted: dict[str, str] = {}
    missing: list[str] = []
    unmerge = False
    if request.state == "present":
        counters = {f"{KSM}{path.name}" for path in (sysfs.root / KSM).iterdir()} - current.keys()
        base = base_settings(snapshot, current, ranges) if request.reset else {}
        wanted, missing = wanted_settings(request, current, counters, ranges, base)
        if request.unmerge:
            wanted, unmerge = {RUN: STOP, **wanted}, may_hold_pages
    elif request.state == "unmerged":
        wanted, unmerge = {RUN: STOP}, may_hold_pages
    elif snapshot:
        wanted, missing = restorable_settings(snapshot, current, ranges)
        unmerge = may_hold_pages and wanted[RUN] == STOP and not snapshot.merged_pages

    writes = plan_writes(
        before, wanted, unmerge and not spares, renew=renews_advisor(request, before, wanted)
    )
    refuse_unmerging(writes, before, held_pages if spares else 0)
    unmerges = (RUN, UNMERGE) in writes
    merged_pages = sysfs.pages(MERGED_COUNTERS)
    if unmerges and not check_mode:
        check_headroom(sysfs.pages(UNMERGE_COST_COUNTERS), host)
    stores_snapshot = request.snapshot is not None and snapshot is None and not restoring
    removes_snapshot = restoring and snapshot is not None
    aside = aside_place(request.snapshot) if request.snapshot and outdated else None

    if not check_mode:
        if request.snapshot and aside:
            request.snapshot.rename(aside)
        if request.snapshot and stores_snapshot:
            save_snapshot(request.snapshot, first)
        write_settings(sysfs, writes, request.unmerge_timeout_seconds)
        if spares and unmerge:
            forget_ended(sysfs, host.proc, FORGET_SECONDS)
        verify(sysfs, wanted)
        if request.snapshot and removes_snapshot:
            request.snapshot.unlink()
    settings = {name: setting.value for name, setting in sysfs.settings().items()}
    will_hold = (snapshot is not None or stores_snapshot) and not removes_snapshot
    return Outcome(
        changed=bool(writes) or stores_snapshot or removes_snapshot or outdated,
        settings=settings,
        missing=[short(name) for name in missing],
        before=as_text(before, _extra_lines(merged_pages if unmerges else 0, stored is not None)),
        after=as_text({**before, **dict(writes)} if check_mode else settings, _extra_lines(0, will_hold)),
        first=first,
        warnings=[
            f"snapshot {request.snapshot} is of another boot of this host, so it is not restored over "
            f"what is set now; it is put aside as {aside}"
        ]
        if aside
        else [],
    )


def aside_place(path: Path) -> Path:
    """Where a snapshot of another boot goes; nothing is overwritten."""
    places = (path.with_name(f"{path.name}.other-boot{number}") for number in count(1))
    return next(place for place in places if not os.path.lexists(place))


def _extra_lines(merged_pages: int, has_snapshot: bool) -> tuple[str, str]:
    return f"merged pages to unmerge {merged_pages}", f"snapshot {'stored' if has_snapshot else 'none'}"


def returned_value(value: str) -> int | str:
    return int(value) if value.isdecimal() else value


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "unmerged", "restored"], "default": "present"},
            "knobs": {"type": "dict", "default": {}},
            "thp": {"type": "dict", "default": {}},
            "optional": {"type": "list", "elements": "str", "default": []},
            "reset": {"type": "bool", "default": False},
            "unmerge": {"type": "bool", "default": False},
            "snapshot": {"type": "path"},
            "unmerge_timeout_seconds": {"type": "int", "default": 60},
            "sysfs_root": {"type": "path", "default": "/sys/kernel/mm"},
            "proc_root": {"type": "path", "default": "/proc"},
        },
        required_if=[("state", "restored", ["snapshot"]), ("reset", True, ["snapshot"])],
        supports_check_mode=True,
    )
    params: dict[str, Any] = module.params
    request = Request(
        state=params["state"],
        knobs=params["knobs"],
        thp=params["thp"],
        optional=params["optional"],
        reset=params["reset"],
        unmerge=params["unmerge"],
        snapshot=Path(params["snapshot"]) if params["snapshot"] else None,
        unmerge_timeout_seconds=params["unmerge_timeout_seconds"],
    )
    try:
        proc = Path(params["proc_root"])
        host = read_host(proc, own_pids(Roots(proc)) if module.check_mode else ())
        outcome = apply(Sysfs(Path(params["sysfs_root"])), request, host, module.check_mode)
    except KsmError as error:
        module.fail_json(msg=str(error))
    else:
        settings = outcome.settings
        for warning in outcome.warnings:
            module.warn(warning)
        module.exit_json(
            changed=outcome.changed,
            knobs={short(name): returned_value(settings[name]) for name in settings if name.startswith(KSM)},
            thp={short(name): settings[name] for name in settings if name.startswith(THP)},
            before={
                "run": int(outcome.first.settings[RUN]),
                "merged_pages": outcome.first.merged_pages,
            },
            missing=outcome.missing,
            diff={"before": outcome.before, "after": outcome.after},
        )


if __name__ == "__main__":
    main()

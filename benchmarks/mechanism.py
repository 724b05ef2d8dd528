"""What merging, unmerging and copy on write cost on this host: MiB/s, microseconds a page, copies of a page.

    python benchmarks/mechanism.py measure RECORD [--mib 256] [--repetitions 5]
    python benchmarks/mechanism.py show RECORD

`measure` runs on the hypervisor as root, which no run has and where nothing else offers memory to KSM. Each
repetition maps memory of its own, once in small and once in huge pages (madvise), in which every page has one
equal to it. Costs are CPU time: of ksmd until all pairs are merged, for each page that this frees; of the
process that takes its memory back (MADV_UNMERGEABLE), for each page; of the process that writes one byte to
one page of each pair, for each page, with and without KSM having merged them. Beside them is what the
kernel's own selftest measures (tools/testing/selftests/mm/ksm_tests.c, -P, -H, -D and -C) by its method,
written anew: memory of one content, the time on the clock of two scans with 10 pages a batch and no sleep. A
copy of a page from memory to memory, in the same repetition, is the unit of the last column. Knobs are put
back. RECORD keeps the seconds of each repetition, from which `show` prints the same again.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ansible.module_utils

from analysis.measure.statistics import estimate

PROJECT = Path(__file__).parents[1]
ansible.module_utils.__path__.append(str(PROJECT / "plugins/module_utils"))

from ansible.module_utils.ksm_probe import (  # noqa: E402 -- found by the line above
    ProbeError,
    Roots,
    find_ksmd,
    other_mergeable,
    others_words,
)
from ansible.module_utils.lease import DIRECTORY, Lease  # noqa: E402

KSM = Path("/sys/kernel/mm/ksm")
SNAPSHOT = "/var/lib/ksm-testbed/ksm-snapshot.json"
MIB = 1 << 20
PAGE = mmap.PAGESIZE
# As fast as it goes, each page in each scan
PAGES_TO_SCAN, SELFTEST_PAGES_TO_SCAN = 20000, 10
KNOBS = {
    "sleep_millisecs": 0,
    "smart_scan": 0,
    "advisor_mode": "none",
    "use_zero_pages": 0,
    "pages_to_scan": PAGES_TO_SCAN,
}
OPTIONAL = ["smart_scan", "advisor_mode", "use_zero_pages"]
SELFTEST_COW_PAGES = 4000
LIMIT_SECONDS = 120.0
LOOK_SECONDS = 0.002
COPY = "copy a page, memory to memory"
# Seconds and pages of each thing, by its name
Costs = dict[str, tuple[float, int]]


class BenchError(Exception):
    """What is asked can't be done; the text is one sentence."""


def counter(name: str) -> int:
    """One of KSM's counters."""
    return int((KSM / name).read_text(encoding="ascii"))


def put(name: str, value: int) -> None:
    """Set one of its knobs."""
    (KSM / name).write_text(f"{value}\n", encoding="ascii")


def wait(until: Callable[[], bool], what: str) -> None:
    """Wait as long as it takes, but not for ever. Raises BenchError."""
    end = time.monotonic() + LIMIT_SECONDS
    while not until():
        if time.monotonic() > end:
            raise BenchError(f"{what} did not come within {LIMIT_SECONDS:g} s")
        time.sleep(LOOK_SECONDS)


def ksmd_seconds(stat: Path) -> float:
    """CPU time of ksmd, in nanoseconds' steps."""
    return int(stat.with_name("schedstat").read_text(encoding="ascii").split()[0]) / 1e9


class Memory:
    """Private memory in pages of one kind."""

    def __init__(self, size_bytes: int, huge: bool) -> None:
        """Map it; nothing is resident yet."""
        self.map = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.map.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)

    def fill_with_pairs(self) -> float:
        """Random pages, each twice; the seconds that the copy of one half to the other takes."""
        half = len(self.map) // 2
        self.map[:half] = os.urandom(half)
        self.map[half:] = bytes(half)
        first = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        began = time.process_time()
        ctypes.memmove(first + half, first, half)
        return time.process_time() - began

    def huge_bytes(self) -> int:
        """How much of this process is in huge pages."""
        text = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
        return next(
            int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("AnonHugePages:")
        )

    def write(self, pages: slice) -> float:
        """Write the first byte of each of these pages, which stays what it is; seconds of CPU time."""
        where = slice(pages.start * PAGE, pages.stop * PAGE, pages.step * PAGE)
        same = self.map[where]
        began = time.process_time()
        self.map[where] = same
        return time.process_time() - began

    @contextmanager
    def mergeable(self) -> Iterator[None]:
        """Offer it to KSM while it runs, with nothing left in its counters of what was merged before."""
        put("run", 2)
        self.map.madvise(mmap.MADV_MERGEABLE)
        put("run", 1)
        try:
            yield
        finally:
            put("run", 0)


def mechanism(size_bytes: int, huge: bool, ksmd: Path) -> tuple[Costs, float]:
    """One repetition of what the testbed asks for; and the part of the memory that was in huge pages."""
    memory, pages = Memory(size_bytes, huge), size_bytes // PAGE
    own_huge_bytes = -memory.huge_bytes()
    copied = memory.fill_with_pairs()
    part = (own_huge_bytes + memory.huge_bytes()) / size_bytes
    pairs, one_of_each = pages // 2, slice(0, pages // 2, 1)
    plain = memory.write(one_of_each)

    def merge() -> float:
        began = ksmd_seconds(ksmd)
        with memory.mergeable():
            wait(lambda: counter("pages_sharing") >= pairs, f"the merging of {pairs} pages")
        return ksmd_seconds(ksmd) - began

    merged = merge()
    began = time.process_time()
    memory.map.madvise(mmap.MADV_UNMERGEABLE)
    unmerged = time.process_time() - began
    merge()
    written = memory.write(one_of_each)
    memory.map.close()
    return {
        COPY: (copied, pairs),
        "merge: ksmd, a page freed": (merged, pairs),
        "unmerge: MADV_UNMERGEABLE": (unmerged, pages),
        "write to a merged page": (written, pairs),
        "write to one that is not": (plain, pairs),
    }, part


def selftest(size_bytes: int, huge: bool) -> Costs:
    """One repetition by the method of the kernel's selftest."""
    put("pages_to_scan", SELFTEST_PAGES_TO_SCAN)
    memory, pages = Memory(size_bytes, huge), size_bytes // PAGE
    memory.map[:] = b"*" * size_bytes

    def two_scans(of: Memory) -> float:
        began = time.monotonic()
        with of.mergeable():
            first = counter("full_scans")
            wait(lambda: counter("full_scans") >= first + 2, "the end of two scans")
        return time.monotonic() - began

    merged = two_scans(memory)
    began = time.monotonic()
    memory.map.madvise(mmap.MADV_UNMERGEABLE)
    unmerged = time.monotonic() - began
    memory.map.close()
    pairs, every_other = Memory(SELFTEST_COW_PAGES * PAGE, huge=huge), slice(0, SELFTEST_COW_PAGES, 2)
    for page in range(SELFTEST_COW_PAGES):
        count = page // 2 + 1
        pairs.map[page * PAGE : (page + 1) * PAGE] = b"+" * count + b"*" * (PAGE - count)
    plain = pairs.write(every_other)
    two_scans(pairs)
    written = pairs.write(every_other)
    pairs.map.close()
    put("pages_to_scan", PAGES_TO_SCAN)
    half = SELFTEST_COW_PAGES // 2
    return {
        "selftest -H: two scans" if huge else "selftest -P: two scans": (merged, pages),
        "selftest -D: unmerge": (unmerged, pages),
        "selftest -C: write, merged": (written, half),
        "selftest -C: write, not merged": (plain, half),
    }


def shown(record: dict[str, Any]) -> str:
    """Its tables, one of each kind of pages."""
    kinds: dict[str, list[dict[str, Any]]] = record["repetitions"]
    count, mib = len(kinds["small"]), record["size_bytes"] // MIB
    lines = [f"{record['machine']}; {mib} MiB, {count} repetitions, ± 95 % t"]
    for kind, repetitions in kinds.items():
        parts = [one["huge_part"] for one in repetitions]
        title = f"{kind} pages ({min(parts):.0%} to {max(parts):.0%} of the memory in huge ones)"
        lines += [title, table([one["costs"] for one in repetitions])]
    if any(abs(one["huge_part"] - (kind == "huge")) > 0.1 for kind in kinds for one in kinds[kind]):
        lines.append("! Not all of the memory was in the pages that it was to be in.")
    return "\n".join(lines)


def table(repetitions: list[Costs]) -> str:
    """What each thing costs: mean of the repetitions ± half of the 95 % interval."""
    lines = [f"{'':<34}{'MiB/s':>18}{'us a page':>18}{'copies of a page':>20}"]
    copies = [seconds / pages for seconds, pages in (one[COPY] for one in repetitions)]
    for name in repetitions[0]:
        each = [seconds / pages for seconds, pages in (one[name] for one in repetitions)]
        columns = (
            ([PAGE / MIB / value for value in each], 0),
            ([value * 1e6 for value in each], 3),
            ([value / copy for value, copy in zip(each, copies, strict=True)], 1),
        )
        lines.append(f"{name:<34}" + "".join(f"{words(*column):>19}" for column in columns))
    return "\n".join(lines)


def words(values: list[float], decimals: int) -> str:
    """The mean, with its interval where there are repetitions enough for one."""
    found = estimate([[value] for value in values])
    if found is None or found.half_width is None:
        return f"{values[0]:.{decimals}f}"
    return f"{found.mean:.{decimals}f} ± {found.half_width:.{decimals}f}"


def set_ksm(**arguments: object) -> None:
    """Call the module ksm, which keeps the settings before the first change. Raises BenchError."""
    program = str(Path(sys.executable).with_name("ansible"))
    given = json.dumps({**arguments, "snapshot": SNAPSHOT})
    command = [program, "localhost", "-c", "local", "-i", "localhost,", "-m", "ksm", "-a", given]
    done = subprocess.run(command, cwd=PROJECT, check=False, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"KSM cannot be set: {(done.stdout + done.stderr)[-1000:]}")


def refuse() -> None:
    """Raise BenchError where this host is not free to be measured."""
    if os.geteuid():
        raise BenchError("KSM's settings are root's: run as root")
    if Lease(Path(DIRECTORY)).is_held():
        raise BenchError("a run has this host: wait for its end")
    if others := other_mergeable([], Roots()):
        raise BenchError(f"other processes offer memory to KSM: {others_words(others, Roots())}; end them")


def measure(size_bytes: int, repetitions: int) -> dict[str, Any]:
    """The record of so many repetitions; KSM is as it was at the end, whatever happens."""
    refuse()
    ksmd = find_ksmd(Roots())
    found: dict[str, list[dict[str, Any]]] = {"small": [], "huge": []}
    set_ksm(knobs=KNOBS, optional=OPTIONAL, unmerge=True)
    try:
        for number in range(1, repetitions + 1):
            for kind, before in found.items():
                huge = kind == "huge"
                costs, part = mechanism(size_bytes, huge, ksmd)
                before.append({"huge_part": part, "costs": {**costs, **selftest(size_bytes, huge)}})
            print(f"repetition {number} of {repetitions}", file=sys.stderr, flush=True)
    finally:
        set_ksm(state="restored")
    models = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    cpu = next(
        (line.partition(":")[2].strip() for line in models if line.startswith("model name")), "unknown CPU"
    )
    return {
        "schema_version": 1,
        "kind": "mechanism",
        "recorded_at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "machine": f"{cpu}, Linux {os.uname().release}",
        "size_bytes": size_bytes,
        "repetitions": found,
    }


def read(path: Path) -> dict[str, Any]:
    """A record that `measure` wrote. Raises BenchError."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        record = None
    if not isinstance(record, dict) or (record.get("kind"), record.get("schema_version")) != ("mechanism", 1):
        raise BenchError(f"{path} is no record of this benchmark: name a file that measure wrote")
    return record


def whole(text: str) -> int:
    """A number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


def main() -> None:
    """Measure or show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure", help="measure on this host and keep the seconds in RECORD")
    measuring.add_argument("record", type=Path)
    measuring.add_argument("--mib", type=whole, default=256, help="memory of each repetition (%(default)s)")
    measuring.add_argument("--repetitions", type=whole, default=5, help="of each kind of pages (%(default)s)")
    showing = commands.add_parser("show", help="print the figures of RECORD again")
    showing.add_argument("record", type=Path)
    arguments = parser.parse_args()
    try:
        if arguments.command == "measure":
            if arguments.record.exists():
                raise BenchError(f"{arguments.record} exists: name another file, or remove it")
            record = measure(arguments.mib * MIB, arguments.repetitions)
            arguments.record.write_text(json.dumps(record) + "\n", encoding="utf-8")
        print(shown(read(arguments.record)))
    except (BenchError, ProbeError, OSError) as error:
        sys.exit(f"mechanism: {error}")


if __name__ == "__main__":
    main()

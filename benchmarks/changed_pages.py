"""Which pages of the running guests change by themselves, what were they, and what became of them?

The guests are paused for a moment at each of several times, and every page of their memory is hashed; hashes
stay in this process. From one time to the next it says for each guest how many pages changed, whether the new
content stood elsewhere in the same guest before (a page that was moved or copied), is now in another guest,
or is alone; and the guests that are asked over SSH tell what these frames were and are (/proc/kpageflags) and
which counters of /proc/vmstat rose. Asking changes a guest; the others are its control. Run as root.

Usage: python benchmarks/changed_pages.py TIMES SECONDS [--ask guest01 ...]
"""

import argparse
import shlex
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ansible.module_utils
import numpy as np
import numpy.typing as npt

PROJECT = Path(__file__).parents[1]
ansible.module_utils.__path__.append(str(PROJECT / "plugins/module_utils"))

from ansible.module_utils.page_census import (  # noqa: E402 -- found in the role by the line above
    PAGE_BYTES,
    PAGEMAP_FILE_OR_SHARED,
    PAGEMAP_PRESENT,
    Area,
    Hashes,
    Layout,
    Reader,
    parse_smaps,
)

PREFIX = "ksm-testbed-"
MARK = b"\n--- frames\n"
QUESTION = f"cat /proc/vmstat; printf {shlex.quote(MARK.decode())}; cat /proc/kpageflags"
# Bits of /proc/kpageflags, the first that is set names the frame: Documentation/admin-guide/mm/pagemap.rst
CLASSES = (
    ("no page", 1 << 20),
    ("free", 1 << 10),
    ("slab", 1 << 7),
    ("page table", 1 << 26),
    ("anonymous, locked", 1 << 33 | 1 << 12),
    ("anonymous", 1 << 12),
    ("file, mapped", 1 << 11),
    ("file", 1 << 5),
)
OTHER = "kernel or other"
# Beginnings of the counters that are shown
TELLING = ("compact", "pgmigrate", "pgscan", "pgsteal", "thp_", "nr_free_pages", "nr_file", "pgpg", "kswapd")


@dataclass(frozen=True)
class Told:
    """What a guest said: its counters, and the class of each frame by its number."""

    vmstat: dict[str, int]
    classes: list[str]


@dataclass(frozen=True)
class Moment:
    """All guests at one time: the hash of each guest-physical page, 0 where it is absent."""

    seconds: float
    pages: dict[str, Hashes]
    told: dict[str, Told]
    zero_hash: int


def guests() -> dict[str, int]:
    """Name -> process of each guest that runs."""
    listed = subprocess.run(
        ["virsh", "list", "--name"], capture_output=True, text=True, check=True
    ).stdout.split()
    return {
        domain.removeprefix(PREFIX): int(Path(f"/run/libvirt/qemu/{domain}.pid").read_text())
        for domain in sorted(listed)
        if domain.startswith(PREFIX)
    }


def memory_of(pid: int) -> Area:
    """The mapping that is the guest's memory, the largest that KSM may merge, in the order of its frames."""
    return max(parse_smaps(Path(f"/proc/{pid}/smaps").read_text()).areas, key=lambda area: area.bytes)


@contextmanager
def paused(names: list[str]) -> Iterator[None]:
    """No guest runs within it."""
    try:
        for name in names:
            subprocess.run(["virsh", "suspend", PREFIX + name], stdout=subprocess.DEVNULL, check=True)
        yield
    finally:
        for name in names:
            subprocess.run(["virsh", "resume", PREFIX + name], stdout=subprocess.DEVNULL, check=False)


def placed(pid: int, area: Area, hashes: Hashes) -> Hashes:
    """The hashes of the present pages at their places in the area."""
    with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as pagemap:
        pagemap.seek(area.start // PAGE_BYTES * 8)
        entries = np.frombuffer(pagemap.read(area.bytes // PAGE_BYTES * 8), np.uint64)
    mask = np.uint64(PAGEMAP_PRESENT | PAGEMAP_FILE_OR_SHARED)
    pages = np.zeros(len(entries), np.uint64)
    pages[(entries & mask) == np.uint64(PAGEMAP_PRESENT)] = hashes
    return pages


def ask(name: str) -> Told:
    """A guest's counters and frames, over SSH."""
    command = ["ssh", "-F", "/var/lib/ksm-testbed/guests/ssh_config", name, QUESTION]
    text, _, frames = subprocess.run(command, capture_output=True, check=True).stdout.partition(MARK)
    flags = np.frombuffer(frames[: len(frames) // 8 * 8], np.uint64)
    classes = np.full(len(flags), OTHER, dtype=object)
    for label, bits in reversed(CLASSES):
        classes[(flags & np.uint64(bits)) == np.uint64(bits)] = label
    vmstat = {line.split()[0]: int(line.split()[1]) for line in text.decode().splitlines()}
    return Told(vmstat, classes.tolist())


def look(
    pids: dict[str, int], areas: dict[str, Area], reader: Reader, asked: list[str], began: float
) -> Moment:
    """All guests now; those that are asked are asked after the pause."""
    with paused(list(pids)):
        seconds = time.monotonic() - began
        reading = reader.read(lambda _bytes: None)
        pages = {
            name: placed(pid, areas[name], counted.hashes)
            for (name, pid), counted in zip(pids.items(), reading.counted, strict=True)
        }
    return Moment(seconds, pages, {name: ask(name) for name in asked}, reading.known["zero"])


def compare(before: Moment, after: Moment) -> None:
    """Print what changed from one moment to the other."""
    print(f"from {before.seconds:.0f} to {after.seconds:.0f} s: changed pages, of whose new content")
    for name, now in after.pages.items():
        then = before.pages[name]
        changed = (now != then) & (now != 0)
        new = now[changed]
        zero = new == np.uint64(after.zero_hash)
        here = np.isin(new, then[then != 0]) & ~zero
        others = np.concatenate([pages for other, pages in after.pages.items() if other != name] or [new[:0]])
        elsewhere = np.isin(new, others) & ~zero & ~here
        copies = dict(zip(*np.unique(now, return_counts=True), strict=True))
        twice = sum(copies[content] > 1 for content in new[here])
        print(
            f"  {name}: {len(new)} changed; zero {zero.sum()}, stood in this guest before {here.sum()} "
            f"({twice} of them stand in it twice or more now), only in another {elsewhere.sum()}, "
            f"nowhere else {(~(zero | here | elsewhere)).sum()}"
        )
        if name in before.told:
            _frames(before.told[name], after.told[name], np.flatnonzero(changed), here)


def _frames(before: Told, after: Told, changed: npt.NDArray[np.int64], here: npt.NDArray[np.bool_]) -> None:
    for label, places in (("stood here before", changed[here]), ("the others", changed[~here])):
        kinds = Counter(
            (before.classes[place], after.classes[place]) for place in places if place < len(after.classes)
        )
        print(f"    frames, {label}: ", end="")
        print(", ".join(f"{was} -> {now} {number}" for (was, now), number in kinds.most_common(8)) or "none")
    rose = {key: value - before.vmstat.get(key, 0) for key, value in after.vmstat.items()}
    told = [f"{key} {rose[key]:+d}" for key in sorted(rose) if rose[key] and key.startswith(TELLING)]
    print(f"    vmstat: {', '.join(told)}")


def main() -> None:
    """Look so many times, so many seconds apart."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("times", type=int)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--ask", nargs="*", default=[], metavar="GUEST")
    arguments = parser.parse_args()
    pids = guests()
    areas = {name: memory_of(pid) for name, pid in pids.items()}
    layouts = [Layout((area,), 0) for area in areas.values()]
    began = time.monotonic()
    with Reader(list(pids.values()), layouts, processes=2, close=None) as reader:
        before = look(pids, areas, reader, arguments.ask, began)
        for number in range(1, arguments.times):
            time.sleep(max(0.0, began + number * arguments.seconds - time.monotonic()))
            after = look(pids, areas, reader, arguments.ask, began)
            compare(before, after)
            before = after


if __name__ == "__main__":
    main()

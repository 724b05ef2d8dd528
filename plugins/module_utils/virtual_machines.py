"""The virtual machines of a host, each a QEMU process, libvirt's or not; read only, standard library only.

What a machine is comes from its command line, what its memory is from the kernel: /proc/PID/smaps tells of
every mapping what KSM may do with it. Sources: Documentation/filesystems/proc.rst (smaps, VmFlags),
Documentation/admin-guide/mm/ksm.rst; mm/ksm.c, ksm_madvise (what is shared, hugetlbfs or a device's is never
marked), write_protect_page (a pinned page is never merged).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ansible.module_utils.ksm_probe import (
    KIB,
    Roots,
    parse_ksm_stat,
    parse_stat,
    pids,
    read_optional,
    understood,
)

# Names of QEMU's programs: its own, Red Hat's, and Debian's and Proxmox' short one
PROGRAM = re.compile(r"qemu-system-.+|qemu-kvm|kvm")
KVM_FILE = "anon_inode:kvm-vm"
DEVICE_FILES = "/dev/vfio/"
MIB = 1 << 20
# QEMU's own where -m says nothing (hw/core/machine.c)
DEFAULT_MEMORY_BYTES = 128 * MIB
UNITS = {"": MIB, "B": 1, "K": KIB, "M": MIB, "G": 1 << 30, "T": 1 << 40}

MERGEABLE, HUGETLBFS, SHARED, UNMARKED = "mergeable", "hugetlbfs", "shared", "unmarked"
# A mapping is of the first kind whose flag it has (VmFlags); registers of devices are no memory.
KINDS = (("mg", MERGEABLE), ("ht", HUGETLBFS), ("sh", SHARED))
HUGETLB = ("Private_Hugetlb", "Shared_Hugetlb")
FIELDS = frozenset({"Size", "Rss", "Pss", "Anonymous", *HUGETLB, "Swap", "VmFlags"})
NOTHING = "0 kB"
NO_MEMORY = frozenset({"io", "pf"})


@dataclass(frozen=True)
class Mapping:
    """One mapping of a process in bytes; ``flags`` is None where the kernel shows none."""

    path: str
    size_bytes: int
    rss_bytes: int
    pss_bytes: int
    anonymous_bytes: int
    hugetlb_bytes: int
    swap_bytes: int
    flags: frozenset[str] | None

    @property
    def kind(self) -> str:
        """What KSM may do with it: MERGEABLE, or why nothing."""
        flags = self.flags or frozenset()
        return next((kind for flag, kind in KINDS if flag in flags), UNMARKED)

    @property
    def resident_bytes(self) -> int:
        """Resident memory; huge pages of hugetlbfs are in no Rss."""
        return self.rss_bytes + self.hugetlb_bytes


def mappings(smaps: str) -> list[Mapping]:
    """The mappings of one /proc/PID/smaps; ProbeError where it is not as the kernel writes it.

    A machine has some 460 mappings of 25 lines, and a host many machines: what is not asked for is passed by.
    """
    blocks: list[tuple[str, dict[str, str]]] = []
    fields: dict[str, str] = {}
    with understood("a process' smaps"):
        for line in smaps.splitlines():
            name, _, value = line.partition(":")
            if name in FIELDS:
                fields[name] = value
            elif " " in name:
                # The header of a mapping, which has the device's colon in it
                fields = {}
                blocks.append((line, fields))
        return [_mapping(header, fields) for header, fields in blocks]


def _mapping(header: str, fields: dict[str, str]) -> Mapping:
    words = header.split(maxsplit=5)
    return Mapping(
        path=words[5] if len(words) > 5 else "",
        size_bytes=_bytes(fields["Size"]),
        rss_bytes=_bytes(fields["Rss"]),
        pss_bytes=_bytes(fields["Pss"]),
        anonymous_bytes=_bytes(fields["Anonymous"]),
        hugetlb_bytes=sum(_bytes(fields.get(name, NOTHING)) for name in HUGETLB),
        swap_bytes=_bytes(fields.get("Swap", NOTHING)),
        flags=frozenset(fields["VmFlags"].split()) if "VmFlags" in fields else None,
    )


def _bytes(value: str) -> int:
    """A value of smaps, such as "    124 kB"."""
    return int(value.removesuffix(" kB")) * int(KIB)


def find(roots: Roots) -> Iterator[tuple[int, list[str]]]:
    """Process and command line of each QEMU process that runs a machine, ascending."""
    for pid in pids(roots):
        words = (read_optional(roots.proc / str(pid) / "cmdline") or "").rstrip("\0").split("\0")
        # `qemu-system-x86_64 --version` has no memory, and is gone at once.
        if PROGRAM.fullmatch(Path(words[0]).name) and not {"--version", "-version", "--help"} & set(words):
            yield pid, words


def read(pid: int, words: list[str], roots: Roots) -> dict[str, Any] | None:
    """What a machine is and uses, as in analysis/records/survey.py; None where it has ended meanwhile.

    ProbeError where its process may not be read.
    """
    folder = roots.proc / str(pid)
    texts = {name: read_optional(folder / name) for name in ("smaps", "stat", "status")}
    if not all(texts.values()):
        return None
    maps = mappings(str(texts["smaps"]))
    page_tables = re.search(r"^VmPTE:\s+(\d+) kB$", str(texts["status"]), re.MULTILINE)
    files = opened(folder / "fd")
    memory_bytes = memory_of(words)
    kind, why, guest_maps = judge(maps, memory_bytes, words, files)
    ksm_stat, merging_pages = merged_now(folder)
    return {
        "pid": pid,
        "name": name_of(words),
        "libvirt": is_domain(name_of(words), pid, roots),
        "accelerator": None if files is None else "kvm" if KVM_FILE in files else "tcg",
        "memory_bytes": memory_bytes,
        "resident_bytes": sum(one.resident_bytes for one in guest_maps),
        "rss_bytes": sum(one.rss_bytes for one in maps),
        "pss_bytes": sum(one.pss_bytes for one in maps),
        "anonymous_bytes": sum(one.anonymous_bytes for one in maps),
        "swap_bytes": sum(one.swap_bytes for one in maps),
        "page_tables_bytes": int(page_tables[1]) * KIB if page_tables else 0,
        "mergeable_bytes": sum(one.size_bytes for one in maps if one.kind == MERGEABLE),
        "memory_kind": kind,
        "why_not_mergeable": why,
        "merging_pages": merging_pages,
        "ksm_stat": ksm_stat,
        "cpu_seconds": parse_stat(str(texts["stat"])).cpu_seconds,
    }


def judge(
    maps: list[Mapping], memory_bytes: int, words: list[str], files: set[str] | None
) -> tuple[str, str, list[Mapping]]:
    """Of what kind a guest's memory is, why KSM can't merge it ("" where it can), and its mappings.

    It is of the kind that has at least half of its size: devices' memory is marked for KSM too, also where
    the guest's is not.
    """
    memory = [one for one in maps if not NO_MEMORY & (one.flags or frozenset())]
    for kind in (MERGEABLE, HUGETLBFS, SHARED):
        mine = [one for one in memory if one.kind == kind]
        if 2 * sum(one.size_bytes for one in mine) >= memory_bytes:
            return kind, _why(kind, mine, files), mine
    # A guest's memory is one mapping, or one for each of its nodes; the rest of QEMU's own is smaller.
    private = [one for one in memory if one.kind == UNMARKED]
    mine = sorted(private, key=lambda one: -one.size_bytes)[:1]
    if all(one.flags is None for one in maps):
        return "unknown", "this kernel shows no VmFlags in /proc/PID/smaps (CONFIG_PROC_FS, 3.8)", mine
    line = " ".join(words)
    if re.search(r'mem-merge=off|\bmerge=(off|false)|"merge": ?false', line):
        return UNMARKED, "QEMU was told not to offer it (mem-merge=off, nosharepages)", mine
    return UNMARKED, "QEMU did not offer it: no mapping of its size has the VmFlag mg", mine


def _why(kind: str, mine: list[Mapping], files: set[str] | None) -> str:
    if kind == HUGETLBFS:
        return "its pages are of hugetlbfs, which KSM never merges"
    if kind == SHARED:
        path = max(mine, key=lambda one: one.size_bytes).path.removesuffix(" (deleted)")
        return f"it is a shared mapping ({path or 'anonymous'}), which KSM never merges"
    if any(file.startswith(DEVICE_FILES) for file in files or ()):
        return "its pages are pinned for a device that was passed to it (vfio), and KSM merges no pinned page"
    return ""


def merged_now(folder: Path) -> tuple[dict[str, int | str] | None, int | None]:
    """A process' ksm_stat, and its pages that KSM has merged, shared and sharing alike; None: not told."""
    text = read_optional(folder / "ksm_stat")
    stat = None if text is None else parse_ksm_stat(text)
    # Younger kernels have the number in ksm_stat, too; 6.1 has a file for it alone.
    number = (stat or {}).get("ksm_merging_pages", read_optional(folder / "ksm_merging_pages"))
    return stat, None if number is None else int(number)


def opened(folder: Path) -> set[str] | None:
    """What the files are that a process has open; None where that may not be read."""
    try:
        links = list(folder.iterdir())
    except OSError:
        return None
    files = set()
    for link in links:
        try:
            files.add(str(link.readlink()))
        except OSError:
            continue  # closed meanwhile
    return files


def argument(words: list[str], option: str) -> str | None:
    """The last value of an option of QEMU's, with one hyphen or two; None where it is not given."""
    values = [value for word, value in pairwise(words) if word in (f"-{option}", f"--{option}")]
    return values[-1] if values else None


def name_of(words: list[str]) -> str:
    """The name of a machine on its command line, "" where it has none; QEMU doubles commas in values."""
    parts = re.split(r"(?<!,),(?!,)", argument(words, "name") or "")
    names = [part.removeprefix("guest=") for part in parts if part.startswith("guest=") or "=" not in part]
    return names[0].replace(",,", ",") if names else ""


def memory_of(words: list[str]) -> int:
    """The memory of a machine at its start, by -m: 512, 4G, size=4194304k,slots=2."""
    given = (argument(words, "m") or "").split(",")[0].removeprefix("size=")
    number = re.fullmatch(r"([0-9.]+)([BKMGT]?)B?", given, re.IGNORECASE)
    return round(float(number[1]) * UNITS[number[2].upper()]) if number else DEFAULT_MEMORY_BYTES


def is_domain(name: str, pid: int, roots: Roots) -> bool:
    """Whether it is a running domain of the system's libvirt."""
    folder = roots.run / "libvirt/qemu"
    path = folder / f"{name}.pid"
    return path.parent == folder and (read_optional(path) or "").strip() == str(pid)

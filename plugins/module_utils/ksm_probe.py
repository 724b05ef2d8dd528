"""Readings of a KSM host from /proc and /sys, as raw integers with the unit in the name.

They change nothing; only drop_caches does, for what is read after it.

Files are probed for, never kernel versions: a required file that is missing is a ProbeError that names it, an
optional one is None. Sources: Documentation/admin-guide/mm/ksm.rst, Documentation/filesystems/proc.rst.
"""

from __future__ import annotations

import math
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

KSM_REQUIRED = ("run", "full_scans", "pages_shared", "pages_sharing")
KSM_OPTIONAL = (
    "pages_scanned",
    "pages_unshared",
    "pages_volatile",
    "pages_skipped",
    "ksm_zero_pages",
    "general_profit",
    "stable_node_chains",
    "stable_node_dups",
)
KHUGEPAGED_COUNTERS = ("full_scans", "pages_collapsed")
CPU_FIELDS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice")
CLOCK_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
KTHREADD_PID = 2
KIB = 1024
# The testbed's guests are domains whose names begin so.
OWN_PREFIX = "ksm-testbed-"
# Programs that set KSM's knobs, or what processes offer it, by themselves: qemu's, oVirt's, CachyOS', and
# this testbed's own
TUNERS = ("ksmtuned", "momd", "uksmd", "ksm-pacer")
COMM_CHARACTERS = 15  # the kernel keeps no more of a command's name
NAMED_OTHERS = 5


class ProbeError(Exception):
    """Something that a measurement needs cannot be read; the message is one sentence for the user."""


@dataclass(frozen=True)
class Roots:
    """Where the kernel's trees are; other than the defaults only for recorded trees."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    run: Path = Path("/run")

    @property
    def ksm(self) -> Path:
        """The folder of KSM's knobs and counters."""
        return self.sys / "kernel/mm/ksm"


def read_required(path: Path) -> str:
    """The text of a file without which there is no measurement; ProbeError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise ProbeError(f"{path} is missing; a measurement needs it") from None
    except PermissionError:
        raise ProbeError(f"{path} cannot be read; measuring needs root (become: true)") from None
    except OSError as error:
        raise ProbeError(f"{path} cannot be read: {error.strerror}") from None


def read_optional(path: Path) -> str | None:
    """The text of a file that not every kernel has; None where it is absent or switched off."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except PermissionError:
        raise ProbeError(f"{path} cannot be read; measuring needs root (become: true)") from None
    except OSError:
        return None


def to_int(text: str, path: Path) -> int:
    """An integer as a kernel file shows it; ProbeError naming the file otherwise."""
    try:
        return int(text)
    except ValueError:
        raise ProbeError(f"{path} holds {text.strip()!r}; expected an integer") from None


@contextmanager
def understood(what: object) -> Iterator[None]:
    """ProbeError that names what cannot be read as the kernel writes it."""
    try:
        yield
    except (ValueError, IndexError, KeyError, OverflowError):
        raise ProbeError(f"{what} is not as the kernel writes it") from None


def finite(text: str) -> float:
    """A number that is one; ValueError otherwise."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def parse_kib_table(text: str, path: Path) -> dict[str, int]:
    """Lines `Name:  123 kB` as {Name_bytes: 125952}; lines without a unit keep their bare name.

    The first line of smaps_rollup, a range of addresses, is none of them: no name has a blank.
    """
    table: dict[str, int] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if not colon or " " in name:
            continue
        amount, _, unit = value.strip().partition(" ")
        if unit.strip() == "kB":
            table[f"{name}_bytes"] = to_int(amount, path) * KIB
        else:
            table[name] = to_int(amount, path)
    return table


def require(table: dict[str, int], names: Iterable[str], path: Path) -> None:
    """ProbeError that names the first of names that a table read from path lacks."""
    for name in names:
        if name not in table:
            raise ProbeError(f"{path} has no {name.removesuffix('_bytes')}; a measurement needs it")


def meminfo(roots: Roots) -> dict[str, int]:
    """Every line of /proc/meminfo, bytes."""
    path = roots.proc / "meminfo"
    table = parse_kib_table(read_required(path), path)
    require(table, ("MemTotal_bytes", "MemAvailable_bytes", "MemFree_bytes", "SwapTotal_bytes"), path)
    return table


def vmstat(roots: Roots) -> dict[str, int]:
    """Every line of /proc/vmstat, in the kernel's own units (pages or events)."""
    path = roots.proc / "vmstat"
    table = {}
    for line in read_required(path).splitlines():
        name, _, value = line.partition(" ")
        table[name] = to_int(value, path)
    require(table, ("pswpin", "pswpout"), path)
    return table


def ksm_counters(roots: Roots) -> dict[str, int | None]:
    """KSM's counters and `run`; None for a counter that this kernel has not."""
    if not roots.ksm.is_dir():
        raise ProbeError(f"{roots.ksm} is missing; this kernel is built without KSM (CONFIG_KSM)")
    counters: dict[str, int | None] = {
        name: to_int(read_required(roots.ksm / name), roots.ksm / name) for name in KSM_REQUIRED
    }
    for name in KSM_OPTIONAL:
        text = read_optional(roots.ksm / name)
        counters[name] = None if text is None else to_int(text, roots.ksm / name)
    return counters


def selected(text: str) -> str:
    """The chosen word of `always [madvise] never`; a text without brackets as it is."""
    choice = re.search(r"\[([^\]]+)\]", text)
    return choice.group(1) if choice else text.strip()


def knob_files(roots: Roots) -> list[Path]:
    """The file of each knob of KSM, none on a kernel without it; `run` and the counters are not knobs."""
    if not roots.ksm.is_dir():
        return []
    counters = {*KSM_REQUIRED, *KSM_OPTIONAL}
    return [
        path
        for path in sorted(roots.ksm.iterdir())
        if path.stat().st_mode & 0o222 and path.name not in counters
    ]


def ksm_knobs(roots: Roots) -> dict[str, str | int]:
    """Every knob of KSM as read back."""
    knobs: dict[str, str | int] = {}
    for path in knob_files(roots):
        value = selected(read_required(path))
        knobs[path.name] = int(value) if re.fullmatch(r"-?\d+", value) else value
    return knobs


def thp_settings(roots: Roots) -> dict[str, str]:
    """Every setting of transparent huge pages, a subfolder's with its name as prefix; no counters."""
    folder = roots.sys / "kernel/mm/transparent_hugepage"
    settings = {}
    patterns = ("*", "khugepaged/*", "hugepages-*/enabled")
    for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
        if not path.is_file() or path.name in KHUGEPAGED_COUNTERS:
            continue
        text = read_optional(path)
        if text is not None:
            settings["_".join(path.relative_to(folder).parts)] = selected(text)
    return settings


def pressure(roots: Roots) -> dict[str, dict[str, dict[str, float | int]]] | None:
    """Pressure stall information by resource and kind; None on a kernel without it or with psi=0."""
    resources = {}
    for resource in ("cpu", "memory", "io"):
        text = read_optional(roots.proc / "pressure" / resource)
        if text is None:
            return None
        resources[resource] = parse_pressure(text)
    return resources


def parse_pressure(text: str) -> dict[str, dict[str, float | int]]:
    """One file of pressure stall information, the host's or a cgroup's, by kind (some, full)."""
    kinds: dict[str, dict[str, float | int]] = {}
    with understood("a file of pressure stall information"):
        for line in text.splitlines():
            kind, *pairs = line.split()
            fields = dict(pair.split("=", 1) for pair in pairs)
            kinds[kind] = {name: finite(fields[name]) for name in ("avg10", "avg60", "avg300")}
            kinds[kind]["total_microseconds"] = int(fields["total"])
    return kinds


def host_cpu_seconds(roots: Roots) -> dict[str, float]:
    """The host's CPU time by kind since boot, all CPUs together."""
    path = roots.proc / "stat"
    text = read_required(path)
    with understood(path):
        first = text.splitlines()[0].split()
        return {
            name: int(ticks) / CLOCK_TICKS_PER_SECOND
            for name, ticks in zip(CPU_FIELDS, first[1:], strict=False)
        }


class ProcessStat(NamedTuple):
    """The fields of /proc/PID/stat that measurements use."""

    command: str
    parent_pid: int
    minor_faults: int
    major_faults: int
    cpu_seconds: float


def parse_stat(text: str) -> ProcessStat:
    """One /proc/PID/stat; the command may hold blanks and brackets, so fields count from its last bracket."""
    with understood("a process' stat"):
        command = text[text.index("(") + 1 : text.rindex(")")]
        fields = text[text.rindex(")") + 2 :].split()
        return ProcessStat(
            command=command,
            parent_pid=int(fields[1]),
            minor_faults=int(fields[7]),
            major_faults=int(fields[9]),
            cpu_seconds=(int(fields[11]) + int(fields[12])) / CLOCK_TICKS_PER_SECOND,
        )


def pids(roots: Roots) -> Iterator[int]:
    """The processes of the host, ascending."""
    return iter(sorted(int(path.name) for path in roots.proc.iterdir() if path.name.isdigit()))


def find_ksmd(roots: Roots) -> Path:
    """The stat file of the kernel thread ksmd; ProbeError if there is none."""
    for pid in pids(roots):
        path = roots.proc / str(pid) / "stat"
        text = read_optional(path)
        if text and "(ksmd)" in text and parse_stat(text).parent_pid == KTHREADD_PID:
            return path
    raise ProbeError(
        f"the kernel thread ksmd is not in {roots.proc}; measure on the host, not in a container"
    )


def parse_ksm_stat(text: str) -> dict[str, int | str]:
    """One /proc/PID/ksm_stat: counters as int, the flags ksm_merge_any and ksm_mergeable as yes or no."""
    fields: dict[str, int | str] = {}
    with understood("a process' ksm_stat"):
        for line in text.splitlines():
            name, value = line.split(maxsplit=1)
            value = value.strip()
            fields[name.rstrip(":")] = int(value) if re.fullmatch(r"-?[0-9]+", value) else value
    return fields


class Mergeable(NamedTuple):
    """Memory of a process that is marked for KSM (VmFlags mg: private, neither memfd nor hugetlbfs), bytes.

    address_space: of the mappings. resident: what is mapped of it; Rss counts a merged page as any other.
    """

    address_space: int
    resident: int


def mergeable(smaps: str) -> Mergeable:
    """What a process offers to KSM, from its smaps."""
    total = resident = size = rss = 0
    with understood("a process' smaps"):
        for line in smaps.splitlines():
            if line.startswith("Size:"):
                size, rss = int(line.split()[1]) * KIB, 0
            elif line.startswith("Rss:"):
                rss = int(line.split()[1]) * KIB
            elif line.startswith("VmFlags:") and "mg" in line.split():
                total += size
                resident += rss
    return Mergeable(total, resident)


def domain_pid(domain: str, roots: Roots) -> int:
    """The QEMU process of a libvirt domain, checked to be that domain's; ProbeError naming the domain."""
    path = roots.run / "libvirt/qemu" / f"{domain}.pid"
    if path.parent != roots.run / "libvirt/qemu":
        raise ProbeError(f"domain {domain!r} is not running: no domain can have that name")
    text = read_optional(path)
    if text is None:
        raise ProbeError(f"domain {domain} is not running: {path} is missing")
    pid = to_int(text, path)
    command_line = read_optional(roots.proc / str(pid) / "cmdline")
    if not command_line:
        raise ProbeError(f"domain {domain} is not running: its process {pid} is gone")
    if not any(argument.split(",")[0] == f"guest={domain}" for argument in command_line.split("\0")):
        raise ProbeError(f"domain {domain} is not running: process {pid} of {path} is another program")
    return pid


def guest(domain: str, pid: int, roots: Roots) -> dict[str, Any]:
    """What a QEMU process uses; ProbeError naming the domain if it ends meanwhile."""
    folder = roots.proc / str(pid)
    rollup_path = folder / "smaps_rollup"
    try:
        stat = parse_stat((folder / "stat").read_text(encoding="utf-8", errors="replace"))
        rollup = parse_kib_table(rollup_path.read_text(encoding="utf-8"), rollup_path)
        status = (folder / "status").read_text(encoding="utf-8", errors="replace")
        smaps = (folder / "smaps").read_text(encoding="utf-8", errors="replace")
    except PermissionError as error:
        raise ProbeError(f"{error.filename} cannot be read; measuring needs root (become: true)") from None
    except (FileNotFoundError, ProcessLookupError) as error:
        if (folder / "stat").exists():
            raise ProbeError(f"{error.filename} is missing; measuring domain {domain} needs it") from None
        raise ProbeError(f"domain {domain} ended while it was measured (process {pid})") from None
    require(rollup, ("Rss_bytes", "Pss_bytes"), rollup_path)
    page_tables = re.search(r"^VmPTE:\s+(\d+) kB$", status, re.MULTILINE)
    if page_tables is None:
        raise ProbeError(f"{folder / 'status'} has no VmPTE; measuring domain {domain} needs it")
    ksm_stat = read_optional(folder / "ksm_stat")
    offered = mergeable(smaps)
    return {
        "pid": pid,
        "cpu_seconds": stat.cpu_seconds,
        "smaps_rollup": rollup,
        "page_tables_bytes": int(page_tables.group(1)) * KIB,
        "mergeable_bytes": offered.address_space,
        "mergeable_resident_bytes": offered.resident,
        "ksm_stat": None if ksm_stat is None else parse_ksm_stat(ksm_stat),
        "minor_faults": stat.minor_faults,
        "major_faults": stat.major_faults,
    }


def per_cpu_free_pages(roots: Roots) -> int | None:
    """Free pages on the per-CPU lists of all zones, which no line of meminfo counts; None if not told."""
    text = read_optional(roots.proc / "zoneinfo")
    if text is None:
        return None
    return sum(int(count) for count in re.findall(r"^\s+count:\s+(\d+)$", text, re.MULTILINE))


def is_guest(command_line: str, prefix: str = OWN_PREFIX) -> bool:
    """Whether this is the QEMU process of a domain whose name begins so, as libvirt starts it."""
    return any(argument.startswith(f"guest={prefix}") for argument in command_line.split("\0"))


def own_pids(roots: Roots) -> set[int]:
    """The processes of all guests of this testbed."""
    return {pid for pid in pids(roots) if is_guest(read_optional(roots.proc / str(pid) / "cmdline") or "")}


def other_mergeable(guest_pids: Iterable[int], roots: Roots) -> list[dict[str, Any]]:
    """Processes other than these whose memory KSM could merge, or has merged; most memory first.

    Each with pid, command, mergeable_bytes (address space marked for KSM), merging_pages (shared and sharing
    alike) and zero_pages. Where ksm_stat says of a process that it offers nothing, that is all that is read
    of it. Kernels whose ksm_stat has no such flags (6.1 and 6.12 have none) are asked for the flags of each
    mapping. ProbeError where they may not be read.
    """
    ours = set(guest_pids)
    found = [_offer(pid, roots.proc / str(pid)) for pid in pids(roots) if pid not in ours]
    return sorted(filter(None, found), key=lambda other: -other["mergeable_bytes"])


def _offer(pid: int, folder: Path) -> dict[str, Any] | None:
    """What a process offers to KSM, None where that is nothing; a kernel thread's files are empty."""
    fields = parse_ksm_stat(read_optional(folder / "ksm_stat") or "")
    # The count has a file of its own, too, since before ksm_stat had it.
    merging_pages = int(fields.get("ksm_merging_pages", read_optional(folder / "ksm_merging_pages") or 0))
    zero_pages = int(fields.get("ksm_zero_pages", 0))
    flags = [fields[name] for name in ("ksm_mergeable", "ksm_merge_any") if name in fields]
    holds = merging_pages > 0 or zero_pages > 0 or "yes" in flags
    if flags and not holds:
        return None
    command = (read_optional(folder / "comm") or "").strip()
    try:
        offered_bytes = mergeable(read_optional(folder / "smaps") or "").address_space
    except ProbeError as error:
        raise ProbeError(
            f"whether process {pid} ({command}) offers memory to KSM is not known: {error}; root needs "
            "CAP_SYS_PTRACE for it"
        ) from None
    if not offered_bytes and not holds:
        return None
    return {
        "pid": pid,
        "command": command,
        "mergeable_bytes": offered_bytes,
        "merging_pages": merging_pages,
        "zero_pages": zero_pages,
    }


def others_words(others: list[dict[str, Any]], roots: Roots) -> str:
    """Processes with their sizes, for a person: those that offer most by name, and how many more."""
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    words = []
    for other in others[:NAMED_OTHERS]:
        line = read_optional(roots.proc / str(other["pid"]) / "cmdline") or other["command"]
        merged = (other["merging_pages"] + other["zero_pages"]) * page_bytes
        words.append(
            f"{other['pid']} ({' '.join(line.replace(chr(0), ' ').split())[:70]}) "
            f"{other['mergeable_bytes'] >> 20} MiB, {merged >> 20} MiB of it merged"
        )
    rest = others[NAMED_OTHERS:]
    more = sum(other["mergeable_bytes"] for other in rest) >> 20
    return "; ".join([*words, f"and {len(rest)} more with {more} MiB"] if rest else words)


def tuners(roots: Roots, names: Iterable[str] = TUNERS) -> list[str]:
    """Which of these programs run, by the commands' names, each once."""
    known = {name[:COMM_CHARACTERS]: name for name in names}
    commands = {(read_optional(roots.proc / str(pid) / "comm") or "").strip() for pid in pids(roots)}
    return sorted(known[command] for command in commands & known.keys())


def observe(domains: dict[str, str], roots: Roots) -> dict[str, Any]:
    """The host and each guest at this moment.

    Args:
        domains: guest name to libvirt domain name; may be empty.
        roots: the kernel's trees.

    Returns:
        host, guests, other_mergeable and tuners of a record's `observed`. Where no domain is named, the
        guests of this testbed are no others either.

    Raises:
        ProbeError: a required counter is missing, or a domain is not running.
    """
    guest_pids = {name: domain_pid(domain, roots) for name, domain in domains.items()}
    host = {
        "meminfo": meminfo(roots),
        "vmstat": vmstat(roots),
        "ksm": ksm_counters(roots),
        "ksmd_cpu_seconds": parse_stat(read_required(find_ksmd(roots))).cpu_seconds,
        "cpu_seconds": host_cpu_seconds(roots),
        "psi": pressure(roots),
        "per_cpu_free_pages": per_cpu_free_pages(roots),
    }
    guests = {name: guest(domains[name], pid, roots) for name, pid in guest_pids.items()}
    return {
        "host": host,
        "guests": guests,
        "other_mergeable": other_mergeable(guest_pids.values() if domains else own_pids(roots), roots),
        "tuners": tuners(roots),
    }


def drop_caches(roots: Roots) -> None:
    """Drop clean page cache, dentries and inodes (Documentation/admin-guide/sysctl/vm.rst); or ProbeError."""
    path = roots.proc / "sys/vm/drop_caches"
    try:
        path.write_text("3\n", encoding="ascii")
    except OSError as error:
        raise ProbeError(f"{path} refused 3: {error.strerror}") from None


def qemu_version() -> str | None:
    """QEMU's version as it names itself; None where it is not installed."""
    try:
        answer = subprocess.run(
            ["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    version = re.search(r"version (.+)", answer.stdout)
    return version.group(1) if version else None


def libvirt_version() -> str | None:
    """The version of libvirt's library; None where its Python bindings are not installed."""
    try:
        import libvirt  # noqa: PLC0415 -- optional: Debian's python3-libvirt
    except ImportError:
        return None
    number = int(libvirt.getVersion())
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def provenance(roots: Roots) -> dict[str, Any]:
    """What the host is: kernel, CPU, distribution, QEMU, libvirt, and the settings that change a saving."""
    cpuinfo = read_required(roots.proc / "cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    memory = meminfo(roots)
    return {
        "kernel_release": read_required(roots.proc / "sys/kernel/osrelease").strip(),
        "architecture": platform.machine(),
        "cpu_model": model.group(1).strip() if model else None,
        "cpu_count": len(re.findall(r"^processor\s*:", cpuinfo, re.MULTILINE)),
        "page_size_bytes": os.sysconf("SC_PAGE_SIZE"),
        "memory_total_bytes": memory["MemTotal_bytes"],
        "os_release": platform.freedesktop_os_release()["PRETTY_NAME"],
        "qemu_version": qemu_version(),
        "libvirt_version": libvirt_version(),
        "thp": thp_settings(roots),
        "ksm_knobs": ksm_knobs(roots),
        "swap_total_bytes": memory["SwapTotal_bytes"],
    }

"""The state of a host as far as the testbed may change it, and what differs from an earlier one.

Standard library only. Everything is read from files, nothing is asked of a daemon, so that reading starts
none; the whole tree below ``root`` may be a recorded one.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ansible.module_utils.ksm_probe import OWN_PREFIX, selected

SCHEMA_VERSION = 1
DIRECTORY = "/var/lib/ksm-testbed"
# Names below /run that the testbed's modules and actions give their files
RUN_FILES = ("ksm-testbed*", "measure_series-*.progress")
# Whoever reads has the lease and gives it back afterwards, so it is no part of what is read.
LEASE = "/run/ksm-testbed-lease"
CGROUPS = ("ksmtestbed.partition", "machine-ksmtestbed.slice")
# libvirt's own folder of the guests' cgroups, which it keeps
MACHINE = "machine"
DAEMONS = frozenset({"libvirtd", "virtlogd", "virtlockd", "virtqemud"})
TUNERS = frozenset({"ksmtuned", "tuned"})
MERGED_COUNTERS = ("pages_shared", "pages_sharing", "ksm_zero_pages")
LISTENING, UNCONNECTED = "0A", "07"
# The state before the first change, beside the KSM snapshot
RECORD = "host-state.json"
CATEGORIES = (
    "settings",
    "processes",
    "domains",
    "files",
    "mounts",
    "cgroups",
    "sockets",
    "devices",
    "packages",
    "users",
)


# Categories whose values are compared too, and those whose names are paths
COMPARED = ("processes", "domains", "devices", "files")
PATHS = ("files", "mounts")
WORDS = {
    "domains": "domain ",
    "mounts": "mount ",
    "cgroups": "cgroup ",
    "packages": "package ",
}
AT_WORK = " at work on the testbed's files"


class Difference(NamedTuple):
    """One thing that is not as it was.

    ``kind``: "left" for what the testbed left or a setting that was not restored, "stays" for what stays by
    design, "other" for what somebody else changed. ``text`` names it.
    """

    kind: str
    text: str


@dataclass(frozen=True)
class Process:
    """One process, by what it is; ``sockets``: the inodes of those it has open."""

    label: str
    sockets: frozenset[str]


def read_state(
    root: Path = Path("/"), directory: str = DIRECTORY, prefix: str = OWN_PREFIX
) -> dict[str, Any]:
    """Read the state of a host.

    Args:
        root: the file system, for tests a recorded one.
        directory: the testbed's folder below it, as an absolute path.
        prefix: what the names of the testbed's domains begin with.

    Returns: plain data: boot_id, merged_pages, and for each of CATEGORIES name -> value; a file's value is
        its mode and owner, a socket's the process that has it, empty where that is not known.

    Raises: OSError, ValueError where /proc or /sys can't be read.
    """
    processes = list(_processes(root, directory))
    labels: dict[str, int] = {}
    for process in processes:
        if process.label:
            labels[process.label] = labels.get(process.label, 0) + 1
    settings, merged = _settings(root / "sys/kernel/mm")
    return {
        "schema_version": SCHEMA_VERSION,
        "boot_id": (root / "proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip(),
        "merged_pages": merged,
        "settings": settings,
        "processes": labels,
        "domains": _domains(root),
        "files": _files(root, directory, prefix),
        "mounts": _mounts(root),
        "cgroups": dict.fromkeys(_cgroups(root), ""),
        "sockets": _sockets(root, processes),
        "devices": _named(root, [root / "dev/kvm"]),
        "packages": dict.fromkeys(_packages(root), ""),
        "users": dict.fromkeys(_users(root), ""),
    }


def _settings(mm: Path) -> tuple[dict[str, str], int]:
    """Every writable file of KSM and THP by its path, the selected word of several; merged pages."""
    found = {}
    for folder in ("ksm", "transparent_hugepage"):
        for path in sorted((mm / folder).rglob("*")):
            mode = path.stat().st_mode
            if stat.S_ISREG(mode) and mode & stat.S_IRUSR and mode & stat.S_IWUSR:
                found[str(path.relative_to(mm))] = selected(path.read_text(encoding="ascii"))
    if found.get("ksm/advisor_mode", "none") != "none":
        found.pop("ksm/pages_to_scan", None)  # the kernel's own then, from moment to moment
    counters = [mm / "ksm" / name for name in MERGED_COUNTERS]
    return found, sum(int(path.read_text(encoding="ascii")) for path in counters if path.exists())


def _processes(root: Path, directory: str) -> Iterator[Process]:
    """Every process that can be read, with a label where it is of a kind that the testbed may change."""
    proc = root / "proc"
    mine = _ancestors(proc, os.getpid())
    for folder in proc.iterdir():
        if not folder.name.isdecimal() or int(folder.name) in mine:
            continue
        try:
            name = (folder / "comm").read_text(encoding="utf-8", errors="replace").strip()
            line = (folder / "cmdline").read_bytes().decode(errors="replace")
            opened = _opened(folder / "fd")
        except OSError:
            continue  # it ended meanwhile
        guest = re.search(r"guest=([^,\0]+)", line)
        sockets = frozenset(word[8:-1] for word in opened if word.startswith("socket:["))
        if name.startswith("qemu-system") and guest:
            yield Process(f"QEMU of {guest[1]}", sockets)
        elif name in DAEMONS or name in TUNERS:
            yield Process(name, sockets)
        elif _is_at_work([*_words(name, line.replace(LEASE, "")), *opened], directory):
            yield Process(f"{name}{AT_WORK}", sockets)
        else:
            yield Process("", sockets)


def _words(name: str, line: str) -> list[str]:
    """A process' arguments; of ssh without the command, which is about the files of another host."""
    words = line.rstrip("\0").split("\0")
    return words[:-1] if name == "ssh" else words


def _is_at_work(words: Iterable[str], directory: str) -> bool:
    """Tell whether a process' arguments or open files name the testbed's."""
    return any(
        (f"{directory}/" in word or "/run/ksm-testbed" in word) and not word.startswith(LEASE)
        for word in words
    )


def _ancestors(proc: Path, pid: int) -> set[int]:
    """A process and those that started it: what reads the state is no part of it."""
    found: set[int] = set()
    while pid and pid not in found:
        found.add(pid)
        try:
            text = (proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            break
        pid = int(text.rpartition(")")[2].split()[1])
    return found


def _opened(folder: Path) -> list[str]:
    words = []
    try:
        for link in folder.iterdir():
            try:
                words.append(str(link.readlink()))
            except OSError:
                continue  # closed meanwhile
    except OSError:
        pass  # another user's process, where the reader is not root
    return words


def _domains(root: Path) -> dict[str, str]:
    """libvirt's domains, from its files."""
    found = {path.stem: "defined" for path in (root / "etc/libvirt/qemu").glob("*.xml")}
    running = {path.stem for path in (root / "run/libvirt/qemu").glob("*.xml")}
    return {**found, **dict.fromkeys(sorted(running), "running")}


def _files(root: Path, directory: str, prefix: str) -> dict[str, str]:
    """The testbed's files, and libvirt's of its guests; of the images their folders alone."""
    top = root / directory.lstrip("/")
    paths = [top, *_sorted(top)]
    for name in ("guests", "checkpoints"):
        if not (top / name).is_symlink():
            paths += sorted((top / name).rglob("*"))
    paths += _sorted(top / "images")
    for pattern in RUN_FILES:
        paths += [path for path in sorted((root / "run").glob(pattern)) if path.name != Path(LEASE).name]
    paths += sorted((root / "run/libvirt/qemu").glob(f"{prefix}*"))
    paths += sorted((root / "var/lib/libvirt/qemu").glob(f"domain-*-{prefix}*"))
    paths += sorted((root / "var/log/libvirt/qemu").glob(f"{prefix}*"))
    return _named(root, paths)


def _sorted(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _named(root: Path, paths: Iterable[Path]) -> dict[str, str]:
    """Path -> mode and owner, of those that exist; the record of the state itself is none of it."""
    found = {}
    for path in paths:
        if path.name.startswith((RECORD, f".{RECORD}")):
            continue
        try:
            seen = path.lstat()
        except OSError:
            continue
        owner = f"{_name(pwd.getpwuid, seen.st_uid)}:{_name(grp.getgrgid, seen.st_gid)}"
        found[f"/{path.relative_to(root)}"] = f"{stat.filemode(seen.st_mode)} {owner}"
    return found


def _name(look_up: Callable[[int], Any], number: int) -> str:
    try:
        return str(look_up(number)[0])
    except KeyError:
        return str(number)


def _mounts(root: Path) -> dict[str, str]:
    lines = (line.split() for line in (root / "proc/mounts").read_text(encoding="utf-8").splitlines())
    return {words[1]: words[2] for words in lines}


def _cgroups(root: Path) -> list[str]:
    """The envelope's folders, and libvirt's own, in every hierarchy; not deeper than they can be."""
    top = root / "sys/fs/cgroup"
    hierarchies = [top, *(path for path in _sorted(top) if path.is_dir())]
    names = (MACHINE, *(f"{above}/{name}" for above in (MACHINE, "machine.slice") for name in CGROUPS))
    return [
        f"/{(hierarchy / name).relative_to(root)}"
        for hierarchy in hierarchies
        for name in names
        if (hierarchy / name).is_dir()
    ]


def _sockets(root: Path, processes: Iterable[Process]) -> dict[str, str]:
    """What waits for others' packets: listening TCP, and UDP without a peer."""
    owners = {inode: process.label for process in processes for inode in process.sockets}
    found = {}
    for protocol, awaited in (("tcp", LISTENING), ("udp", UNCONNECTED)):
        for family in ("", "6"):
            path = root / f"proc/net/{protocol}{family}"
            if not path.exists():
                continue
            for line in path.read_text(encoding="ascii").splitlines()[1:]:
                words = line.split()
                if words[3] == awaited:
                    found[f"{protocol} {address(words[1])}"] = owners.get(words[9], "")
    return found


def address(text: str) -> str:
    """An address of /proc/net, such as 0100007F:56B9, as 127.0.0.1:22201."""
    host, _, port = text.partition(":")
    # Each 32-bit word is printed in the host's own order, little-endian here.
    parts = b"".join(bytes.fromhex(host[at : at + 8])[::-1] for at in range(0, len(host), 8))
    if len(parts) == 4:
        return f"{'.'.join(map(str, parts))}:{int(port, 16)}"
    groups = ":".join(f"{parts[at] << 8 | parts[at + 1]:x}" for at in range(0, 16, 2))
    return f"[{groups}]:{int(port, 16)}"


def _packages(root: Path) -> list[str]:
    """Names of what dpkg has installed."""
    path = root / "var/lib/dpkg/status"
    if not path.exists():
        return []
    found, name = [], ""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("Package: "):
                name = line[9:].strip()
            elif line.startswith("Status: ") and line.split()[-1] == "installed":
                found.append(name)
    return sorted(set(found))


def _users(root: Path) -> list[str]:
    found = []
    for kind, name in (("user", "passwd"), ("group", "group")):
        path = root / "etc" / name
        if path.exists():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            found += [f"{kind} {line.split(':')[0]}" for line in lines if ":" in line]
    return sorted(found)


def traces(state: Mapping[str, Any], directory: str = DIRECTORY, prefix: str = OWN_PREFIX) -> list[str]:
    """What is left of a run, on a host that was not put right: guests, their files, a snapshot, a bound."""
    nothing = {**{category: {} for category in CATEGORIES}, "settings": state["settings"], "merged_pages": 0}
    found = differences(nothing, {**state, "merged_pages": 0}, directory, prefix)
    return [difference.text.removesuffix(" is new") for difference in found if difference.kind == "left"]


def differences(
    before: Mapping[str, Any], after: Mapping[str, Any], directory: str = DIRECTORY, prefix: str = OWN_PREFIX
) -> list[Difference]:
    """Name what differs between two states of one boot of a host.

    Args:
        before, after: as read_state returns them.
        directory, prefix: as for read_state.
    """
    found = []
    for name in sorted({*before["settings"], *after["settings"]}):
        was, now = before["settings"].get(name), after["settings"].get(name)
        # One of the two is missing where the kernel sets it by itself: pages_to_scan under its advisor.
        if was is not None and now is not None and was != now:
            found.append(Difference("left", f"{name} was {was} and is {now}"))
    if after["merged_pages"] and not before["merged_pages"]:
        found.append(Difference("left", f"{after['merged_pages']} pages are merged, and none was"))
    for category in CATEGORIES[1:]:
        found += _of_category(category, before[category], after[category], directory, prefix)
    return found


def _of_category(
    category: str, before: Mapping[str, Any], after: Mapping[str, Any], directory: str, prefix: str
) -> Iterator[Difference]:
    word = WORDS.get(category, "")
    new = {
        name: _kind(category, name, after[name], directory, prefix) for name in after.keys() - before.keys()
    }
    for name in sorted(new):
        # Of a new folder only itself is named, but for what in it is of another kind.
        if any(new.get(str(above)) == new[name] for above in Path(name).parents if category in PATHS):
            continue
        owner = f" of {after[name]}" if category == "sockets" and after[name] else ""
        yield Difference(new[name], f"{word}{name}{owner} is new")
    for name in sorted(before.keys() - after.keys()):
        yield Difference("stays" if category == "files" else "other", f"{word}{name} is gone")
    if category in COMPARED:
        for name in sorted(before.keys() & after.keys()):
            was, now = before[name], after[name]
            if was != now:
                kind = _kind(category, name, now, directory, prefix)
                yield Difference(kind, f"{word}{name} was {was} and is {now}")


def _kind(category: str, name: str, value: Any, directory: str, prefix: str) -> str:
    """Whose a thing is, and whether it stays by design."""
    # A snapshot of another boot of the host is put aside for a person.
    kept = (
        f"{directory}/images",
        f"{directory}/checkpoints",
        f"{directory}/.ksm-testbed",
        f"{directory}/ksm-snapshot.json.other-boot",
        f"/var/log/libvirt/qemu/{prefix}",
    )
    stays = {
        "processes": name in DAEMONS,
        "files": name == directory or name.startswith(kept),
        "cgroups": name.endswith(f"/{MACHINE}"),
    }
    left = {
        "processes": name.startswith(f"QEMU of {prefix}") or name.endswith(AT_WORK),
        "domains": name.startswith(prefix),
        "mounts": name == directory or name.startswith(f"{directory}/"),
        "sockets": str(value).startswith(f"QEMU of {prefix}"),
    }
    if stays.get(category, category in ("devices", "packages", "users")):
        return "stays"
    return "left" if left.get(category, category in ("files", "cgroups")) else "other"


def open_to_others(state: Mapping[str, Any]) -> list[str]:
    """What of the guests can be reached from outside of the host: sockets that are not on 127.0.0.1."""
    return [
        f"{name} of {owner}"
        for name, owner in state["sockets"].items()
        if owner.startswith("QEMU of ") and not re.match(r"tcp (127\.|\[0:0:0:0:0:0:0:1\])", name)
    ]


def not_private(state: Mapping[str, Any], directory: str = DIRECTORY) -> list[str]:
    """The testbed's disks, seeds, states and keys that another user than their owner may read or write.

    A folder may be passed through by all where QEMU's user has to, but what it holds is seen by its owner.
    """
    places = (f"{directory}/guests/", f"{directory}/checkpoints", f"{directory}/ksm-snapshot.json")
    return [
        f"{path} ({mode})"
        for path, mode in state["files"].items()
        if path.startswith(places) and not re.match(r"-r[w-]-------|d...--[x-]--[x-]|s.{7}-", mode)
    ]


def told(before: Mapping[str, Any], found: Collection[Difference]) -> str:
    """One paragraph for the user: whether the host is as it was before that run, what differs, what stays."""
    run = f"run {before['run']}" if before.get("run") else "the run"
    when = f"{run} of {before['recorded_at']}"
    by_kind = {kind: [one.text for one in found if one.kind == kind] for kind in ("left", "stays", "other")}
    if by_kind["left"]:
        text = f"this host is not as it was before {when}: {'; '.join(by_kind['left'])}."
    else:
        counts = ", ".join(f"{len(before[category])} {category}" for category in CATEGORIES)
        text = f"this host is as it was before {when} (compared: {counts})."
    if by_kind["stays"]:
        text += f" What stays by design (docs/safety.md): {shortened(by_kind['stays'])}."
    if by_kind["other"]:
        text += f" Changed meanwhile by somebody else: {shortened(by_kind['other'])}."
    return text


def shortened(texts: list[str]) -> str:
    """Texts in a line; of many packages and files only their number."""
    most = 12
    rest = f"; and {len(texts) - most} more" if len(texts) > most else ""
    return "; ".join(texts[:most]) + rest

"""Checkpoints: memory and disk of guests that booted, kept under what made them. Standard library only.

One folder each, `boot1-512mib-0123456789ab`, below a folder that only root and QEMU's user enter. It holds a
folder for each guest (memory, disk.qcow2, seed.iso) and, written last, manifest.json: what made the guests,
when they booted, and size and digest of every file. What has no sound manifest is no checkpoint.

Guests that were loaded since have a checkpoint of their own, `boot1-512mib-0123456789ab-random_fill-012345`;
its disks stand on those of the first, so it goes where that goes.

Only folders with such a name are read or removed. No symbolic link below the store is followed; the store
itself may be one, to a larger disk.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"
FILES = ("memory", "disk.qcow2", "seed.iso")
UNFINISHED = ".partial"
# What folder_name makes; the names of workloads are those of their files.
NAME = re.compile(r"boot\d+-\d+mib-[0-9a-f]{12}(-[a-z][a-z0-9_-]*-[0-9a-f]{6})?(\.partial)?")
MIB = 1 << 20

# What made the guests, with the words for a message
MADE_OF = {
    "image": "image",
    "definition": "domain definition",
    "user_data": "user data or SSH key",
    "memory_mib": "guest memory",
    "kernel_release": "host kernel",
    "cpu_model": "host CPU",
    "qemu_version": "QEMU",
    "boot": "boot number",
}
# A checkpoint made under another of these is of no use on this host any more.
HOST = ("kernel_release", "cpu_model", "qemu_version")


class CheckpointError(Exception):
    """A checkpoint can't be made or used; the text is one sentence for the user."""


@dataclass(frozen=True)
class Checkpoint:
    """A sound manifest and its folder.

    ``guests``: guest name to files, host_key (SSH) and what is known of its boot.
    ``load``: None for guests that only booted; else name, reserve_mib, contents and reports of it.
    """

    folder: Path
    made_of: dict[str, Any]
    booted_at: str
    boot_seconds: float
    guests: dict[str, dict[str, Any]]
    load: dict[str, Any] | None

    @property
    def name(self) -> str:
        """What records and messages call it."""
        return self.folder.name

    @property
    def base(self) -> str:
        """Name of the checkpoint of these guests when they had only booted; its own for that one."""
        return folder_name(self.made_of, self.booted_at, None)

    @property
    def bytes(self) -> int:
        """Size of its files."""
        return sum(file["bytes"] for guest in self.guests.values() for file in guest["files"].values())


def digest_text(content: Any) -> str:
    """SHA-256 of the canonical JSON of a content, in hexadecimal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def folder_name(made_of: Mapping[str, Any], booted_at: str, load: Mapping[str, Any] | None) -> str:
    """Name of a checkpoint's folder: readable, and different for all that differs."""
    name = f"boot{made_of['boot']}-{made_of['memory_mib']}mib-{digest_text([dict(made_of), booted_at])[:12]}"
    if load is None:
        return name
    held = [load["name"], load["reserve_mib"], load.get("contents"), sorted(load["reports"])]
    key = digest_text(held)[:6]
    return f"{name}-{load['name'].split('=')[0]}-{key}"


def read(folder: Path) -> Checkpoint:
    """The checkpoint in a folder. Raises CheckpointError, which says what is wrong with it."""
    if folder.name.endswith(UNFINISHED):
        raise CheckpointError("it was never finished")
    try:
        with _opened(folder / MANIFEST) as file:
            content = json.load(file)
        if content["schema_version"] != SCHEMA_VERSION:
            raise CheckpointError(f"its manifest is of version {content['schema_version']}")
        checkpoint = Checkpoint(
            folder=folder,
            made_of={name: content["made_of"][name] for name in MADE_OF},
            booted_at=_of(str, content["booted_at"]),
            boot_seconds=_of((int, float), content["boot_seconds"]),
            guests=dict(sorted(content["guests"].items())),
            load=content["load"],
        )
        files = [guest["files"][file] for guest in checkpoint.guests.values() for file in FILES]
        sound = all(
            type(file["bytes"]) is int and file["bytes"] > 0 and _of(str, file["digest"]) for file in files
        ) and all(_of(str, guest["host_key"]) for guest in checkpoint.guests.values())
        own_name = folder_name(checkpoint.made_of, checkpoint.booted_at, checkpoint.load)
    except FileNotFoundError:
        raise CheckpointError("it has no manifest, so it was never finished") from None
    except OSError as error:
        raise CheckpointError(f"its manifest cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"its manifest cannot be read ({error})") from None
    if not files or not sound:
        raise CheckpointError("its manifest names no guests, or empty files, or no host key")
    if own_name != folder.name:
        raise CheckpointError(f"its manifest is that of {own_name}")
    return checkpoint


def _of(kind: Any, value: Any) -> Any:
    """A value of that type; TypeError for another one."""
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{value!r} in it is of no use")
    return value


def _opened(path: Path) -> Any:
    """A file of a checkpoint, to be read; OSError for a link, or what is no file, in its place."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no file")
    return file


def is_folder(path: Path) -> bool:
    """Tell whether a folder is there, and not a link to one."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def fault(checkpoint: Checkpoint, names: Iterable[str]) -> str:
    """What is wrong with the files of these guests: missing, truncated or changed; empty where nothing is."""
    wanted = [(name, file) for name in names for file in FILES]

    def look(name: str, file: str) -> str:
        if name not in checkpoint.guests:
            return f"it has no {name}"
        expected = checkpoint.guests[name]["files"][file]
        path, shown = checkpoint.folder / name / file, f"{name}/{file}"
        if not is_folder(path.parent):
            return f"it has no folder {name}"
        try:
            with _opened(path) as opened:
                size = os.fstat(opened.fileno()).st_size
                if size != expected["bytes"]:
                    return f"{shown} has {size} bytes of {expected['bytes']}"
                same = _digest(opened) == expected["digest"]
        except OSError as error:
            return f"{shown}: {'it is a symbolic link' if error.errno == errno.ELOOP else error.strerror}"
        return "" if same else f"{shown} was changed: its digest is another"

    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        return next((text for text in pool.map(lambda pair: look(*pair), wanted) if text), "")


def _digest(file: Any) -> str:
    digest = hashlib.file_digest(file, "sha256")
    # Memory full of cached checkpoints has few huge pages left for the guests that are restored from them.
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return f"sha256:{digest.hexdigest()}"


def measured(path: Path) -> dict[str, Any]:
    """Size and digest of a file, as a manifest holds them."""
    with _opened(path) as file:
        return {"bytes": os.fstat(file.fileno()).st_size, "digest": _digest(file)}


def differences(made_of: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, str]:
    """In what a checkpoint was made otherwise than it is wanted: name -> "QEMU 7.2.22, now 7.2.23"."""
    found = {}
    for name, words in MADE_OF.items():
        if made_of[name] != wanted[name]:
            plain = name not in ("image", "definition", "user_data")
            found[name] = f"{words} {made_of[name]}, now {wanted[name]}" if plain else f"another {words}"
    return found


class Store:
    """All checkpoints of this host."""

    def __init__(self, root: Path, say: Callable[[str], None]) -> None:
        """Name the folder, which need not exist yet, and what takes a line for the user."""
        self.root = root
        self.say = say

    def make_folder(self, path: Path, owner: tuple[int, int]) -> None:
        """Make the store, or a folder in it, which only root and the owner (QEMU's user and group) enter."""
        path.mkdir(mode=0o700, parents=path == self.root, exist_ok=True)
        if path != self.root and not is_folder(path):
            raise CheckpointError(f"{path} is a symbolic link, and is left alone: remove it")
        os.chown(path, *owner)
        path.chmod(0o700)

    def folders(self) -> list[Path]:
        """Everything that is kept, finished or not."""
        return [path for path in self._content() if NAME.fullmatch(path.name) and is_folder(path)]

    def strangers(self) -> list[str]:
        """Names of what the testbed did not make."""
        ours = self.folders()
        return [path.name for path in self._content() if path not in ours]

    def _content(self) -> list[Path]:
        return sorted(self.root.iterdir()) if self.root.is_dir() else []

    def throw_away(self, folder: Path, why: str) -> None:
        """Remove a folder and say why."""
        self.say(f"checkpoint {folder.name} is thrown away: {why}")
        remove(folder)

    def sound(self, made_of: Mapping[str, Any]) -> list[Checkpoint]:
        """All that may be of use on this host; what can be of none is thrown away."""
        found = []
        for folder in self.folders():
            try:
                checkpoint = read(folder)
            except CheckpointError as error:
                self.throw_away(folder, str(error))
                continue
            differing = differences(checkpoint.made_of, made_of)
            of_the_host = [differing[name] for name in HOST if name in differing]
            if of_the_host:
                self.throw_away(folder, f"it was made with {' and '.join(of_the_host)}")
            else:
                found.append(checkpoint)
        bases = {checkpoint.name for checkpoint in found if checkpoint.load is None}
        for checkpoint in found:
            if checkpoint.base not in bases:
                self.throw_away(checkpoint.folder, f"its disks stand on {checkpoint.base}, which is gone")
        return [checkpoint for checkpoint in found if checkpoint.base in bases]

    def find(self, made_of: Mapping[str, Any], guests: int, since: str) -> Checkpoint | None:
        """The newest checkpoint of booted guests that is what is wanted and holds so many of them.

        What can be of no use to anybody is thrown away. Where none serves, it is said why those don't that
        nearly do.
        since: one that booted before this UTC time, written as theirs, does not serve; empty: all do.
        """
        fitting, others = [], []
        for checkpoint in self.sound(made_of):
            differing = differences(checkpoint.made_of, made_of)
            if checkpoint.load is not None:
                continue
            if not differing:
                fitting.append(checkpoint)
            elif set(differing) <= {"image", "definition", "user_data"}:
                others.append((checkpoint.name, " and ".join(differing.values())))
        newest = max(fitting, key=lambda checkpoint: checkpoint.booted_at, default=None)
        if newest is None:
            for name, why in others:
                self.say(f"checkpoint {name} does not serve: {why}")
            return None
        if newest.booted_at < since:
            self.say(f"checkpoint {newest.name} is older than this run, which asks for a fresh boot")
            return None
        if len(newest.guests) < guests:
            self.say(
                f"checkpoint {newest.name} holds {len(newest.guests)} guests, and {guests} are asked for"
            )
            return None
        return newest

    def find_loaded(self, base: Checkpoint, load: Mapping[str, Any], guests: int) -> Checkpoint | None:
        """The checkpoint of this boot whose guests hold all that is asked; a mix needs the very number."""
        for folder in self.folders():
            try:
                found = read(folder)
            except CheckpointError:
                continue
            held = found.load
            if (
                held is not None
                and found.booted_at == base.booted_at
                and found.made_of == base.made_of
                and all(held.get(name) == value for name, value in load.items())
                and (len(found.guests) == guests if "=" in load["name"] else len(found.guests) >= guests)
            ):
                return found
        return None

    def holds(self, wanted: Mapping[str, Any]) -> bool:
        """Whether a checkpoint is kept that serves, as far as the host alone tells.

        wanted: boot, guests (so many at least; of a mix so many), memory_mib, load ("" for guests that only
        booted) with reserve_mib, and since: not booted before this UTC time, empty for any.
        """
        made_of = {name: wanted[name] for name in ("boot", "memory_mib")} | {
            "kernel_release": os.uname().release
        }

        def serves(found: Checkpoint) -> bool:
            held = found.load or {"name": "", "reserve_mib": wanted["reserve_mib"]}
            number = len(found.guests)
            return (
                all(found.made_of[name] == value for name, value in made_of.items())
                and (held["name"], held["reserve_mib"]) == (wanted["load"], wanted["reserve_mib"])
                and (number == wanted["guests"] or (number > wanted["guests"] and "=" not in held["name"]))
                and found.booted_at >= wanted["since"]
            )

        for folder in self.folders():
            with suppress(CheckpointError):
                if serves(read(folder)):
                    return True
        return False

    def drop_superseded(self, made: Checkpoint) -> None:
        """Throw away all others of the same make, loaded ones too; another clock may have made them later."""
        for folder in self.folders():
            try:
                other = read(folder)
            except CheckpointError:
                continue
            if other.made_of == made.made_of and other.booted_at != made.booted_at:
                self.throw_away(folder, f"{made.name} is in its place")

    def with_loaded(self, base: Checkpoint) -> list[Path]:
        """The folders of a checkpoint of booted guests and of those that stand on it, these first."""
        named = (base.name, base.name + UNFINISHED)
        return [
            folder
            for folder in reversed(self.folders())
            if folder.name in named or folder.name.startswith(f"{base.name}-")
        ]


def write(
    folder: Path,
    made_of: Mapping[str, Any],
    booted: tuple[str, float],
    guests: Mapping[str, Mapping[str, Any]],
    load: Mapping[str, Any] | None,
) -> Checkpoint:
    """Digest the files of a folder that ends in UNFINISHED, write its manifest, and give it its name.

    booted: the UTC time when the boot began, and its seconds. guests: name -> its host_key, and what is known
    of its boot.
    Raises CheckpointError.
    """
    try:
        return _write(folder, made_of, booted, guests, load)
    except OSError as error:
        what = f"{Path(error.filename).name}: " if error.filename else ""
        raise CheckpointError(f"checkpoint {folder.name} cannot be kept: {what}{error.strerror}") from None


def _write(
    folder: Path,
    made_of: Mapping[str, Any],
    booted: tuple[str, float],
    guests: Mapping[str, Mapping[str, Any]],
    load: Mapping[str, Any] | None,
) -> Checkpoint:
    paths = {name: {file: folder / name / file for file in FILES} for name in guests}
    every = [path for files in paths.values() for path in files.values()]
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        digests = dict(zip(every, pool.map(measured, every), strict=True))
    for path in every:
        path.chmod(0o600)
    content = {
        "schema_version": SCHEMA_VERSION,
        "made_of": dict(made_of),
        "booted_at": booted[0],
        "boot_seconds": booted[1],
        "guests": {
            name: {**guests[name], "files": {file: digests[path] for file, path in files.items()}}
            for name, files in paths.items()
        },
        "load": None if load is None else dict(load),
    }
    descriptor = os.open(folder / MANIFEST, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    final = folder.with_name(folder.name.removesuffix(UNFINISHED))
    folder.rename(final)
    return read(final)


def size_bytes(folder: Path) -> int:
    """Size of all files in a folder, whatever its manifest says."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not is_folder(path))


def remove(folder: Path) -> None:
    """Remove a checkpoint; the manifest first, so that what is left of it is no checkpoint.

    Raises CheckpointError where something is left, or where this is no folder of a checkpoint.
    """
    if not NAME.fullmatch(folder.name) or (os.path.lexists(folder) and not is_folder(folder)):
        raise CheckpointError(f"{folder} is left alone: the testbed did not make it")
    with suppress(OSError):
        (folder / MANIFEST).unlink()
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {folder.name} cannot be removed: {error.filename}: {error.strerror}"
        ) from None

"""Checkpoints: memory and disk of guests that booted, kept under what made them. Standard library only.

One folder each, `boot1-512mib-0123456789ab`, below a folder that only root and QEMU's user enter. It holds a
folder for each guest (memory, disk.qcow2, seed.iso) and, written last, manifest.json: what made the guests,
when they booted, and size and digest of every file. What has no sound manifest is no checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
FILES = ("memory", "disk.qcow2", "seed.iso")
UNFINISHED = ".partial"
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

    ``load``: None for guests that only booted; else name, reserve_mib, seed and reports of what they hold.
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
    key = digest_text([load["name"], load["reserve_mib"], sorted(load["reports"])])[:6]
    return f"{name}-{load['name'].split('=')[0]}-{key}"


def read(folder: Path) -> Checkpoint:
    """The checkpoint in a folder. Raises CheckpointError, which says what is wrong with it."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema_version"] != SCHEMA_VERSION:
            raise CheckpointError(f"its manifest is of version {content['schema_version']}")
        checkpoint = Checkpoint(
            folder=folder,
            made_of={name: content["made_of"][name] for name in MADE_OF},
            booted_at=content["booted_at"],
            boot_seconds=content["boot_seconds"],
            guests=dict(sorted(content["guests"].items())),
            load=content["load"],
        )
        sizes = [guest["files"][file]["bytes"] for guest in checkpoint.guests.values() for file in FILES]
    except FileNotFoundError:
        raise CheckpointError("it has no manifest, so it was never finished") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"its manifest cannot be read ({error})") from None
    if not sizes or not all(type(size) is int and size > 0 for size in sizes):
        raise CheckpointError("its manifest names no guests, or empty files")
    return checkpoint


def fault(checkpoint: Checkpoint, names: Iterable[str]) -> str:
    """What is wrong with the files of these guests: missing, truncated or changed; empty where nothing is."""
    wanted = [
        (checkpoint.folder / name / file, checkpoint.guests[name]["files"][file])
        for name in names
        for file in FILES
    ]

    def look(path: Path, expected: Mapping[str, Any]) -> str:
        shown = f"{path.parent.name}/{path.name}"
        try:
            size = path.stat().st_size
            if size != expected["bytes"]:
                return f"{shown} has {size} bytes of {expected['bytes']}"
            return (
                "" if digest_of(path) == expected["digest"] else f"{shown} was changed: its digest is another"
            )
        except OSError as error:
            return f"{shown}: {error.strerror}"

    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        return next((text for text in pool.map(lambda pair: look(*pair), wanted) if text), "")


def digest_of(path: Path) -> str:
    """The digest of a file, as a manifest holds it."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


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

    def make_root(self, owner: tuple[int, int]) -> None:
        """Make the folder, which only root and the owner (QEMU's user and group) enter."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chown(self.root, *owner)
        self.root.chmod(0o700)

    def folders(self) -> list[Path]:
        """Everything that is kept, finished or not."""
        return sorted(path for path in self.root.iterdir() if path.is_dir()) if self.root.is_dir() else []

    def throw_away(self, folder: Path, why: str) -> None:
        """Remove a folder and say why."""
        self.say(f"checkpoint {folder.name} is thrown away: {why}")
        remove(folder)

    def find(self, made_of: Mapping[str, Any], guests: int, since: str) -> Checkpoint | None:
        """The newest checkpoint of booted guests that is what is wanted and holds so many of them.

        What can be of no use to anybody is thrown away; of others it is said why they do not serve.
        since: one that booted before this UTC time does not serve; empty: all do.
        """
        fitting = []
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
            elif not differing and checkpoint.load is None:
                fitting.append(checkpoint)
            elif set(differing) <= {"image", "definition", "user_data"} and checkpoint.load is None:
                self.say(f"checkpoint {checkpoint.name} does not serve: {' and '.join(differing.values())}")
        newest = max(fitting, key=lambda checkpoint: checkpoint.booted_at, default=None)
        if newest is None:
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
        """The checkpoint of the same boot whose guests hold this load; a mix needs the very number."""
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
                and all(held[name] == load[name] for name in ("name", "reserve_mib"))
                and (len(found.guests) == guests if "=" in load["name"] else len(found.guests) >= guests)
            ):
                return found
        return None

    def drop_superseded(self, made: Checkpoint) -> None:
        """Throw away older checkpoints of booted guests of the same make, and those that stand on them."""
        for folder in self.folders():
            try:
                other = read(folder)
            except CheckpointError:
                continue
            if other.made_of == made.made_of and other.booted_at < made.booted_at:
                self.throw_away(folder, f"{made.name} is in its place")

    def sets_of(self, checkpoint: Checkpoint) -> list[Path]:
        """A checkpoint of booted guests and those of the same guests loaded."""
        return [folder for folder in self.folders() if folder.name.startswith(checkpoint.name)]


def write(
    folder: Path,
    made_of: Mapping[str, Any],
    booted: tuple[str, float],
    guests: Mapping[str, Mapping[str, Any]],
    load: Mapping[str, Any] | None,
) -> Checkpoint:
    """Digest the files of a folder that ends in UNFINISHED, write its manifest, and give it its name.

    booted: the UTC time when the boot began, and its seconds. guests: name -> what is known of its boot.
    """
    paths = {name: {file: folder / name / file for file in FILES} for name in guests}
    for files in paths.values():
        for path in files.values():
            path.chmod(0o600)
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        digests = dict(
            pool.map(
                lambda path: (path, {"bytes": path.stat().st_size, "digest": digest_of(path)}),
                [path for files in paths.values() for path in files.values()],
            )
        )
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


def remove(folder: Path) -> None:
    """Remove a checkpoint; the manifest first, so that what is left of it is no checkpoint."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def check_room(needs: Mapping[str, int], path: Path) -> None:
    """Raise CheckpointError unless the file system that will hold path has room for needs (bytes by what)."""
    place = next(parent for parent in (path, *path.parents) if parent.exists())
    free = shutil.disk_usage(place).free
    total = sum(needs.values())
    if total > free:
        parts = ", ".join(f"{size // MIB} MiB for {what}" for what, size in needs.items())
        raise CheckpointError(
            f"{place} has {free // MIB} MiB free, and {total // MIB} MiB are needed ({parts}): make room, "
            "`make clean` removes checkpoints, or lower guests"
        )

"""Is there room on a host's disks for what is to be stored? Standard library only.

The needs of one file system are added up, whoever has them: each of them may fit, and all together not.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

MIB = 1 << 20
# What a guest may write to its disk while a cell runs, or until it is saved
OVERLAY_BYTES = 64 * MIB
# A guest that only booted has touched a part of its memory: 190 MiB of 512 were seen; the kernel's own part
# grows with the memory.
BOOTED_MIB = 256
BOOTED_SHARE = 16
# While an image is made its files are there as a tree, raw and packed.
IMAGE_BYTES = 4 << 30


class Need(TypedDict):
    """So many bytes in the file or folder path, which need not exist yet, for what."""

    path: str
    bytes: int
    what: str


def saved_bytes(guests: int, memory_mib: int, *, loaded: bool) -> int:
    """What memory and disk of so many guests take in a checkpoint, at most."""
    held_mib = memory_mib if loaded else min(memory_mib, BOOTED_MIB + memory_mib // BOOTED_SHARE)
    return guests * (held_mib * MIB + OVERLAY_BYTES)


def shortages(needs: Iterable[Need]) -> list[str]:
    """A sentence without its full stop for each file system that has less free than is to be stored there."""
    together: dict[int, list[Need]] = {}
    for need in needs:
        together.setdefault(_place(need).stat().st_dev, []).append(need)
    wrong = []
    for of_one in together.values():
        free, total = shutil.disk_usage(_place(of_one[0])).free, sum(need["bytes"] for need in of_one)
        if total > free:
            each = ", ".join(
                f"{_mib(need['bytes'])} MiB for {need['what']} in {need['path']}" for need in of_one
            )
            wrong.append(
                f"the file system of {of_one[0]['path']} has {free // MIB} MiB free, and {_mib(total)} MiB "
                f"are to be stored there ({each}): make room, `make clean` removes checkpoints, "
                "or ask for fewer guests"
            )
    return wrong


def _place(need: Need) -> Path:
    """Its path, or the nearest folder above it that exists."""
    path = Path(need["path"])
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _mib(size_bytes: int) -> int:
    return -(-size_bytes // MIB)

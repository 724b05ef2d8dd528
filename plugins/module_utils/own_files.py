"""Folders that the testbed makes and marks, and the removal of what is in them. Standard library only.

The modules run as root and are given paths, so what they remove is looked at first: it lies, with every link
in its path followed, in a folder with the testbed's mark.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

MARK = ".ksm-testbed"


class NotOwnError(Exception):
    """Something that the testbed did not make is in the way; the text is one sentence for the user."""


def mark(folder: Path) -> None:
    """Mark a folder that was just made."""
    os.close(os.open(folder / MARK, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))


def is_own(folder: Path) -> bool:
    """Tell whether this is a folder, and no link to one, that root or this user has marked."""
    try:
        seen, marked = folder.lstat(), (folder / MARK).lstat()
    except OSError:
        return False
    return stat.S_ISDIR(seen.st_mode) and stat.S_ISREG(marked.st_mode) and marked.st_uid in (0, os.geteuid())


def check_free(folder: Path, variable: str) -> None:
    """Refuse a folder that is there, has something in it and is not marked; variable says where it is set."""
    if not os.path.lexists(folder) or is_own(folder):
        return
    if folder.is_symlink() or not folder.is_dir() or any(folder.iterdir()):
        raise NotOwnError(
            f"{folder} is there, and the testbed did not make it (it has no {MARK}): "
            f"move it away, or set {variable}"
        )


def make_own(folder: Path, mode: int, variable: str) -> None:
    """Make and mark a folder, which may be there, marked or empty. Raises NotOwnError."""
    check_free(folder, variable)
    folder.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    folder.mkdir(exist_ok=True)
    folder.chmod(mode)
    mark(folder)


def remove_own(path: Path, own: Path) -> None:
    """Remove what is at path, if anything: a marked folder (own) or something in it. Raises NotOwnError."""
    if not os.path.lexists(path):
        return
    if not is_own(own):
        raise NotOwnError(f"{path} is left alone: the testbed did not make {own} (it has no {MARK})")
    place = path.parent.resolve() / path.name
    if path.name == ".." or not place.is_relative_to(own.resolve()):
        raise NotOwnError(f"{path} is left alone: it is {place}, which does not lie in {own}")
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        shutil.rmtree(path, ignore_errors=True)  # something in it went by itself meanwhile

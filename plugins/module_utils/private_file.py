"""Files and folders that only their owner reads, put in place whole or not at all. Standard library only."""

from __future__ import annotations

import os
from pathlib import Path


def own(folder: Path) -> str:
    """Have a folder, which must be this user's alone; why it is not, one sentence, "" where it is."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if folder.is_symlink() or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        return f"{folder} is no private folder of this user: remove it"
    return ""


def put(path: Path, text: str) -> None:
    """Put a private file in place at once, whatever was there: somebody may be reading the one before."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    partial.replace(path)

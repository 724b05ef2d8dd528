"""The one writer of what is stored: checked by its model, whole or not at all, for its owner's eyes."""

import errno
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from analysis.errors import UserError
from analysis.records.models import Model
from analysis.records.reading import breach


class WriteError(UserError):
    """A record that is none, or that could not be written."""


def write_record(path: Path, content: Mapping[str, Any], model: type[Model]) -> None:
    """Write a record as JSON, mode 0600, in place of one that is there; its folder is made with mode 0700.

    Raises WriteError in one sentence where the content is no such record, or the disk refuses.
    """
    try:
        text = json.dumps(content, indent=1, allow_nan=False) + "\n"
        model.model_validate_json(text)
    except ValidationError as error:
        raise WriteError(f"{path.name} is not valid at {breach(error)}.") from None
    except (TypeError, ValueError) as error:
        raise WriteError(f"{path.name} cannot be written as JSON: {error}.") from None
    prepare_folder(path.parent)
    try:
        _remove_partial(path)
        _replace(path, text, 0o600)
    except OSError as error:
        raise WriteError(f"cannot write {path}: {_why(error)}.") from None


def write_text(path: Path, text: str) -> None:
    """Write a text that everybody may read, in place of one that is there; whoever reads finds either whole.

    Raises WriteError where the disk refuses.
    """
    try:
        _replace(path, text, 0o644)
    except OSError as error:
        raise WriteError(f"cannot write {path}: {_why(error)}.") from None


def prepare_folder(folder: Path) -> None:
    """Make a folder and prove that it can be written in, before machine time is spent on what goes there.

    Raises WriteError.
    """
    try:
        make_private_directory(folder)
        probe = folder / f".probe.{secrets.token_hex(4)}"
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        probe.unlink()
    except OSError as error:
        raise WriteError(f"cannot write in {folder}: {_why(error)}.") from None


def make_private_directory(path: Path) -> None:
    """Make a directory, and those above it, that only their owner enters."""
    # parents=True would give the parents the default mode.
    for directory in (*reversed(path.parents), path):
        if not directory.exists():
            directory.mkdir(mode=0o700, exist_ok=True)


def _why(error: OSError) -> str:
    """What the disk refused; where it is full, what can be done."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.strerror}: make room there; what was written before is whole"
    return str(error.strerror)


def _replace(path: Path, text: str, mode: int) -> None:
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        # Whatever the umask is
        os.fchmod(descriptor, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _remove_partial(path: Path) -> None:
    """What a write left that was killed."""
    for left in path.parent.iterdir():
        if left.name.startswith(f".{path.name}.") and left.is_file():
            left.unlink(missing_ok=True)

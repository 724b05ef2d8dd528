"""One stored file as an object of its model, whatever it holds: a problem is one sentence that names it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from analysis.errors import UserError
from analysis.plan.design import SCHEMA_VERSION

R = TypeVar("R", bound=BaseModel)

_LONGEST_MESSAGE = 160


class RecordError(UserError):
    """Results that cannot be used."""


def read_record(path: Path, model: type[R]) -> R:
    """A file of this version. Raises RecordError, which begins with the file's name."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path.name} cannot be read: {error.strerror}") from None
    return parse_record(raw, model, path.name)


def parse_record(raw: bytes, model: type[R], name: str) -> R:
    """The bytes of a file of this name, as :func:`read_record`."""
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        # Only what is no record pays for a second look.
        raise _problem(raw, name, error) from None


def breach(error: ValidationError) -> str:
    """Where content breaks its model first, and how: "$.observed.guests: it has no guest01"."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
    return f"{_short(f'${place}')}: {_short(first['msg'].removeprefix('Value error, '))}"


def _problem(raw: bytes, name: str, error: ValidationError) -> RecordError:
    """What is wrong with a file that is no record of its model."""
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as fault:
        return RecordError(f"{name} cannot be read: {_short(str(fault))}")
    version = content.get("schema_version") if isinstance(content, Mapping) else None
    if type(version) is int and version != SCHEMA_VERSION:
        return RecordError(
            f"{name} is of schema version {_short(str(version))}, and this testbed knows {SCHEMA_VERSION} "
            "alone: read it with the one that wrote it"
        )
    if any(first["loc"] == ("kind",) for first in error.errors(include_url=False, include_context=False)):
        return RecordError(f"{name} holds a record of kind {_short(str(content.get('kind')))}")
    return RecordError(f"{name} breaks the schema at {breach(error)}")


def _short(message: str) -> str:
    """In one line of limited length, whatever the file had in it."""
    line = " ".join("".join(one if one.isprintable() else " " for one in message).split())
    return line if len(line) <= _LONGEST_MESSAGE else f"{line[:80]} ... {line[-76:]}"

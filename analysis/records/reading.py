"""One stored file as an object of its model, whatever it holds: a problem is one sentence that names it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from analysis.errors import UserError
from analysis.plan.design import SCHEMA_VERSION
from analysis.records import migration
from analysis.records.models import (
    CapacityFile,
    CapacityPhase,
    CensusRecord,
    ForecastRecord,
    PlanRecord,
)

R = TypeVar("R", bound=BaseModel)

_LONGEST_MESSAGE = 160


class RecordError(UserError):
    """Results that cannot be used."""


def read_record(path: Path, model: type[R]) -> R:
    """A file of this version or an earlier one. Raises RecordError, which begins with the file's name."""
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
        # Only what is no record of today pays for a second look.
        return _second_look(raw, model, name, error)


def breach(error: ValidationError) -> str:
    """Where content breaks its model first, and how: "$.observed.guests: it has no guest01"."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
    return f"{_short(f'${place}')}: {_short(first['msg'].removeprefix('Value error, '))}"


def _second_look(raw: bytes, model: type[R], name: str, error: ValidationError) -> R:
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as fault:
        raise RecordError(f"{name} cannot be read: {_short(str(fault))}") from None
    version = content.get("schema_version") if isinstance(content, Mapping) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise RecordError(
            f"{name} is of schema version {version}, and this testbed knows up to {SCHEMA_VERSION}: "
            "read it with the one that wrote it"
        ) from None
    # Within version 2 the guests of a capacity run came to take turns.
    if version == 1 or (version == SCHEMA_VERSION and issubclass(model, (CapacityPhase, CapacityFile))):
        try:
            return model.model_validate_json(json.dumps(_migration(model)(content)))
        except ValidationError as fault:
            error = fault
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
            raise RecordError(f"{name} is no file of schema version {version}") from None
    if any(first["loc"] == ("kind",) for first in error.errors(include_url=False, include_context=False)):
        raise RecordError(f"{name} holds a record of kind {_short(str(content.get('kind')))}") from None
    raise RecordError(f"{name} breaks the schema at {breach(error)}") from None


def _migration(model: type[BaseModel]) -> Callable[[Any], Any]:
    by_model: tuple[tuple[type[BaseModel] | tuple[type[BaseModel], ...], Callable[[Any], Any]], ...] = (
        (PlanRecord, migration.migrate_plan),
        (CensusRecord, migration.migrate_census),
        ((CapacityPhase, CapacityFile), migration.migrate_capacity),
        (ForecastRecord, migration.migrate_forecast),
    )
    return next((old for kind, old in by_model if issubclass(model, kind)), migration.migrate_record)


def _short(message: str) -> str:
    """In one line of limited length, whatever the file had in it."""
    line = " ".join("".join(one if one.isprintable() else " " for one in message).split())
    return line if len(line) <= _LONGEST_MESSAGE else f"{line[:80]} ... {line[-76:]}"

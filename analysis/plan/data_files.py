"""Policies and workloads are data: one YAML file each, found by its name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from analysis.errors import UserError
from plugins.module_utils import names

PROJECT = Path(__file__).resolve().parents[2]


class DataFileError(UserError):
    """A policy or a workload that does not exist, or whose file cannot be used."""


def names_in(folder: Path) -> list[str]:
    """Names of the files of a folder, without .yml, in the order of the alphabet."""
    return sorted(path.stem for path in folder.glob("*.yml"))


def read_file(folder: Path, what: str, name: str, allowed: frozenset[str]) -> dict[str, Any]:
    """The mapping in ``folder/name.yml``, none of whose keys is unknown and whose description is a sentence.

    ``what`` is policy or workload, for the message. Raises DataFileError.
    """
    known = names_in(folder)
    if name not in known:
        raise DataFileError(f"{what} {name!r} does not exist: there are {', '.join(known) or 'none'}.")
    path = folder / f"{name}.yml"
    try:
        names.check(f"the name of {path}", name, names.DATA_FILE)
    except names.NameRefused as error:
        raise DataFileError(f"{error}.") from None
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataFileError(f"{path} cannot be read: {' '.join(str(error).split())}.") from None
    if not isinstance(content, Mapping):
        raise DataFileError(f"{path} holds no mapping: it needs at least a description.")
    unknown = sorted(set(map(str, content)) - allowed)
    if unknown:
        raise DataFileError(f"{path} has {', '.join(unknown)}: allowed are {', '.join(sorted(allowed))}.")
    if not isinstance(content.get("description"), str):
        raise DataFileError(f"{path} has no description: one sentence that says what the {what} is.")
    return dict(content)

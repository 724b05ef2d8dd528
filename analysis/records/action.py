"""What the actions that write a record have in common: its place, its head, a refusal as Ansible has it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.utils.display import Display

from analysis.errors import UserError
from analysis.plan.design import SCHEMA_VERSION
from analysis.plan.variables import add_failure
from analysis.records.models import Model
from analysis.records.writing import WriteError, prepare_folder, write_record

# What a play knows of a measurement; the rest of its provenance is read from the host.
GIVEN = ("design_digest", "image_digest", "accelerator", "testbed_version", "start")


@contextmanager
def refusals(action: str) -> Iterator[None]:
    """Turn the errors that are for the user into the action's failure."""
    try:
        yield
    except UserError as error:
        raise AnsibleActionFail(f"{action}: {error}") from None


def prepare(action: str, directory: str, name: str, *, replace: bool = False) -> Path:
    """Return the path of a record that can be written, before machine time is spent on what goes there.

    Its folder is made. Raises AnsibleActionFail, also where a record is there and must not be replaced.
    """
    path = record_path(action, directory, name)
    with refusals(action):
        if path.exists() and not replace:
            raise WriteError(f"{path} exists and is kept; choose another run_id.")
        prepare_folder(path.parent)
    return path


def record_path(action: str, directory: str, name: str) -> Path:
    """Return the path of a record. Raises AnsibleActionFail unless its folder is absolute."""
    with refusals(action):
        if not Path(directory).is_absolute():
            raise WriteError(f"directory is {directory!r}; it must be an absolute path.")
    return Path(directory) / name


def store(action: str, path: Path, record: Mapping[str, Any], model: type[Model]) -> None:
    """Check and write a record. Raises AnsibleActionFail."""
    with refusals(action):
        write_record(path, record, model)


def taken_or_missing(
    what: str, directory: str, task_vars: Mapping[str, Any], take: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Return the result of an action that takes a record which a cell can do without.

    Where it cannot be had it is said and added to the fact failures, and the action succeeds: ``missing`` is
    then true, and there is no record. ``directory``: the cell's.
    """
    try:
        answer = take()
    except AnsibleActionFail as error:
        answer = {"failed": True, "msg": str(error)}
    if not answer.get("failed"):
        return answer
    why = str(answer.get("msg") or "its module failed").strip()
    msg = f"no {what} of {Path(directory).name}, whose measurement is not affected: {why}"
    host = task_vars.get("inventory_hostname", "")
    Display().display(f"    [{host}] {msg}")
    facts = add_failure(task_vars, f"{host}: {msg}")
    return {"changed": False, "missing": True, "msg": msg, "ansible_facts": facts}


def head(
    kind: str,
    run_id: str,
    measured: Mapping[str, Any],
    provenance: Mapping[str, Any],
    guest_memory_bytes: int | None,
    *,
    given: Collection[str] = GIVEN,
) -> dict[str, Any]:
    """Return what every record begins with; facts of the provenance that nobody gave are null.

    measured: what a module read, with recorded_at and the host's provenance.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "run_id": run_id,
        "recorded_at": measured["recorded_at"],
        "provenance": {
            **measured["provenance"],
            **{name: provenance.get(name) for name in given},
            "guest_memory_bytes": guest_memory_bytes,
        },
    }

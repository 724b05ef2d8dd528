"""Filters of the experiment's playbook: what failed, and in which cell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.design import is_complete

PHASE_OF_ROLE = {"guests": "boot", "workload": "workload", "ksm": "merge"}


def failure_of(hostvars: Mapping[str, Any], hosts: Sequence[str]) -> dict[str, str]:
    """Return phase, task and message of the first of these hosts that failed; unreachable ones left none."""
    for host in hosts:
        task, result = hostvars[host].get("ansible_failed_task"), hostvars[host].get("ansible_failed_result")
        if result:
            name = str((task or {}).get("name", "unknown task"))
            said = (str(result.get(part) or "").strip() for part in ("msg", "stderr"))
            return {
                "phase": phase_of(task or {}),
                "task": name,
                "message": f"{host}: {': '.join(filter(None, said))}",
            }
    return {
        "phase": "workload",
        "task": "unknown task",
        "message": "a guest stopped answering: "
        "its console log was in the guests' folder until they were removed",
    }


def phase_of(task: Mapping[str, Any]) -> str:
    """Return the phase of the record that a failed task belongs to."""
    if task.get("action") == "measure_record":
        return str(task.get("args", {}).get("phase", "merge"))
    for role, phase in PHASE_OF_ROLE.items():
        if f"/roles/{role}/" in str(task.get("path", "")):
            return phase
    return "boot"


def failed_cell(cells: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the first cell of a repetition that has not all of its records: cells run in order."""
    return next((cell for cell in cells if not is_complete(Path(cell["directory"]))), cells[-1])


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"failure_of": failure_of, "failed_cell": failed_cell}

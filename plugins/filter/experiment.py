"""Filters of the experiment's playbook: what each guest does, what failed, and in which cell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.design import is_complete
from analysis.mix import guest_workloads

PHASE_OF_ROLE = {"guests": "boot", "workload": "workload", "ksm": "merge"}
# Ansible keeps no ansible_failed_result of an unreachable host, only what its task registered.
GUEST_REGISTERS = ("workload_barrier", "workload_start", "workload_verify")


def failure_of(hostvars: Mapping[str, Any], hosts: Sequence[str]) -> dict[str, str]:
    """Return phase, task and message of the first of these hosts that failed, else that stopped answering."""
    for host in hosts:
        task, result = hostvars[host].get("ansible_failed_task"), hostvars[host].get("ansible_failed_result")
        if result:
            name = str((task or {}).get("name", "unknown task"))
            parts = (str(result.get(part) or "").strip() for part in ("msg", "stderr"))
            return {
                "phase": phase_of(task or {}),
                "task": name,
                "message": f"{host}: {': '.join(filter(None, parts))}",
            }
    for host in hosts:
        for register in GUEST_REGISTERS:
            result = hostvars[host].get(register) or {}
            if result.get("unreachable"):
                said = " ".join(str(result.get("msg") or "").split())
                return {
                    "phase": "workload",
                    "task": register,
                    "message": f"{host}: it stopped answering, and may have ended: {said}",
                }
    return {"phase": "workload", "task": "unknown task", "message": "a guest stopped answering"}


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
        return {"failure_of": failure_of, "failed_cell": failed_cell, "guest_workloads": guest_workloads}

"""Filters of the playbooks: what each guest holds, what it answered, and what failed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from analysis.plan.design import check_run_id
from analysis.plan.mix import guest_workloads, keeps_load, load_contents, loads_later
from analysis.progress.matrix import FIRST_PHASE, named_phase


def guest_segments(
    barrier: Collection[str],
    domains: Collection[str],
    load: str,
    workloads: Mapping[str, Any],
    shares: bool = False,
    *,
    kept: bool | None = None,
) -> dict[str, Any]:
    """Return guest -> segments that it fills, of the guests that came to the barrier now.

    What a guest does follows from its place among all of them (domains), also where some run already; with
    shares from its place alone. With kept only those whose load a checkpoint is to hold (True), or the
    others (False): each guest of a mix is loaded where guests that all do the same are.
    """
    does = _of_kind(guest_workloads(load, domains, shares=shares), barrier, workloads, kept)
    return {name: workloads[workload]["segments"] for name, workload in does.items()}


def guest_applications(
    guests: Collection[str],
    domains: Collection[str],
    load: str,
    workloads: Mapping[str, Any],
    shares: bool = False,
    *,
    kept: bool | None = None,
) -> dict[str, Any]:
    """Return guest -> the application that it runs, with its workload's name, of these guests.

    Guests that run none are left out; what each does follows from its place, and kept says which, as for
    guest_segments.
    """
    if not guests:
        return {}
    does = _of_kind(guest_workloads(load, domains, shares=shares), guests, workloads, kept)
    return {
        name: {"name": workload, **workloads[workload]["application"]}
        for name, workload in does.items()
        if "application" in workloads[workload]
    }


def _of_kind(
    does: Mapping[str, str], guests: Collection[str], workloads: Mapping[str, Any], kept: bool | None
) -> dict[str, str]:
    """Return guest -> its workload, of these guests; with kept of those whose file says so alone."""
    return {
        name: does[name]
        for name in guests
        if kept is None or workloads[does[name]]["checkpoint_loaded"] is kept
    }


def workload_reports(guests: Mapping[str, Any], loaded: Mapping[str, Any]) -> dict[str, Any]:
    """Return guest -> what it said when it was loaded, now or before its checkpoint; empty where none was."""
    reports = {**((guests.get("load") or {}).get("reports") or {}), **(loaded.get("answers") or {})}
    return {name: reports[name] for name in guests.get("domains") or {} if name in reports}


def start_with(
    start: Mapping[str, Any] | None, load: str, workloads: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return the start of guests with this load, as a record has it: loaded where all that is filled was."""
    if start is None:
        return None
    return {**start, "loaded": start["loaded"] and not loads_later(load, workloads)}


def member(answers: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Return guest -> one member of its answer."""
    return {guest: answer[name] for guest, answer in answers.items()}


def failure_of(task: Mapping[str, Any], result: Mapping[str, Any], host: str) -> dict[str, str]:
    """Return phase, task and message of a failed task, as a failed record has them."""
    said = [str(result.get(part) or "").strip() for part in ("msg", "stderr")]
    return {
        "phase": phase_of(task),
        "task": str(task.get("name", "unknown task")),
        "message": f"{host}: {': '.join(filter(None, said))}",
    }


def phase_of(task: Mapping[str, Any]) -> str:
    """Return the phase of the cell that a failed task belongs to."""
    named = named_phase(str(task.get("action", "")), task.get("args") or {}, task.get("vars") or {})
    return named or FIRST_PHASE


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "guest_segments": guest_segments,
            "guest_applications": guest_applications,
            "keeps_load": keeps_load,
            "load_contents": load_contents,
            "workload_reports": workload_reports,
            "start_with": start_with,
            "member": member,
            "failure_of": failure_of,
            "checked_run_id": check_run_id,
        }

"""Filters over what the guests answered."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

MIB = 1 << 20
PROBES = ("write_latency_p50_us", "write_latency_p99_us", "touch_mib_per_second", "cpu_iterations_per_second")


def answer(hostvars: Mapping[str, Any], guest: str, register: str) -> dict[str, Any] | None:
    """Return what a guest's program printed, or None where the task was skipped for it."""
    registered = hostvars[guest].get(register, {})
    if "stdout" not in registered:
        return None
    try:
        content: dict[str, Any] = json.loads(registered["stdout"])
    except ValueError:
        raise AnsibleFilterError(
            f"{guest} answered {registered['stdout']!r} to {register}, which is no JSON"
        ) from None
    return content


def answer_or_silence(hostvars: Mapping[str, Any], guest: str, register: str) -> dict[str, Any] | None:
    """Return what a guest's program printed, or None where it failed, too, or the guest did not answer."""
    registered = hostvars[guest].get(register) or {}
    if registered.get("unreachable") or registered.get("failed"):
        return None
    return answer(hostvars, guest, register)


def workload_fill_bytes(hostvars: Mapping[str, Any], guests: Sequence[str], reserve_mib: int) -> int:
    """Return the bytes that fit every guest: the least MemAvailable at the barrier less the reserve.

    A whole number of MiB, and more than none; AnsibleFilterError otherwise.
    """
    if not guests:
        raise AnsibleFilterError("workload_guests is empty: it needs the guests that fill the same size")
    available: dict[str, int] = {}
    for guest in guests:
        barrier = answer(hostvars, guest, "workload_barrier")
        if barrier is None:
            raise AnsibleFilterError(f"{guest} did not come to the barrier")
        available[guest] = barrier["available_bytes"]
    least = min(available, key=available.__getitem__)
    size_mib = available[least] // MIB - reserve_mib
    if size_mib <= 0:
        raise AnsibleFilterError(
            f"guest_reserve_mib is {reserve_mib}, and {least} has only "
            f"{available[least] // MIB} MiB available: lower the reserve or raise guest_memory_mib"
        )
    return size_mib * MIB


def workload_reports(hostvars: Mapping[str, Any], guests: Sequence[str]) -> dict[str, Any]:
    """Return guest -> filled_bytes, digest, fill_seconds, seed; empty where nothing was filled."""
    reports = {guest: answer(hostvars, guest, "workload_start") for guest in guests}
    return {guest: {name: report[name] for name in ("filled_bytes", "digest", "fill_seconds", "seed")}
            for guest, report in reports.items() if report}


def workload_verdicts(
    hostvars: Mapping[str, Any], guests: Sequence[str], since: str = "workload_start"
) -> dict[str, Any]:
    """Return guest -> filled_bytes, digest_before, digest_after, intact; empty where nothing was filled.

    `since` names the register of the digest before: that of the fill, or workload_diverge.
    """
    verdicts = {}
    for guest in guests:
        before = answer_or_silence(hostvars, guest, since)
        after = answer_or_silence(hostvars, guest, "workload_verify")
        if before and after:
            verdicts[guest] = {"filled_bytes": after["filled_bytes"], "digest_before": before["digest"],
                               "digest_after": after["digest"], "intact": before["digest"] == after["digest"]}
    return verdicts


def workload_probes(
    hostvars: Mapping[str, Any], guests: Sequence[str], register: str = "workload_probe"
) -> dict[str, Any]:
    """Return guest -> what its probe measured (PROBES), None for a guest that gave no answer.

    With the register workload_diverge: the same measures while the guest's pages diverged.
    """
    seen = {guest: answer_or_silence(hostvars, guest, register) for guest in guests}
    return {guest: probe and {name: probe[name] for name in PROBES} for guest, probe in seen.items()}


def workload_divergences(hostvars: Mapping[str, Any], guests: Sequence[str]) -> dict[str, Any]:
    """Return guest -> PROBES, written_bytes, seconds, digest; None for a guest that gave no answer."""
    return {guest: answer_or_silence(hostvars, guest, "workload_diverge") for guest in guests}


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"workload_fill_bytes": workload_fill_bytes, "workload_reports": workload_reports,
                "workload_verdicts": workload_verdicts, "workload_probes": workload_probes,
                "workload_divergences": workload_divergences}

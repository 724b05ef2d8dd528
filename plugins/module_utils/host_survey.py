"""A hypervisor as it is, and each virtual machine on it; nothing is changed. Standard library only."""

from __future__ import annotations

import time
from typing import Any

from ansible.module_utils import virtual_machines
from ansible.module_utils.ksm_probe import (
    ProbeError,
    Roots,
    find_ksmd,
    host_cpu_seconds,
    ksm_counters,
    meminfo,
    other_mergeable,
    parse_stat,
    per_cpu_free_pages,
    pressure,
    read_required,
    tuners,
    understood,
    vmstat,
)


def survey(roots: Roots) -> dict[str, Any]:
    """Read a host.

    Returns: `observed` of a survey's record (analysis/records/survey.py) without its census. What this kernel
        or this place does not tell is None: KSM's counters without CONFIG_KSM, ksmd in a container.

    Raises: ProbeError where something that every host has can't be read, or another user's process.
    """
    begin = time.monotonic()
    machines = [virtual_machines.read(pid, words, roots) for pid, words in virtual_machines.find(roots)]
    found = [machine for machine in machines if machine is not None]
    has_ksm = roots.ksm.is_dir()
    uptime = roots.proc / "uptime"
    with understood(uptime):
        uptime_seconds = float(read_required(uptime).split()[0])
    observed = {
        "boot_id": read_required(roots.proc / "sys/kernel/random/boot_id").strip(),
        "uptime_seconds": uptime_seconds,
        "meminfo": meminfo(roots),
        "vmstat": vmstat(roots),
        "ksm": ksm_counters(roots) if has_ksm else None,
        "ksmd_cpu_seconds": _ksmd_cpu_seconds(roots) if has_ksm else None,
        "cpu_seconds": host_cpu_seconds(roots),
        "psi": pressure(roots),
        "per_cpu_free_pages": per_cpu_free_pages(roots),
        "machines": found,
        # A machine that has been started meanwhile is none of the others.
        "other_mergeable": other_mergeable([pid for pid, _words in virtual_machines.find(roots)], roots),
        "tuners": tuners(roots),
    }
    return {**observed, "seconds": time.monotonic() - begin}


def _ksmd_cpu_seconds(roots: Roots) -> float | None:
    try:
        stat = parse_stat(read_required(find_ksmd(roots)))
    except ProbeError:
        return None  # a container does not show the host's threads
    return float(stat.cpu_seconds)

#!/usr/bin/python3
"""Ansible module: what the pages of all guests hold, counted at one instant."""

from __future__ import annotations

DOCUMENTATION = r"""
module: census
short_description: Count equal pages within and between the guests of a KSM host
description:
  - Stops ksmd where it runs (O(sys_root)/kernel/mm/ksm/run becomes 0, and 1 again afterwards) and pauses the
    guests through libvirt, hashes every resident page of their mergeable memory (VmFlags mg), looks which of
    them are on frames that KSM has merged, reads KSM's counters, lets all run again and counts equal hashes.
    Nothing of the guests is changed, and merged pages stay merged.
  - Hashes are xxh3_64 with a random seed that is forgotten; they never leave this host's memory, and contents
    are not kept either. The result has numbers only.
  - A guest that was paused before stays paused. The others, and ksmd, run again whatever happens, by a second
    process if this one is killed outright.
options:
  domains:
    description: Guest name to libvirt domain name; empty means every running guest of this testbed.
    type: dict
    default: {}
  uri:
    description: The libvirt connection.
    type: str
    default: qemu:///system
  processes:
    description: Processes that read; 0 means one for each CPU.
    type: int
    default: 0
  progress_path:
    description: File that takes a line for each step; whoever waits makes it and sets its access time.
    type: path
    default: ""
  patience_seconds:
    description: Let the guests run again and end when that access time has been the same for so long.
    type: float
    default: 60
  sys_root:
    description: The folder /sys, or a recorded one.
    type: path
    default: /sys
  run_root:
    description: The folder /run, or another one.
    type: path
    default: /run
author: KSM testbed
"""

EXAMPLES = r"""
- name: Count the equal pages of two guests
  census:
    domains:
      guest01: ksm-testbed-guest01
      guest02: ksm-testbed-guest02
"""

RETURN = r"""
observed:
  description: The census as in analysis/records/models.py, CensusObserved.
  type: dict
  returned: success
provenance:
  description: Kernel, CPU, distribution, QEMU, libvirt, THP and KSM settings as read back.
  type: dict
  returned: success
recorded_at:
  description: The host's UTC time at the instant that was counted.
  type: str
  returned: success
monotonic_seconds:
  description: The host's monotonic clock at that time.
  type: float
  returned: success
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible.module_utils.ksm_probe import (
    ProbeError,
    Roots,
    domain_pid,
    ksm_counters,
    parse_ksm_stat,
    provenance,
    read_optional,
    read_required,
)
from ansible.module_utils.names import guest_of
from ansible.module_utils.progress import PATIENCE_SECONDS, Progress, ProgressError
from ansible.module_utils.stopping import ReadProgress, Stopped, stop_signals_raise

MISSING = []
try:
    import libvirt
    from ansible.module_utils.guest_pause import (
        Guardian,
        GuestError,
        KsmdStopped,
        Pause,
        connected,
    )
except ImportError:
    MISSING.append("libvirt")
try:
    from ansible.module_utils.page_census import (
        CensusError,
        Layout,
        Reader,
        Reading,
        parse_smaps,
    )
    from ansible.module_utils.page_tally import (
        LARGEST_CONTENTS,
        Tally,
        merged,
        merged_zero_pages,
        pages,
        tally,
    )
except ImportError as error:
    MISSING.append(str(error.name))


@dataclass(frozen=True)
class Guest:
    """A guest that is counted."""

    name: str
    domain: str
    pid: int


def find_guests(connection: Any, domains: Mapping[str, str], roots: Roots) -> list[Guest]:
    """The guests by name, or all running ones of this testbed, in the order of their names."""
    wanted = dict(domains)
    if not wanted:
        for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
            guest = guest_of(domain.XMLDesc())
            if guest is not None:
                wanted[guest] = domain.name()
    if not wanted:
        raise GuestError(
            "no guest of this testbed runs: start some that stay, with "
            "`ansible-playbook playbooks/experiment.yml -e focus=1 -e keep_guests=true`"
        )
    return [Guest(name, wanted[name], domain_pid(wanted[name], roots)) for name in sorted(wanted)]


def layout_of(guest: Guest, roots: Roots) -> Layout:
    """The guest's mergeable memory; GuestError where it has none."""
    layout = parse_smaps(read_required(roots.proc / str(guest.pid) / "smaps"))
    if not layout.areas:
        raise GuestError(
            f"domain {guest.domain} has no memory that KSM may merge (no mapping with the VmFlag mg): "
            "guest memory must be private and anonymous, without nosharepages"
        )
    return layout


def take(params: dict[str, Any], roots: Roots) -> dict[str, Any]:
    """Take the census; the module's result."""
    guardian = Guardian(params["uri"], roots)
    try:
        with connected(params["uri"]) as connection, stop_signals_raise():
            return count(connection, params, roots, guardian)
    finally:
        guardian.dismiss()


def count(connection: Any, params: dict[str, Any], roots: Roots, guardian: Guardian) -> dict[str, Any]:
    """Stop ksmd, pause, read, let run again, count."""
    guests = find_guests(connection, params["domains"], roots)
    host = provenance(roots)
    areas = [layout_of(guest, roots) for guest in guests]
    progress = Progress(params["progress_path"], params["patience_seconds"])
    reads = ReadProgress(progress, sum(layout.mergeable_bytes for layout in areas))
    processes = params["processes"] or len(os.sched_getaffinity(0))
    pids = [guest.pid for guest in guests]
    ksmd, pause = (
        KsmdStopped(roots, guardian),
        Pause(connection, {guest.name: guest.domain for guest in guests}, guardian),
    )
    with Reader(pids, areas, processes=processes, close=guardian.writer) as reader:
        with ksmd, pause:
            recorded_at, monotonic_seconds = datetime.now(UTC), time.monotonic()
            layouts, ksm_stats = [], []
            for guest, before in zip(guests, areas, strict=True):
                layout = layout_of(guest, roots)
                stat = read_optional(roots.proc / str(guest.pid) / "ksm_stat")
                if layout.areas != before.areas:
                    raise GuestError(
                        f"domain {guest.domain} got or lost memory just now: take the census again"
                    )
                layouts.append(layout)
                ksm_stats.append(None if stat is None else parse_ksm_stat(stat))
            ksm = {**ksm_counters(roots), "run": ksmd.run_before}
            reading = reader.read(reads.read)
            ksmd.check()
        progress.say(f"{len(guests)} guests run again after a pause of {pause.seconds:.1f} s")
    begin = time.monotonic()
    equal = tally([counted.hashes for counted in reading.counted], reading.known["zero"])
    seen = {
        guest.name: {
            "pid": guest.pid,
            "was_paused": pause.was_paused(guest.name),
            "mergeable_bytes": layout.mergeable_bytes,
            **pages(counted.zero_mapped_pages, ksm_stat, len(counted.hashes), zeros),
            "distinct_pages": distinct,
            "swapped_pages": counted.swapped_pages,
            "ksm_stat": ksm_stat,
        }
        for guest, layout, ksm_stat, counted, zeros, distinct in zip(
            guests, layouts, ksm_stats, reading.counted, equal.zero_pages, equal.distinct_pages, strict=True
        )
    }
    by_ksm = merged(reading.counted)
    # Then its zero pages are not told from those that a guest only read.
    uncounted = ksm["ksm_zero_pages"] is None and host["ksm_knobs"].get("use_zero_pages") == 1
    return {
        "observed": {
            "guests": seen,
            "contents": {
                "guests": [held for held, _, _ in equal.contents],
                "copies": [copies for _, copies, _ in equal.contents],
                "contents": [number for _, _, number in equal.contents],
            },
            "largest_contents": largest_contents(
                equal, reading, [guest["zero_pages"] for guest in seen.values()]
            ),
            "shared_contents": [list(row) for row in equal.shared],
            "ksm": ksm,
            "merged": {
                "mapped_pages": by_ksm.mapped_pages,
                "frames": by_ksm.frames,
                "zero_pages": None
                if uncounted
                else sum(
                    merged_zero_pages(counted.zero_mapped_pages, ksm_stat)
                    for counted, ksm_stat in zip(reading.counted, ksm_stats, strict=True)
                ),
            },
            "pause_seconds": pause.seconds,
            "read_seconds": reading.seconds,
            "count_seconds": time.monotonic() - begin,
            "bytes_read": reading.bytes_read,
            "processes": reading.processes,
        },
        "provenance": host,
        "recorded_at": recorded_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "monotonic_seconds": monotonic_seconds,
    }


def largest_contents(equal: Tally, reading: Reading, zero_pages: list[int]) -> list[dict[str, Any]]:
    """The contents with most copies, and of what origin each is, as far as that is known."""
    zero = (sum(zero_pages), sum(pages > 0 for pages in zero_pages), reading.known["zero"])
    kinds = {content: kind for kind, content in reading.known.items()}
    largest = sorted((zero, *equal.largest), reverse=True)[:LARGEST_CONTENTS]
    return [
        {"copies": copies, "guests": held_by, "kind": kinds.get(content, "other")}
        for copies, held_by, content in largest
        if copies
    ]


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "domains": {"type": "dict", "default": {}},
            "uri": {"type": "str", "default": "qemu:///system"},
            "processes": {"type": "int", "default": 0},
            "progress_path": {"type": "path", "default": ""},
            "patience_seconds": {"type": "float", "default": PATIENCE_SECONDS},
            "sys_root": {"type": "path", "default": "/sys"},
            "run_root": {"type": "path", "default": "/run"},
        },
        supports_check_mode=True,
    )
    if MISSING:
        module.fail_json(
            msg=missing_required_lib(MISSING[0], reason="to take a census; the role census installs it")
        )
    if module.params["processes"] < 0:
        module.fail_json(
            msg=f"processes is {module.params['processes']}: allowed is 0 (one for each CPU) or more"
        )
    if module.check_mode:
        module.exit_json(changed=False, msg="would pause the guests for a moment and count their pages")
    # Other processes' memory is readable at the real /proc alone.
    roots = Roots(sys=Path(module.params["sys_root"]), run=Path(module.params["run_root"]))
    try:
        module.exit_json(changed=False, **take(module.params, roots))
    except (ProbeError, ProgressError, GuestError, CensusError) as error:
        module.fail_json(msg=str(error))
    except libvirt.libvirtError as error:
        module.fail_json(msg=f"libvirt refused: {error}")
    except Stopped as error:
        module.fail_json(msg=f"stopped by {error}; the guests run again")


if __name__ == "__main__":
    main()

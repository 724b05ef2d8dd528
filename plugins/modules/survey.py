#!/usr/bin/python3
"""Ansible module: a KSM host as it is, with every virtual machine on it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: survey
short_description: Read a hypervisor, its KSM and every virtual machine on it, and change nothing
description:
  - Reads /proc and /sys of the host and of each QEMU process, libvirt's or not, kvm or tcg. No setting is
    changed, nothing is installed, no lease is taken, and KSM is neither started nor stopped.
  - With O(census=true) every resident page of memory that KSM may merge (VmFlags mg) is read through
    /proc/PID/mem and hashed, xxh3_64 with a random seed. Hashes end with the module; the result has numbers
    only. Machines run on; what changed meanwhile is counted by looking at one page in 64 before and after.
  - Needs root, to read other users' processes; the census needs C(python3-numpy) and C(python3-xxhash),
    O(pause) also C(python3-libvirt).
options:
  census:
    description: Count equal pages, too.
    type: bool
    default: false
  sample:
    description: The census counts one in so many of all contents, each with all of its copies; 1 counts all.
    type: int
    default: 1
  cpu_percent:
    description: Of one CPU, what the census takes at most, at nice 19 and idle I/O priority; 200 is two CPUs.
    type: int
    default: 100
  pause:
    description: Pause the machines through libvirt while they are read; all of them must be libvirt's.
    type: bool
    default: false
  uri:
    description: The libvirt connection, for O(pause).
    type: str
    default: qemu:///system
  seed:
    description:
      - Of the hashes, up to 16 hexadecimal digits that all hosts of a survey are given, so that what they
        hold can be compared; the result then has a sketch, hashes of one in some 256 contents. Whoever asks
        forgets both.
      - Empty is a seed that is forgotten on the host.
    type: str
    default: ""
  progress_path:
    description: File that takes a line for each step; whoever waits makes it and sets its access time.
    type: path
    default: ""
  patience_seconds:
    description: End when that access time has been the same for so long.
    type: float
    default: 60
  proc_root:
    description: The folder /proc, or a recorded one.
    type: path
    default: /proc
  sys_root:
    description: The folder /sys, or a recorded one.
    type: path
    default: /sys
  run_root:
    description: The folder /run, or a recorded one.
    type: path
    default: /run
author: KSM testbed
"""

EXAMPLES = r"""
- name: Survey this host
  survey:

- name: Count a sixteenth of all page contents, too, with half a CPU
  survey:
    census: true
    sample: 16
    cpu_percent: 50
"""

RETURN = r"""
observed:
  description: The host, its machines and the census as in analysis/records/survey.py, SurveyObserved.
  type: dict
  returned: success
provenance:
  description: Kernel, CPU, distribution, QEMU, libvirt, THP and KSM settings as read.
  type: dict
  returned: success
sketch:
  description:
    - With O(census) and O(seed) of each machine in C(machines) by its process one in C(one_in) of its
      contents, as hashes of 64 bits, little-endian, in base64; else null.
  type: dict
  returned: success
recorded_at:
  description: The host's UTC time before it was read.
  type: str
  returned: success
monotonic_seconds:
  description: The host's monotonic clock at that time.
  type: float
  returned: success
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible.module_utils.host_survey import survey
from ansible.module_utils.ksm_probe import ProbeError, Roots, provenance, read_optional
from ansible.module_utils.progress import PATIENCE_SECONDS, Progress, ProgressError
from ansible.module_utils.stopping import ReadProgress, Stopped, stop_signals_raise
from ansible.module_utils.virtual_machines import MERGEABLE

MISSING = {}
try:
    from ansible.module_utils.page_census import CensusError
    from ansible.module_utils.survey_census import Taken, become_idle, take
except ImportError as error:
    MISSING["census"] = str(error.name)

    class CensusError(Exception):  # type: ignore[no-redef]
        """There is none without the packages."""


try:
    from ansible.module_utils.guest_pause import Guardian, GuestError, Pause, connected
except ImportError as error:
    MISSING["pause"] = str(error.name)

    class GuestError(Exception):  # type: ignore[no-redef]
        """There is none without the package."""


PACKAGES = {"census": "python3-numpy and python3-xxhash", "pause": "python3-libvirt"}


@contextmanager
def paused(machines: list[dict[str, Any]], params: dict[str, Any], roots: Roots) -> Iterator[None]:
    """All machines paused through libvirt, and running again afterwards whatever happens."""
    strangers = [str(machine["pid"]) for machine in machines if not machine["libvirt"]]
    if strangers:
        raise GuestError(
            f"pause: {', '.join(strangers)} are no domains of libvirt, so nobody can pause them here; "
            "leave pause out, and what moves meanwhile is counted"
        )
    guardian = Guardian(params["uri"], roots)
    try:
        domains = {machine["name"]: machine["name"] for machine in machines}
        with (
            connected(params["uri"]) as connection,
            stop_signals_raise(),
            Pause(connection, domains, guardian),
        ):
            yield
    finally:
        guardian.dismiss()


@contextmanager
def running() -> Iterator[None]:
    """Nobody is paused."""
    yield


def count(params: dict[str, Any], machines: list[dict[str, Any]], roots: Roots) -> Taken | None:
    """The census and its sketch; None where no machine's memory can be merged.

    Machines that end while they are read are taken out of those given, and the others are read again.
    """
    become_idle()
    progress = Progress(params["progress_path"], params["patience_seconds"])
    begin = time.monotonic()
    while counted := [machine for machine in machines if machine["memory_kind"] == MERGEABLE]:
        try:
            taken = take(
                counted,
                roots,
                one_in=params["sample"],
                cpu_percent=params["cpu_percent"],
                progress=lambda total_bytes: ReadProgress(progress, total_bytes).read,
                pause=paused(counted, params, roots) if params["pause"] else running(),
                seed=int(params["seed"], 16) if params["seed"] else None,
            )
        except (CensusError, ProbeError):
            # Nobody may have waited yet for one that has ended: then its files are there, and empty.
            ended = [m for m in counted if not read_optional(roots.proc / str(m["pid"]) / "cmdline")]
            if not ended:
                raise
            progress.say(f"{len(ended)} machines ended meanwhile; the others are read again")
            for machine in ended:
                machines.remove(machine)
        else:
            times = {"paused": params["pause"], "seconds": time.monotonic() - begin}
            return taken._replace(census={**taken.census, **times})
    return None


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "census": {"type": "bool", "default": False},
            "sample": {"type": "int", "default": 1},
            "cpu_percent": {"type": "int", "default": 100},
            "pause": {"type": "bool", "default": False},
            "seed": {"type": "str", "default": "", "no_log": True},
            "uri": {"type": "str", "default": "qemu:///system"},
            "progress_path": {"type": "path", "default": ""},
            "patience_seconds": {"type": "float", "default": PATIENCE_SECONDS},
            "proc_root": {"type": "path", "default": "/proc"},
            "sys_root": {"type": "path", "default": "/sys"},
            "run_root": {"type": "path", "default": "/run"},
        },
        supports_check_mode=True,
    )
    params = module.params
    for name in ("sample", "cpu_percent"):
        if params[name] < 1:
            module.fail_json(msg=f"{name} is {params[name]}: allowed is a whole number from 1")
    if not re.fullmatch("[0-9a-f]{0,16}", params["seed"]):
        module.fail_json(msg="seed is something else than up to 16 hexadecimal digits")
    for part, packages in PACKAGES.items():
        if params["census"] and params[part] and part in MISSING:
            module.fail_json(
                msg=missing_required_lib(
                    MISSING[part],
                    reason=f"for {part}=true; the survey installs nothing: apt install "
                    f"{packages} on the host does",
                )
            )
    roots = Roots(*(Path(params[name]) for name in ("proc_root", "sys_root", "run_root")))
    try:
        host = provenance(roots)
        recorded_at, monotonic_seconds = datetime.now(UTC), time.monotonic()
        observed = survey(roots)
        taken = count(params, observed["machines"], roots) if params["census"] else None
        observed["census"] = taken and taken.census
    except (ProbeError, ProgressError, CensusError, GuestError) as error:
        module.fail_json(msg=str(error))
    except Stopped as error:
        module.fail_json(msg=f"stopped by {error}; every machine runs")
    module.exit_json(
        changed=False,
        sketch=taken and taken.sketch,
        observed=observed,
        provenance=host,
        recorded_at=recorded_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        monotonic_seconds=monotonic_seconds,
    )


if __name__ == "__main__":
    main()

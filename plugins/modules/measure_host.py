#!/usr/bin/python3
"""Read what a KSM host and its guests use."""

from __future__ import annotations

DOCUMENTATION = r"""
module: measure_host
short_description: Read what a KSM host and its guests use at this moment
description:
  - Reads /proc, /sys and libvirt's process ids; changes nothing but for O(drop_caches).
  - A required counter that is missing is an error that names it, an optional one is null.
options:
  domains:
    description: Guest name to libvirt domain name; each must be running.
    type: dict
    default: {}
  drop_caches:
    description: Drop the host's clean caches right before it is read, as C(sysctl vm.drop_caches=3) does.
    type: bool
    default: false
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
- name: Read the host and two guests
  measure_host:
    domains:
      guest01: ksm-guest01
      guest02: ksm-guest02
"""

RETURN = r"""
observed:
  description:
    - The host, its guests by name, and anything else on the host that offers memory to KSM.
    - C(mergeable_bytes) of a guest is the part of its memory that KSM may merge (VmFlags mg).
  type: dict
  returned: success
provenance:
  description: Kernel, CPU, distribution, QEMU, libvirt, THP and KSM settings as read back.
  type: dict
  returned: success
recorded_at:
  description: The host's UTC time.
  type: str
  returned: success
monotonic_seconds:
  description: The host's monotonic clock.
  type: float
  returned: success
"""

import time
from datetime import UTC, datetime
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.guest_channel import why_stopped
from ansible.module_utils.ksm_probe import ProbeError, Roots, drop_caches, observe, provenance


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "domains": {"type": "dict", "default": {}},
            "drop_caches": {"type": "bool", "default": False},
            "proc_root": {"type": "path", "default": "/proc"},
            "sys_root": {"type": "path", "default": "/sys"},
            "run_root": {"type": "path", "default": "/run"},
        },
        supports_check_mode=True,
    )
    roots = Roots(*(Path(module.params[name]) for name in ("proc_root", "sys_root", "run_root")))
    drops = module.params["drop_caches"]
    try:
        for guest, domain in module.params["domains"].items():
            if why := why_stopped(domain, roots.run / "libvirt/qemu"):
                raise ProbeError(f"{guest} does not run: {why}")
        # Before the caches are dropped: it runs programs, whose files would come back.
        host = provenance(roots)
        if drops and not module.check_mode:
            drop_caches(roots)
        recorded_at = datetime.now(UTC)
        monotonic_seconds = time.monotonic()
        observed = observe(module.params["domains"], roots)
    except ProbeError as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=drops,
        observed=observed,
        provenance=host,
        recorded_at=recorded_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        monotonic_seconds=monotonic_seconds,
    )


if __name__ == "__main__":
    main()

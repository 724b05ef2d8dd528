#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Put this host right, and keep on it what is owed until it is done."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_put_right
short_description: Put this host right, and keep on it what is owed until it is done
description:
  - For the action put_right, which makes the steps. They are kept beside the lease before the first is taken,
    so that the lease's holder takes them where the controller never comes back.
options:
  steps:
    description: JSON, as plugins/module_utils/putting_right.py takes them; too long to be shown.
    type: str
    required: true
  begins:
    description: A run begins, so that all of it stays owed.
    type: bool
    default: false
  directory: {description: the lease's folder, type: path, default: /run/ksm-testbed-lease}
attributes:
  check_mode:
    support: full
"""

EXAMPLES = r"""
- name: Remove the guests
  host_put_right:
    steps: '[{"name": "the guests", "needs": [], "modules": ["#!/usr/bin/python3..."]}]'
"""

RETURN = r"""
left: {description: what is not put right, type: list, elements: str, returned: always}
"""

import json
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lease import DIRECTORY, Lease, write
from ansible.module_utils.putting_right import put_right


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "steps": {"type": "str", "required": True, "no_log": True},
            "begins": {"type": "bool", "default": False},
            "directory": {"type": "path", "default": DIRECTORY},
        },
        supports_check_mode=True,
    )
    params = module.params
    owed = Lease(Path(params["directory"])).owed
    steps = json.loads(params["steps"])
    try:
        if not module.check_mode:
            write(owed, {"steps": steps})
        changed, left, warnings = put_right(steps)
        if not (module.check_mode or params["begins"]):
            # What is left is told, and somebody is there to mend it.
            owed.unlink(missing_ok=True)
    except OSError as error:
        module.fail_json(msg=f"{owed} cannot be kept: {error.strerror}", left=[])
    else:
        for text in warnings:
            module.warn(text)
        module.exit_json(changed=changed, left=left)


if __name__ == "__main__":
    main()

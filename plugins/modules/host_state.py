#!/usr/bin/python3
"""Ansible module: the state of the host before the first change, and what differs from it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_state
short_description: Read the host's state, keep it before the first change, and name what differs from it
description:
  - The state is what the testbed may change, each item by its name. KSM and THP settings, QEMU and other
    processes, libvirt's domains, the testbed's files, mounts, cgroups, listening sockets, access to /dev/kvm,
    packages and users.
  - It is read from files; no daemon is asked, so none is started.
options:
  state:
    description:
      - V(read) only reads.
      - V(recorded) keeps the state in O(record), in place of that of a former run. Where a run has left
        something behind, what was kept stays, since it is from before that.
      - V(compared) compares with what is kept, and fails where something is left that is the testbed's, or a
        setting is another. What stays by design, and what somebody else has changed, is named.
    type: str
    choices: [read, recorded, compared]
    default: read
  run: {description: "V(recorded): the run before which this is, for the message", type: str, default: ""}
  record: {description: where the state is kept, type: path, default: /var/lib/ksm-testbed/host-state.json}
  root: {description: "the file system, for tests", type: path, default: /}
"""

EXAMPLES = r"""
- name: Keep the state before the first change
  host_state:
    state: recorded
"""

RETURN = r"""
host: {description: the state now, type: dict, returned: state is read}
left: {description: what is left or was not restored, type: list, returned: state is compared}
stays: {description: what stays by design, type: list, returned: state is compared}
other: {description: what somebody else changed, type: list, returned: state is compared}
msg: {description: all of it in one paragraph, type: str, returned: state is not read}
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.host_state import SCHEMA_VERSION, differences, read_state, told, traces
from ansible.module_utils.private_file import put


def load(path: Path) -> tuple[dict[str, Any] | None, str]:
    """Return what is kept, and why it can't be used; both empty where nothing is kept."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"it is of version {kept['schema_version']}")
        kept["boot_id"], kept["recorded_at"], kept["run"], kept["settings"]
    except FileNotFoundError:
        return None, ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        return None, f"{path} cannot be used ({error})"
    return kept, ""


def keep(path: Path, run: str, now: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Keep the state, unless a run has left something behind."""
    found = traces(now)
    kept, _ = load(path)
    if found:
        older = kept is not None and kept["boot_id"] == now["boot_id"]
        what = f"that of before the run that left it is {'kept' if older else 'not known'}"
        return {"changed": False, "msg": f"something of a run is on this host ({found[0]}): {what}"}
    if not check_mode:
        content = {**now, "run": run, "recorded_at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"}
        path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        put(path, json.dumps(content))
    # That it is taken anew before each run is no change of the host.
    first = kept is None or kept["boot_id"] != now["boot_id"]
    return {"changed": first, "msg": f"the state of this host is kept in {path}"}


def compare(path: Path, now: dict[str, Any]) -> dict[str, Any]:
    """Hold the state against what is kept."""
    kept, wrong = load(path)
    if kept is None or kept["boot_id"] != now["boot_id"]:
        why = wrong or "no state of it was kept before a first change"
        if kept is not None:
            why = f"it has booted since its state was kept at {kept['recorded_at']}, which undid all settings"
        left = traces(now)
        remains = f"of the testbed there still is: {'; '.join(left)}" if left else "nothing of a run is on it"
        text = f"this host can't be compared, {why}; {remains}."
        return {"left": left, "stays": [], "other": [], "msg": text}
    found = differences(kept, now)
    kinds = {kind: [one.text for one in found if one.kind == kind] for kind in ("left", "stays", "other")}
    return {**kinds, "msg": told(kept, found)}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["read", "recorded", "compared"], "default": "read"},
            "run": {"type": "str", "default": ""},
            "record": {"type": "path", "default": "/var/lib/ksm-testbed/host-state.json"},
            "root": {"type": "path", "default": "/"},
        },
        supports_check_mode=True,
    )
    params = module.params
    path = Path(params["record"])
    try:
        now = read_state(Path(params["root"]))
        if params["state"] == "read":
            module.exit_json(changed=False, host=now)
        if params["state"] == "recorded":
            module.exit_json(**keep(path, params["run"], now, module.check_mode))
        answer = compare(path, now)
    except (OSError, ValueError) as error:
        module.fail_json(msg=f"the state of this host can't be read or kept: {error}")
    if answer["left"]:
        module.fail_json(**answer)
    module.exit_json(changed=False, **answer)


if __name__ == "__main__":
    main()

#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Take this host's lease for a run, see that the run still has it, or end it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_lease
short_description: Take this host's lease for a run, see that the run still has it, or end it
description:
  - For analysis/progress/lease.py on the controller, which renews what was taken.
  - The lease is held by a process on this host, a transient unit where systemd is PID 1, else in a session of
    its own. What it does, and the files of a lease, see plugins/module_utils/lease.py.
options:
  state:
    description:
      - V(held) takes the lease, or only looks where O(token) has it. It waits for one that is being ended.
      - V(ended) ends the lease of O(token), whoever asks, and waits until what that run owes is put right.
      - V(read) only looks; as does check mode.
    type: str
    choices: [held, ended, read]
    default: held
  token: {description: the run, type: str, required: true, no_log: false}
  owner:
    description: For V(held) by, run, controller and pid, which a second comer is told; for V(ended) by.
    type: dict
    default: {}
  new:
    description: For V(held), take a lease that this run has not got; else that is a failure.
    type: bool
    default: true
  seconds: {description: so long without a renewal and the lease ends, type: float, default: 180}
  directory: {description: the lease's folder, type: path, default: /run/ksm-testbed-lease}
  run_root: {description: for tests, type: path, default: /run}
  wait_seconds: {description: the longest wait for a lease that is being ended, type: float, default: 600}
attributes:
  check_mode:
    support: full
"""

EXAMPLES = r"""
- name: Take the lease
  host_lease:
    token: 0123456789abcdef
    owner: {by: me@controller, run: experiment, pid: 4711}
"""

RETURN = r"""
taken: {description: the lease is new, type: bool, returned: success}
owner: {description: who holds it, type: dict, returned: somebody does}
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible.module_utils import lease as lease_module
from ansible.module_utils import progress as progress_module
from ansible.module_utils import putting_right as putting_right_module
from ansible.module_utils.background import start as start_in_background
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lease import DIRECTORY, Lease, read, write
from ansible.module_utils.private_file import own

UNIT = "ksm-testbed-lease"
START_SECONDS = 30.0
LOOK_SECONDS = 0.05
PROGRAM = (lease_module, progress_module, putting_right_module)
MAIN = "from ansible.module_utils.lease import main\n\nmain()\n"


class LeaseError(Exception):
    """The lease can't be had; the text is one sentence for the user, and the owner who has it."""

    def __init__(self, text: str, owner: dict[str, Any] | None = None) -> None:
        super().__init__(text)
        self.owner = owner or {}


def take(lease: Lease, owner: dict[str, Any], new: bool, run_root: Path, wait_seconds: float) -> bool:
    """Have the lease for this run; return whether it is new. Raises LeaseError and OSError."""
    token = owner["token"]
    if problem := own(lease.folder):
        raise LeaseError(problem)
    if lost := lease.loss(token):
        raise LeaseError(sentence_of_loss(lost))
    if lease.is_held():
        other = read(lease.owner)
        if other and "ending" not in other:
            if other["token"] == token:
                return False
            raise LeaseError(refusal(lease, other), other)
        if not wait_until(lambda: not lease.is_held(), wait_seconds):
            raise LeaseError(
                f"the run before this one ended, and this host is not put right after {wait_seconds:g} s: "
                f"look at the process that {lease.owner} names"
            )
        return take(lease, owner, new, run_root, wait_seconds)
    # Else its holder died.
    is_new: bool = read(lease.owner).get("token") != token
    if is_new and not new:
        raise LeaseError("this run has lost its lease, and another had this host since; start it anew")
    lease.ended.unlink(missing_ok=True)
    start(lease, owner, run_root)
    return is_new


def sentence_of_loss(lost: dict[str, Any]) -> str:
    """What a run is told that has lost its lease."""
    left = lost.get("left")
    outcome = (
        f"what it left could not be put right: {'; '.join(left)}; run `make teardown`"
        if left
        else "this host was put right then"
        if left is not None
        else "this host is being put right"
    )
    return f"this run has lost its lease at {lost['at']}, since {lost['why']}, and {outcome}; start it anew"


def refusal(lease: Lease, other: dict[str, Any]) -> str:
    """What a second comer is told."""
    seconds = f"{other['seconds']:g} s"
    try:
        heard = f"{max(0, time.time() - lease.renewal(other['token']).stat().st_atime):.0f} s ago"
    except OSError:
        heard = "long ago"
    return (
        f"this host is in use by {other['by']} since {other['since']}: {other['run']}, process "
        f"{other['pid']} there, last heard of {heard}; nothing was changed. Wait for its end, press Ctrl-C "
        'there, or end it from here, its guests with it: `make teardown ARGS="-e lease_end=true"`. Where its '
        f"controller is gone this host puts itself right {seconds} after it was last heard of."
    )


def start(lease: Lease, owner: dict[str, Any], run_root: Path) -> None:
    """Start a holder and wait until it holds. Raises LeaseError."""
    token = owner["token"]
    program = lease.program(token)
    modules = program / "ansible/module_utils"
    modules.mkdir(mode=0o700, parents=True, exist_ok=True)
    for package in (program / "ansible", modules):
        (package / "__init__.py").touch()
    (program / "__main__.py").write_text(MAIN)
    for module in PROGRAM:
        name = module.__name__
        # From a folder as well as from the archive that Ansible ships
        (modules / f"{name.rpartition('.')[2]}.py").write_text(module.__loader__.get_source(name))
    command = [sys.executable, "-B", str(program), str(lease.folder), json.dumps(owner)]
    said = program / "said"
    former = read(lease.owner).get("holder_pid")
    with said.open("w") as output:
        # Where the unit is there already systemd starts its holder again by itself.
        start_in_background(
            command,
            unit=f"{UNIT}-{token}",
            description="The run that has this host for the KSM testbed",
            said=output,
            run_root=run_root,
            properties=["Restart=on-failure"],
        )

    def holds() -> dict[str, Any] | None:
        found = read(lease.owner)
        return found if found and found["holder_pid"] != former else None

    found = wait_until(holds, START_SECONDS)
    if not found:
        raise LeaseError(f"the lease's holder did not start: {said.read_text().strip() or 'it said nothing'}")
    if found["token"] != token:
        raise LeaseError(refusal(lease, found), found)


def end(lease: Lease, token: str, by: str, wait_seconds: float) -> bool:
    """End a run's lease and wait until its holder is gone; return whether it had one. Raises LeaseError."""
    if not lease.is_held() or read(lease.owner).get("token") != token:
        return False
    write(lease.ended, {"token": token, "why": f"{by} ended it", "at": lease_module.now()})
    lease.renewal(token).unlink(missing_ok=True)

    def gone() -> bool:
        other: str | None = read(lease.owner).get("token")
        return other != token

    if not wait_until(gone, wait_seconds):
        raise LeaseError(f"the lease was ended, and this host is not put right after {wait_seconds:g} s")
    return True


def wait_until(happened: Callable[[], Any], limit_seconds: float) -> Any:
    """What it says when it says something; what it says at last when the time is over."""
    deadline = time.monotonic() + limit_seconds
    while not (said := happened()) and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
    return said


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["held", "ended", "read"], "default": "held"},
            "token": {"type": "str", "required": True, "no_log": False},
            "owner": {"type": "dict", "default": {}},
            "new": {"type": "bool", "default": True},
            "seconds": {"type": "float", "default": 180},
            "directory": {"type": "path", "default": DIRECTORY},
            "run_root": {"type": "path", "default": "/run"},
            "wait_seconds": {"type": "float", "default": 600},
        },
        supports_check_mode=True,
    )
    params = module.params
    lease = Lease(Path(params["directory"]))
    token = params["token"]
    try:
        if params["state"] == "read" or module.check_mode:
            other = read(lease.owner) if lease.is_held() else {}
            if other and other["token"] != token:
                module.exit_json(changed=False, taken=False, owner=other, msg=refusal(lease, other))
            module.exit_json(changed=False, taken=False, owner=other)
        if params["state"] == "ended":
            changed = end(lease, token, params["owner"]["by"], params["wait_seconds"])
            module.exit_json(changed=changed, taken=False)
        owner = {**params["owner"], "token": token, "seconds": params["seconds"]}
        taken = take(lease, owner, params["new"], Path(params["run_root"]), params["wait_seconds"])
        module.exit_json(changed=taken, taken=taken, owner=read(lease.owner))
    except LeaseError as error:
        module.fail_json(msg=str(error), owner=error.owner)
    except OSError as error:
        module.fail_json(msg=f"the lease cannot be had: {error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()

#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Run the testbed's own daemon that sets KSM's pace, while a policy is on."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ksm_pacer
short_description: Start and stop the testbed's own daemon that sets KSM's pace
description:
  - The daemon is plugins/module_utils/ksm_pacer.py. It never starts KSM, and sets pages_to_scan and
    sleep_millisecs while somebody has it run.
  - It runs as the transient unit C(ksm-testbed-pacer) where systemd is PID 1, else in a session of its own.
  - One that is stopped has put its knobs back. What it said goes with it, and is returned.
options:
  state: {description: what it is to be, type: str, choices: [started, stopped], default: started}
  directory: {description: its files; only root reads them, type: path, default: /run/ksm-testbed-pacer}
  arguments: {description: "more of its arguments, for tests", type: list, elements: str, default: []}
  run_root: {description: "where systemd says that it is PID 1, for tests", type: path, default: /run}
attributes:
  check_mode:
    support: full
"""

EXAMPLES = r"""
- name: Start the daemon
  ksm_pacer:
    state: started
"""

RETURN = r"""
pid: {description: its process, type: int, returned: state is started}
said: {description: what it said, type: list, elements: str, returned: state is stopped}
"""

import os
import shutil
import signal
import sys
import time
from pathlib import Path

from ansible.module_utils import ksm_pacer
from ansible.module_utils.background import start as start_in_background
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.private_file import own

UNIT = "ksm-testbed-pacer"
# It stops between two looks.
LIMIT_SECONDS = 60.0
LOOK_SECONDS = 0.05


class DaemonError(Exception):
    """It does not start or stop; one sentence for the user."""


class Daemon:
    """The daemon's files in a folder, and its process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = folder / "ksm_pacer.py"
        self.lock = folder / "lock"
        self.log = folder / "said"

    def pid(self) -> int | None:
        """Its process, None where none runs."""
        pid: int | None = ksm_pacer.holder(self.lock)
        return pid

    def said(self) -> list[str]:
        return self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []

    def start(self, arguments: list[str], run_root: Path) -> int:
        """Start it, and return its process when it has begun. Raises DaemonError."""
        if problem := own(self.folder):
            raise DaemonError(problem)
        # From a folder as well as from the archive that Ansible ships
        self.program.write_text(ksm_pacer.__loader__.get_source(ksm_pacer.__name__), encoding="utf-8")
        command = [sys.executable, "-B", str(self.program), "--lock", str(self.lock), *arguments]
        with self.log.open("w", encoding="utf-8") as said:
            start_in_background(
                command,
                unit=UNIT,
                description="KSM's pace, set by the KSM testbed",
                said=said,
                run_root=run_root,
                properties=[f"StandardError=append:{self.log}"],
            )
        end = time.monotonic() + LIMIT_SECONDS
        while (pid := self.pid()) is None:
            words = " ".join(self.said()[-1:])
            # What it says when it has its lock is no reason why it does not start.
            if (words and self.pid() is None) or time.monotonic() > end:
                raise DaemonError(f"KSM's pace is not set: {words or 'the daemon did not start'}")
            time.sleep(LOOK_SECONDS)
        return pid

    def stop(self) -> None:
        """End it, and remove its files when its process has gone. Raises DaemonError."""
        end = time.monotonic() + LIMIT_SECONDS
        pid = self.pid()
        if pid is not None:
            os.kill(pid, signal.SIGTERM)
        while self.pid() is not None:
            if time.monotonic() > end:
                raise DaemonError(f"process {pid}, which sets KSM's pace, does not end: end it")
            time.sleep(LOOK_SECONDS)
        shutil.rmtree(self.folder)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["started", "stopped"], "default": "started"},
            "directory": {"type": "path", "default": "/run/ksm-testbed-pacer"},
            "arguments": {"type": "list", "elements": "str", "default": []},
            "run_root": {"type": "path", "default": "/run"},
        },
        supports_check_mode=True,
    )
    params = module.params
    daemon = Daemon(Path(params["directory"]))
    try:
        pid = daemon.pid()
        if params["state"] == "started":
            changed = pid is None
            if changed and not module.check_mode:
                pid = daemon.start(params["arguments"], Path(params["run_root"]))
            module.exit_json(changed=changed, pid=pid)
        changed = daemon.folder.exists()
        said = daemon.said()
        if changed and pid is None:
            module.warn(f"the daemon that sets KSM's pace had ended by itself: {' '.join(said[-1:])}")
        if changed and not module.check_mode:
            daemon.stop()
        module.exit_json(changed=changed, said=said)
    except DaemonError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"KSM's pace cannot be set: {error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()

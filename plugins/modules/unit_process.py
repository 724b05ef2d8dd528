#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Run what a systemd unit starts on a host where systemd is not PID 1."""

from __future__ import annotations

DOCUMENTATION = r"""
module: unit_process
short_description: Start and stop what a systemd unit starts, on a host without systemd
description:
  - Of the unit and its drop-ins C(ExecStart) and C(Type) are taken, which must be C(simple), C(exec) or
    C(forking); a unit that needs more of systemd than that, or has conditions, is refused. What it requires
    is not started.
  - Its processes are found again by C(INVOCATION_ID) in their environment, as systemd sets it, with a value
    that only this start has, and are ended with it. A daemon that writes over its environment is no case
    for this.
options:
  name: {description: the unit; needed to start it, type: str}
  state: {description: what it is to be, type: str, choices: [started, stopped], default: started}
  directory: {description: where it is kept what runs, type: path, default: /run/ksm-testbed-unit}
  places:
    description: where units are, the first that has it counts
    type: list
    elements: path
    default:
      - /etc/systemd/system
      - /usr/local/lib/systemd/system
      - /usr/lib/systemd/system
      - /lib/systemd/system
attributes:
  check_mode:
    support: full
"""

EXAMPLES = r"""
- name: Start ksmtuned
  unit_process:
    name: ksmtuned.service
"""

RETURN = r"""
pids: {description: its processes, type: list, elements: int, returned: state is started}
said: {description: what they said, type: list, elements: str, returned: state is stopped}
"""

import configparser
import json
import os
import shlex
import shutil
import signal
import subprocess
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from ansible.module_utils.background import session
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.private_file import own

MARK = "INVOCATION_ID"
# Of [Service]; ExecReload and ExecStop are not needed to start it, and to end its processes.
TAKEN = frozenset({"Type", "ExecStart", "ExecReload", "ExecStop", "PIDFile", "KillMode", "SyslogIdentifier"})
TYPES = ("simple", "exec", "forking")
BEGIN_SECONDS = 60.0
# As systemd gives it
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# systemd's own limit before it kills, and ours for what was killed
TERMINATE_SECONDS = 90.0
KILL_SECONDS = 10.0
LOOK_SECONDS = 0.05


class UnitError(Exception):
    """The unit does not start or stop; one sentence for the user."""


def command_of(name: str, places: list[Path]) -> tuple[list[str], bool]:
    """What a unit starts, and whether that forks what stays. Raises UnitError."""
    file = next((place / name for place in places if os.path.lexists(place / name)), None)
    if file is None:
        raise UnitError(f"{name} is not installed on this host: install its package")
    if not file.is_file() or not file.stat().st_size:
        raise UnitError(f"{name} is masked on this host by {file}: unmask it")
    unit = configparser.ConfigParser(
        interpolation=None, strict=False, delimiters=("=",), comment_prefixes=("#", ";")
    )
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    dropped = {path.name: path for place in reversed(places) for path in place.glob(f"{name}.d/*.conf")}
    try:
        unit.read([file, *(dropped[key] for key in sorted(dropped))], encoding="utf-8")
        service = dict(unit["Service"]) if unit.has_section("Service") else {}
        words = shlex.split(service.get("ExecStart", ""))
    except (configparser.Error, ValueError) as error:
        raise UnitError(f"{file} is no unit that can be read: {' '.join(str(error).split())}") from error
    kind = service.get("Type", "simple")
    asked = unit["Unit"] if unit.has_section("Unit") else {}
    more = sorted(set(service) - TAKEN) + [key for key in asked if key.startswith(("Condition", "Assert"))]
    if more or kind not in TYPES:
        raise UnitError(f"{file} has {more[0] if more else f'Type={kind}'}, which needs systemd as PID 1")
    if not words or not words[0].startswith("/") or any(mark in service["ExecStart"] for mark in "%$\\\n"):
        raise UnitError(f"{file} has ExecStart={' '.join(words)}, which needs systemd as PID 1")
    if not os.access(words[0], os.X_OK):
        raise UnitError(f"{file} starts {words[0]}, which is missing: install its package anew")
    return words, kind == "forking"


class Running:
    """What was started, as a folder keeps it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record = folder / "unit.json"
        self.log = folder / "said"

    @property
    def kept(self) -> dict[str, str]:
        """The unit's name and its mark; empty where none was started."""
        try:
            kept: dict[str, str] = json.loads(self.record.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return kept

    def said(self) -> list[str]:
        return (
            self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.exists() else []
        )

    def pids(self) -> list[int]:
        """Its processes, none where all have ended."""
        if not (mark := self.kept.get("mark")):
            return []
        text = f"{MARK}={mark}".encode()
        if found := marked(text):
            return found
        # What was forked or executed while /proc was read is not seen by one look.
        time.sleep(LOOK_SECONDS)
        return marked(text)

    def start(self, name: str, words: list[str], forks: bool) -> None:
        """Start it, and return when it runs. Raises UnitError."""
        if problem := own(self.folder):
            raise UnitError(problem)
        mark = uuid.uuid4().hex
        self.record.write_text(json.dumps({"name": name, "mark": mark}), encoding="utf-8")
        try:
            with self.log.open("w", encoding="utf-8") as said:
                leader = session(
                    words, said=said, environment={"PATH": SEARCH_PATH, "LANG": "C.UTF-8", MARK: mark}
                )
        except OSError as error:
            shutil.rmtree(self.folder)
            raise UnitError(f"{name} does not start: {words[0]}: {error.strerror}") from error
        if problem := self._problem(leader, forks):
            # What has no mark is of its session still.
            with suppress(ProcessLookupError):
                os.killpg(leader.pid, signal.SIGTERM)
            self.stop()
            raise UnitError(f"{name} does not run, {problem}")

    def _problem(self, leader: subprocess.Popen[bytes], forks: bool) -> str:
        """Why what was started does not run as its unit says, "" where it does."""
        if not forks:
            return ""
        try:
            code = leader.wait(BEGIN_SECONDS)
        except subprocess.TimeoutExpired:
            return f"it had not forked after {BEGIN_SECONDS:.0f} s"
        last = " ".join(self.said()[-1:]) or "nothing was said"
        return f"it ended with {code}: {last}" if code or not self.pids() else ""

    def stop(self) -> None:
        """End all of its processes, and remove the folder when they have gone. Raises UnitError."""
        for number, seconds in ((signal.SIGTERM, TERMINATE_SECONDS), (signal.SIGKILL, KILL_SECONDS)):
            told: set[int] = set()
            end = time.monotonic() + seconds
            while (pids := self.pids()) and time.monotonic() < end:
                # Who was started meanwhile is told as well.
                for pid in set(pids) - told:
                    told.add(pid)
                    with suppress(ProcessLookupError):
                        os.kill(pid, number)
                time.sleep(LOOK_SECONDS)
        if pids:
            raise UnitError(f"process {pids[0]} of {self.kept.get('name')} does not end: end it")
        shutil.rmtree(self.folder)


def marked(mark: bytes) -> list[int]:
    """Processes that have this in their environment; one that has ended has none."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return sorted(found)


def started(module: AnsibleModule, running: Running) -> dict[str, Any]:
    """The unit runs; what the module returns. Raises UnitError."""
    name = str(module.params["name"])
    name = name if name.endswith(".service") else f"{name}.service"
    words, forks = command_of(name, [Path(place) for place in module.params["places"]])
    pids = running.pids()
    if pids and running.kept["name"] != name:
        raise UnitError(f"{running.kept['name']} runs in place of {name}: stop it")
    if not pids and not module.check_mode:
        running.start(name, words, forks)
    return {"changed": not pids, "pids": running.pids()}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str"},
            "state": {"type": "str", "choices": ["started", "stopped"], "default": "started"},
            "directory": {"type": "path", "default": "/run/ksm-testbed-unit"},
            "places": {
                "type": "list",
                "elements": "path",
                "default": [
                    "/etc/systemd/system",
                    "/usr/local/lib/systemd/system",
                    "/usr/lib/systemd/system",
                    "/lib/systemd/system",
                ],
            },
        },
        required_if=[("state", "started", ["name"])],
        supports_check_mode=True,
    )
    running = Running(Path(module.params["directory"]))
    try:
        if module.params["state"] == "started":
            module.exit_json(**started(module, running))
        changed, said = running.folder.exists(), running.said()
        if changed and not running.pids():
            module.warn(f"{running.kept.get('name', 'a unit')} had ended by itself: {' '.join(said[-1:])}")
        if changed and not module.check_mode:
            running.stop()
        module.exit_json(changed=changed, said=said)
    except UnitError as error:
        module.fail_json(msg=f"{error}.")
    except OSError as error:
        module.fail_json(msg=f"the service of a policy: {error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()

#!/usr/bin/python3
"""Ansible module: the envelope, a cgroup that holds the guests' QEMU processes and bounds their memory."""

from __future__ import annotations

DOCUMENTATION = r"""
module: envelope
short_description: Make, read and remove the cgroup that bounds the memory of the testbed's guests
description:
  - The cgroup is a libvirt partition of the testbed's own; a domain that names it is started inside, so that
    all of its memory is charged there. No other process is ever put into it.
  - With systemd as PID 1 it is the slice of that partition, bounded for this boot only; else it is made by
    hand in each mounted hierarchy (cgroup v1) or in the one (v2).
options:
  state:
    description: V(present) makes it and sets the limit, V(read) only reads, V(absent) removes it.
    type: str
    choices: [present, read, absent]
    default: present
  memory_bytes: {description: "hard limit, at least 1 MiB; needed for V(present)", type: int}
  proc_root: {description: for tests, type: path, default: /proc}
  run_root: {description: for tests, type: path, default: /run}
"""

EXAMPLES = r"""
- name: Bound the guests' memory to 8 GiB
  envelope:
    memory_bytes: 8589934592
"""

RETURN = r"""
partition: {description: what a domain's resource partition must say, type: str, returned: always}
path: {description: the memory cgroup's folder, type: str, returned: always}
memory:
  description: usage_bytes, limit_bytes, working_set_bytes (usage less inactive file pages), failcnt, pressure
  type: dict
  returned: it exists
"""

import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.ksm_probe import parse_pressure, read_optional

PARTITION = "/machine/ksmtestbed"
SLICE = "machine-ksmtestbed.slice"
LEAST_BYTES = 1 << 20
# cgroup v1 says "no limit" with the greatest multiple of a page.
UNLIMITED_BYTES = 1 << 62
CPUSET = ("cpuset.cpus", "cpuset.mems")


class EnvelopeError(Exception):
    """The envelope can't be had; the text is one sentence for the user."""


class Hierarchy(NamedTuple):
    """A mounted cgroup hierarchy."""

    mount: Path
    unified: bool
    memory: bool


def hierarchies(mounts: str) -> list[Hierarchy]:
    """The cgroup hierarchies in the text of /proc/mounts."""
    found = []
    for line in mounts.splitlines():
        _, mount, kind, options = line.split()[:4]
        if kind == "cgroup":
            found.append(Hierarchy(Path(mount), False, "memory" in options.split(",")))
        elif kind == "cgroup2":
            controllers = (read_optional(Path(mount) / "cgroup.controllers") or "").split()
            found.append(Hierarchy(Path(mount), True, "memory" in controllers))
    return found


class Envelope:
    """The cgroup of this host's guests, in hierarchies of which one has the memory controller."""

    def __init__(self, mounted: list[Hierarchy], *, systemd: bool) -> None:
        self.systemd = systemd
        self.hierarchies = mounted
        bounding = next(one for one in mounted if one.memory)
        self.unified = bounding.unified
        self.path = self._folders(bounding)[-1]

    def _folders(self, hierarchy: Hierarchy) -> list[Path]:
        """The folders from libvirt's own down to the envelope."""
        names = ("machine.slice", SLICE) if self.systemd else ("machine", "ksmtestbed.partition")
        return [hierarchy.mount / names[0], hierarchy.mount / names[0] / names[1]]

    @property
    def limit_file(self) -> Path:
        """Where the limit stands."""
        return self.path / ("memory.max" if self.unified else "memory.limit_in_bytes")

    def make(self, memory_bytes: int) -> None:
        """Make the cgroup and set its limit."""
        if self.systemd:
            self._systemctl("set-property", "--runtime", SLICE, f"MemoryMax={memory_bytes}")
            self._systemctl("start", SLICE)
        else:
            for hierarchy in self.hierarchies:
                for folder in self._folders(hierarchy):
                    folder.mkdir(exist_ok=True)
                    inherit(folder)
            self.limit_file.write_text(f"{memory_bytes}\n", encoding="ascii")
        limit = self.read()["limit_bytes"]
        if limit is None or abs(limit - memory_bytes) >= LEAST_BYTES:
            raise EnvelopeError(f"{self.limit_file} holds {limit} after {memory_bytes} was set")

    def read(self) -> dict[str, Any]:
        """Usage, limit, working set, how often the limit was hit, and pressure; bytes."""
        usage, inactive = (
            ("memory.current", "inactive_file")
            if self.unified
            else ("memory.usage_in_bytes", "total_inactive_file")
        )
        used = int((self.path / usage).read_text())
        stat = dict(line.split() for line in (self.path / "memory.stat").read_text().splitlines())
        pressure = read_optional(self.path / "memory.pressure")
        return {
            "usage_bytes": used,
            "limit_bytes": limit_bytes(self.limit_file.read_text()),
            "working_set_bytes": max(0, used - int(stat[inactive])),
            "failcnt": self._failcnt(),
            "pressure": None if pressure is None else parse_pressure(pressure),
        }

    def _failcnt(self) -> int | None:
        if not self.unified:
            return int((self.path / "memory.failcnt").read_text())
        events = dict(line.split() for line in (self.path / "memory.events").read_text().splitlines())
        return int(events["max"]) if "max" in events else None

    def remove(self) -> None:
        """Remove the cgroup; libvirt's own folder above it stays."""
        if self.systemd:
            self._systemctl("stop", SLICE)
            self._systemctl("revert", SLICE)
            return
        for hierarchy in self.hierarchies:
            folder = self._folders(hierarchy)[-1]
            if folder.is_dir():
                try:
                    folder.rmdir()
                except OSError as error:
                    raise EnvelopeError(
                        f"{folder} cannot be removed ({error.strerror}): remove the guests first"
                    ) from None

    @staticmethod
    def _systemctl(*words: str) -> None:
        done = subprocess.run(["systemctl", *words], check=False, capture_output=True, text=True)
        if done.returncode:
            raise EnvelopeError(f"systemctl {' '.join(words)} failed: {done.stderr.strip()}")


def inherit(folder: Path) -> None:
    """Give a new cgroup what its children need: the CPUs and nodes (v1), the controllers (v2)."""
    for name in CPUSET:
        # v1 leaves them empty, and a process can't enter then; v2 has the folder's own, empty meaning all.
        v1 = (folder / "cgroup.clone_children").exists() and (folder / name).exists()
        if v1 and not (folder / name).read_text().strip():
            (folder / name).write_text((folder.parent / name).read_text())
    switch = folder.parent / "cgroup.subtree_control"
    if switch.exists() and "memory" in (read_optional(folder.parent / "cgroup.controllers") or "").split():
        switch.write_text("+memory\n", encoding="ascii")


def limit_bytes(text: str) -> int | None:
    """A limit as the kernel shows it; None where there is none."""
    word = text.strip()
    return None if word == "max" or int(word) > UNLIMITED_BYTES else int(word)


def available_bytes(meminfo: str) -> int:
    """MemAvailable in the text of /proc/meminfo."""
    rows = dict(line.split(":", 1) for line in meminfo.splitlines())
    return int(rows["MemAvailable"].split()[0]) * 1024


def refuse(memory_bytes: int, available: int) -> None:
    """EnvelopeError for a limit that bounds nothing: the host would run out before the guests reached it."""
    if memory_bytes < LEAST_BYTES:
        raise EnvelopeError(f"memory_bytes is {memory_bytes}: allowed is {LEAST_BYTES} or more")
    if memory_bytes > available:
        raise EnvelopeError(
            f"the envelope would be {memory_bytes >> 20} MiB, room to start a guest included, and this host "
            f"has only {available >> 20} MiB available: lower capacity_envelope_mib"
        )


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "read", "absent"], "default": "present"},
            "memory_bytes": {"type": "int"},
            "proc_root": {"type": "path", "default": "/proc"},
            "run_root": {"type": "path", "default": "/run"},
        },
        required_if=[("state", "present", ("memory_bytes",))],
        supports_check_mode=True,
    )
    params = module.params
    proc = Path(params["proc_root"])
    try:
        mounted = hierarchies((proc / "mounts").read_text(encoding="utf-8"))
        if not any(one.memory for one in mounted):
            if params["state"] == "absent":
                module.exit_json(changed=False, partition=PARTITION, path="")
            raise EnvelopeError(
                "no cgroup hierarchy with the memory controller is mounted: boot without "
                "cgroup_disable=memory, or set capacity_envelope_mib to 0"
            )
        envelope = Envelope(mounted, systemd=Path(params["run_root"], "systemd/system").is_dir())
        exists = envelope.path.is_dir()
        changed = False
        if params["state"] == "present":
            refuse(params["memory_bytes"], available_bytes((proc / "meminfo").read_text(encoding="ascii")))
            # v1 rounds a limit to whole pages.
            former = envelope.read()["limit_bytes"] if exists else None
            changed = former is None or abs(former - params["memory_bytes"]) >= LEAST_BYTES
            if changed and not module.check_mode:
                envelope.make(params["memory_bytes"])
                exists = True
        elif params["state"] == "absent":
            changed = exists
            if changed and not module.check_mode:
                envelope.remove()
                exists = False
        elif not exists:
            raise EnvelopeError(f"{envelope.path} does not exist: make the envelope first")
        memory = {"memory": envelope.read()} if exists else {}
        module.exit_json(changed=changed, partition=PARTITION, path=str(envelope.path), **memory)
    except (EnvelopeError, OSError, ValueError, KeyError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()

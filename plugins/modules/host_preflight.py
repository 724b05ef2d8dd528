#!/usr/bin/python3
"""Ansible module: may this host run the testbed? Read-only."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_preflight
short_description: Refuse a host that can't measure, before anything on it is changed
description:
  - Checks the system, the rights, the kernel's KSM and counters, rival tuners, other processes whose memory
    KSM could merge or has merged, that the host's memory holds the guests, its file systems what is to be
    stored, and that the guests' SSH ports are free. What guests of this testbed hold, who will be removed or
    used again, counts as free.
options:
  debian_versions:
    description: major versions that are supported
    type: list
    elements: str
    default: ["12", "13"]
  rival_tuners:
    description: commands that change KSM's knobs by themselves
    type: list
    elements: str
    default: [ksmtuned, momd, uksmd]
  others:
    description:
      - V(refuse) a host on which other processes offer memory to KSM or a rival tuner runs; V(allow) only
        warns of them.
    type: str
    choices: [refuse, allow]
    default: refuse
  guests: {description: guests that are to run; 0 leaves their memory unchecked, type: int, default: 0}
  guest_memory_mib: {description: memory of one of them, type: int, default: 0}
  overhead_mib: {description: "host memory of one QEMU besides its guest's, at most", type: int, default: 160}
  ports: {description: ports of 127.0.0.1 that the guests need, type: list, elements: int, default: []}
  disk_needs:
    description:
      - What is to be stored. The needs of one file system are added up and held against what it has free; a
        I(path) that does not exist yet counts for the folder that will hold it.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: file or folder that will hold it, type: path, required: true}
      bytes: {description: how much, type: int, required: true}
      what: {description: "what needs it, for the message", type: str, required: true}
      unless:
        description: "nothing is needed where I(path) holds such a file, such as */image.json"
        type: str
        default: ""
      checkpoint:
        description: >-
          nothing is needed where I(path) keeps this one: boot, guests, memory_mib, load (empty for guests
          that only booted), reserve_mib, since (as in the module guests)
        type: dict
  own_prefix: {description: the guests' domains begin with this, type: str, default: ksm-testbed-}
  proc_root: {description: for tests, type: path, default: /proc}
  sys_root: {description: for tests, type: path, default: /sys}
  etc_root: {description: for tests, type: path, default: /etc}
"""

EXAMPLES = r"""
- name: Refuse a host that can't measure
  host_preflight:
"""

RETURN = r"""
debian_version: {description: major version, type: str, returned: success}
systemd: {description: whether systemd is PID 1, type: bool, returned: success}
other_mergeable:
  description: processes besides the guests that offer memory to KSM, with mergeable_bytes and merging_pages
  type: list
  returned: success
"""

import errno
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.checkpoints import Store
from ansible.module_utils.disk_room import shortages
from ansible.module_utils.ksm_probe import (
    OWN_PREFIX,
    TUNERS,
    ProbeError,
    Roots,
    is_guest,
    other_mergeable,
    others_words,
    read_optional,
    tuners,
)

NEEDED_KSM_FILES = (
    "run",
    "pages_to_scan",
    "sleep_millisecs",
    "full_scans",
    "pages_shared",
    "pages_sharing",
    "pages_unshared",
)
HOST_RESERVE_MIB = 512


def os_release(etc: Path) -> dict[str, str]:
    """Return /etc/os-release as a dict."""
    pairs = (line.split("=", 1) for line in (etc / "os-release").read_text().splitlines() if "=" in line)
    return {name: value.strip().strip('"') for name, value in pairs}


def command_lines(proc: Path) -> dict[int, str]:
    """Return the command line of every process that can be read, its words apart by NUL."""
    found = {}
    for folder in proc.iterdir():
        if folder.name.isdigit():
            try:
                found[int(folder.name)] = (folder / "cmdline").read_text(errors="replace")
            except OSError:
                continue  # it ended meanwhile
    return found


def mib(meminfo: str, name: str) -> int:
    """Return a line of /proc/meminfo or smaps_rollup in MiB."""
    lines = (line.split() for line in meminfo.splitlines())
    return next((int(words[1]) >> 10 for words in lines if words and words[0] == f"{name}:"), 0)


def held_mib(proc: Path, pids: Iterable[int]) -> int:
    """Return what these processes hold, merged pages by their share."""
    held = 0
    for pid in pids:
        try:
            held += mib((proc / str(pid) / "smaps_rollup").read_text(), "Pss")
        except OSError:
            continue  # it ended meanwhile
    return held


def in_use(port: int) -> bool:
    """Tell whether something listens on a port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def still_needed(needs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the needs without those of what is there already.

    Whether a checkpoint is of the right image and QEMU is not known yet: it counts as there. Where the guests
    of a boot are not, nothing that stands on them is.
    """
    missing, new_boots = [], set()
    for need in needs:
        wanted, path = need.get("checkpoint"), Path(need["path"])
        if wanted:
            there = wanted["boot"] not in new_boots and Store(path, lambda _line: None).holds(wanted)
            if not there and not wanted["load"]:
                new_boots.add(wanted["boot"])
        else:
            there = bool(need.get("unless")) and any(path.glob(need["unless"]))
        if not there:
            missing.append(need)
    return missing


def strangers(
    params: dict[str, Any], ours: Iterable[int], user_id: int
) -> tuple[list[str], list[str], list[dict[str, Any]]]:
    """Return (what of others is wrong; what the user is to know; their processes that offer memory)."""
    roots = Roots(Path(params["proc_root"]), Path(params["sys_root"]))
    found, notes = [], []
    rivals = tuners(roots, params["rival_tuners"])
    if rivals:
        found.append(
            f"{', '.join(rivals)} runs on this host and changes KSM's knobs by itself: "
            "stop it for the experiment"
        )
    # Who is not root may not read them, and is refused anyway.
    others = other_mergeable(ours, roots) if user_id == 0 else []
    if others:
        found.append(
            "other processes offer memory to KSM and would be merged with the guests: "
            f"{others_words(others, roots)}; end them, or give -e others=allow, which merges them too, "
            "unmerges nothing that is merged already, and counts them in the records"
        )
    if (read_optional(roots.ksm / "run") or "").strip() == "1":
        notes.append(
            "KSM runs on this host already: it is stopped between measurements, runs again afterwards, and "
            "each cell says so"
        )
    return (found, notes, others) if params["others"] == "refuse" else ([], [*found, *notes], others)


def problems(params: dict[str, Any], user_id: int) -> tuple[list[str], dict[str, Any]]:
    """Return (what is wrong, one sentence each; facts, and notes for the user)."""
    proc, sys_, etc = (Path(params[name]) for name in ("proc_root", "sys_root", "etc_root"))
    wrong = []
    release = os_release(etc)
    version = release.get("VERSION_ID", "")
    if release.get("ID") != "debian" or version not in params["debian_versions"]:
        wrong.append(
            f"this host runs {release.get('PRETTY_NAME', 'an unknown system')}, "
            f"and the testbed supports Debian {' and '.join(params['debian_versions'])}"
        )
    if user_id != 0:
        wrong.append(
            "the testbed changes kernel settings and needs root: "
            "run as root, or with sudo and --ask-become-pass"
        )
    ksm = sys_ / "kernel/mm/ksm"
    if not ksm.is_dir():
        wrong.append("this kernel has no /sys/kernel/mm/ksm: boot one with CONFIG_KSM=y")
    else:
        missing = [name for name in NEEDED_KSM_FILES if not (ksm / name).exists()]
        if missing:
            wrong.append(
                f"this kernel's /sys/kernel/mm/ksm lacks {', '.join(missing)}, which the measurement needs"
            )
    meminfo = (proc / "meminfo").read_text()
    if "MemAvailable:" not in meminfo:
        wrong.append("this kernel's /proc/meminfo has no MemAvailable, which the measurement needs")
    guests, each_mib = params["guests"], params["guest_memory_mib"]
    own = {pid: line for pid, line in command_lines(proc).items() if is_guest(line, params["own_prefix"])}
    total, with_qemu = mib(meminfo, "MemTotal"), each_mib + params["overhead_mib"]
    free = max(0, mib(meminfo, "MemAvailable") + held_mib(proc, own) - HOST_RESERVE_MIB)
    if guests * each_mib > total:
        wrong.append(
            f"guests is {guests} and guest_memory_mib is {each_mib}: this host has {total} MiB "
            f"in all, which holds {total // each_mib} such guests at the most"
        )
    elif "MemAvailable:" in meminfo and guests * with_qemu > free:
        wrong.append(
            f"guests is {guests} and guest_memory_mib is {each_mib}: each needs up to {with_qemu} MiB of "
            f"host memory, and {free} MiB are available besides a reserve, which fits {free // with_qemu}: "
            "lower guests or guest_memory_mib"
        )
    forwarded = " ".join(own.values())
    taken = [port for port in params["ports"] if f"127.0.0.1:{port}-" not in forwarded and in_use(port)]
    if taken:
        wrong.append(
            f"port {', '.join(map(str, taken))} of 127.0.0.1, meant for a guest, is in use: end what uses "
            "it, or set guest_ssh_port_base"
        )
    wrong += shortages(still_needed(params["disk_needs"]))
    theirs, notes, others = strangers(params, own, user_id)
    return wrong + theirs, {
        "debian_version": version,
        "systemd": (proc / "1/comm").read_text().strip() == "systemd",
        "other_mergeable": others,
        "notes": notes,
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "debian_versions": {"type": "list", "elements": "str", "default": ["12", "13"]},
            "rival_tuners": {"type": "list", "elements": "str", "default": list(TUNERS)},
            "others": {"type": "str", "choices": ["refuse", "allow"], "default": "refuse"},
            "guests": {"type": "int", "default": 0},
            "guest_memory_mib": {"type": "int", "default": 0},
            "overhead_mib": {"type": "int", "default": 160},
            "ports": {"type": "list", "elements": "int", "default": []},
            "disk_needs": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "path", "required": True},
                    "bytes": {"type": "int", "required": True},
                    "what": {"type": "str", "required": True},
                    "unless": {"type": "str", "default": ""},
                    "checkpoint": {
                        "type": "dict",
                        "options": {
                            **{
                                name: {"type": "int", "required": True}
                                for name in ("boot", "guests", "memory_mib", "reserve_mib")
                            },
                            **{name: {"type": "str", "required": True} for name in ("load", "since")},
                        },
                    },
                },
            },
            "own_prefix": {"type": "str", "default": OWN_PREFIX},
            "proc_root": {"type": "path", "default": "/proc"},
            "sys_root": {"type": "path", "default": "/sys"},
            "etc_root": {"type": "path", "default": "/etc"},
        },
        supports_check_mode=True,
    )
    try:
        wrong, facts = problems(module.params, os.geteuid())
    except (OSError, ProbeError) as error:
        module.fail_json(msg=f"the preflight can't read this host: {error}")
    for note in facts.pop("notes"):
        module.warn(note)
    if wrong:
        module.fail_json(msg="; ".join(wrong), **facts)
    module.exit_json(changed=False, **facts)


if __name__ == "__main__":
    main()

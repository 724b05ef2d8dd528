#!/usr/bin/python3
"""Ansible module: what all guests do, asked of all of them at once."""

from __future__ import annotations

DOCUMENTATION = r"""
module: workload
short_description: Load, verify, probe and let diverge the memory of the guests
description:
  - Runs on the hypervisor and asks the program in each guest through its second serial port, all at once but
    for a probe.
  - Guests that fill memory fill the same size, what the smallest of them has available less a reserve.
options:
  state:
    description:
      - C(loaded) fills the guests' memory, locked, and takes its digest.
      - C(verified) digests the same memory again.
      - C(probed) measures the performance of some guests on the memory that they hold, one after another,
        while the others are left alone.
      - C(diverged) makes each page held differ from every other, as fast as it goes.
    type: str
    choices: [loaded, verified, probed, diverged]
    required: true
  channels: {description: guest name to the socket of its port, type: dict, required: true}
  segments:
    description: "C(loaded): guest name to the segments that it fills, empty for a guest that fills nothing"
    type: dict
    default: {}
  available_bytes:
    description: "C(loaded): guest name to its MemAvailable at the barrier"
    type: dict
    default: {}
  size_bytes:
    description: "C(loaded): fill so much in place of what is available; 0 for that"
    type: int
    default: 0
  reserve_mib: {description: "C(loaded): memory that a fill leaves alone", type: int, default: 40}
  seed:
    description: "C(loaded): text that makes the random content; each guest adds its name"
    type: str
    default: ""
  probe_mib:
    description: >-
      C(loaded): memory, equal in all guests, that one that fills nothing holds for a probe; 0: none
    type: int
    default: 0
  probes: {description: "C(probed): how many probes in all, spread over the guests", type: int, default: 5}
  probe_seconds: {description: "C(probed): what a probe takes, 1 to 600", type: float, default: 2}
  expected:
    description: "C(verified): guest name to the digest that it had, for the verdict"
    type: dict
    default: {}
  silence:
    description: whether a guest without an answer fails the module, or is null in its result
    type: str
    choices: [fail, "null"]
    default: fail
  timeout_seconds: {description: the longest wait for an answer, type: int, default: 1200}
  progress_path:
    description: file that takes a line for each guest; whoever waits makes it and sets its access time
    type: path
    default: ""
"""

EXAMPLES = r"""
- name: Digest the same memory again
  workload:
    state: verified
    channels: "{{ guests_result.channels }}"
"""

RETURN = r"""
answers:
  description: >-
    guest name to what it answered; guests that hold nothing are left out, a silent one is null; empty with
    C(probed)
  type: dict
  returned: success
probes:
  description: >-
    each probe with guest, its answer (null for a silent one, the last one then), and what a request, the
    probe and reading all memory held (read_bytes) took the host: seconds, run_seconds and wait_seconds of the
    threads of the guest's virtual CPUs
  type: list
  returned: state is probed
silent: {description: guest name to why it gave no answer, type: dict, returned: success}
size_bytes: {description: what each guest that fills memory filled, type: int, returned: state is loaded}
"""

import json
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.guest_channel import ask_all
from ansible.module_utils.probing import probe_in_turn
from ansible.module_utils.progress import Progress, ProgressError, end_when_abandoned

MIB = 1 << 20
REPORT = ("filled_bytes", "digest", "fill_seconds", "seed")
PROBE_SEGMENTS = [{"content": "shared", "percent": 100}]


class WorkloadError(Exception):
    """What is asked can't be done; the text is one sentence."""


def fill_bytes(available_bytes: dict[str, int], reserve_mib: int) -> int:
    """The bytes that fit every guest: the least MemAvailable less the reserve, a whole number of MiB.

    Raises WorkloadError where that is none.
    """
    least = min(available_bytes, key=available_bytes.__getitem__)
    size_mib = available_bytes[least] // MIB - reserve_mib
    if size_mib <= 0:
        raise WorkloadError(
            f"guest_reserve_mib is {reserve_mib}, and {least} has only {available_bytes[least] // MIB} MiB "
            "available: lower the reserve or raise guest_memory_mib"
        )
    return size_mib * MIB


def specifications(params: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], int]:
    """Return guest -> SPEC of its program, without those that hold nothing, and the bytes of each fill."""
    strangers = sorted(set(params["segments"]) - set(params["channels"]))
    if strangers:
        raise WorkloadError(f"segments has {', '.join(strangers)}, and channels has not")
    filling = [name for name, segments in params["segments"].items() if segments]
    missing = [name for name in filling if name not in params["available_bytes"]]
    if missing and not params["size_bytes"]:
        raise WorkloadError(f"{', '.join(missing)} did not come to the barrier")
    size = params["size_bytes"]
    if filling and not size:
        available = {name: params["available_bytes"][name] for name in filling}
        size = fill_bytes(available, params["reserve_mib"])
    specs = {}
    for name, segments in params["segments"].items():
        held = size if segments else params["probe_mib"] * MIB
        if held:
            specs[name] = {
                "bytes": held,
                "seed": f"{params['seed']}:{name}",
                "segments": segments or PROBE_SEGMENTS,
            }
    return specs, size


def words_for(params: dict[str, Any]) -> tuple[dict[str, list[str]], int]:
    """(guest -> words of its command, bytes filled where that is known)."""
    state = params["state"]
    if state == "loaded":
        specs, size = specifications(params)
        return {name: ["start", json.dumps(spec)] for name, spec in specs.items()}, size
    command = {"verified": ["verify"], "diverged": ["diverge"], "probed": []}[state]
    return dict.fromkeys(params["channels"], command), 0


def told(state: str, answer: dict[str, Any]) -> str:
    """What a guest's answer says, for the progress."""
    if state == "loaded":
        return f"filled {answer['filled_bytes'] // MIB} MiB in {answer['fill_seconds']:.0f} s"
    if state == "diverged":
        return f"made {answer['written_bytes'] // MIB} MiB differ in {answer['seconds']:.1f} s"
    return state


def probed_guests(params: dict[str, Any], progress: Progress) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The probes of some guests, one after another, and why one of them is silent."""
    if not params["channels"] or params["probes"] < 1:
        return [], {}
    found: tuple[list[dict[str, Any]], dict[str, str]] = probe_in_turn(
        params["channels"],
        probes=params["probes"],
        seconds=params["probe_seconds"],
        each=lambda number, one: progress.say(f"{one['guest']} probed ({number} of {params['probes']})"),
    )
    return found


def verdict(answer: dict[str, Any], before: str) -> dict[str, Any]:
    """A guest's memory before and after, as a verify record has it."""
    after = answer["digest"]
    rewritten = "rewritten_pages_per_second"
    return {
        **({rewritten: answer[rewritten]} if rewritten in answer else {}),
        "filled_bytes": answer["filled_bytes"],
        "digest_before": before,
        "digest_after": after,
        "intact": bool(before) and before == after,
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {
                "type": "str",
                "choices": ["loaded", "verified", "probed", "diverged"],
                "required": True,
            },
            "channels": {"type": "dict", "required": True},
            "segments": {"type": "dict", "default": {}},
            "available_bytes": {"type": "dict", "default": {}},
            "size_bytes": {"type": "int", "default": 0},
            "reserve_mib": {"type": "int", "default": 40},
            "seed": {"type": "str", "default": ""},
            "probe_mib": {"type": "int", "default": 0},
            "probes": {"type": "int", "default": 5},
            "probe_seconds": {"type": "float", "default": 2},
            "expected": {"type": "dict", "default": {}},
            "silence": {"type": "str", "choices": ["fail", "null"], "default": "fail"},
            "timeout_seconds": {"type": "int", "default": 1200},
            "progress_path": {"type": "path", "default": ""},
        },
        supports_check_mode=True,
    )
    params = module.params
    began = time.monotonic()
    shown = 0
    try:
        words, size = words_for(params)
        if module.check_mode:
            changed = params["state"] in ("loaded", "diverged") and bool(words)
            module.exit_json(changed=changed, answers={}, silent={}, size_bytes=size)

        progress = Progress(params["progress_path"])
        end_when_abandoned(progress)

        def each(name: str, answer: dict[str, Any]) -> None:
            nonlocal shown
            shown += 1
            progress.say(
                f"{name} {told(params['state'], answer)} ({shown} of {len(words)}, "
                f"{time.monotonic() - began:.0f} s in all)"
            )

        probed: dict[str, Any] = {}
        if params["state"] == "probed":
            answers = {}
            probed["probes"], silent = probed_guests(params, progress)
        else:
            requests = {name: (Path(params["channels"][name]), said) for name, said in words.items()}
            answers, silent = ask_all(requests, params["timeout_seconds"], each=each)
    except (WorkloadError, ProgressError) as error:
        module.fail_json(msg=str(error))
    if silent and params["silence"] == "fail":
        module.fail_json(
            msg="; ".join(f"{name}: {why}" for name, why in silent.items()), answers=answers, silent=silent
        )
    if params["state"] == "loaded":
        answers = {name: {field: answer[field] for field in REPORT} for name, answer in answers.items()}
    if params["state"] == "verified":
        answers = {
            name: verdict(answer, params["expected"].get(name, "")) for name, answer in answers.items()
        }
    module.exit_json(
        changed=params["state"] in ("loaded", "diverged") and bool(words),
        answers=answers if probed else {**answers, **dict.fromkeys(silent)},
        silent=silent,
        **probed,
        size_bytes=size,
    )


if __name__ == "__main__":
    main()

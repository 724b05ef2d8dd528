"""Read a hypervisor at a step of a capacity run, and write the step's or the divergence's record.

Arguments:
    phase: snapshot (read only, before the guests are probed or diverge), step or divergence (read again,
        write the record).
    plan: what the action capacity_plan returned; with its envelope_bytes the module envelope must have run.
    provenance: image_digest, accelerator, testbed_version and start; the rest is read from the host.
    policy: off or another policy's name. guests: how many run.
    before: what snapshot returned.
    probes: guest name to what its probe printed, null for no answer; for a divergence those before it.
    converged: whether KSM had settled; null with the policy off (step).
    series, divergences, answered_at, alive: what the sampler observed, what each guest's diverge printed,
        the host's time after it, and how many guests hold all that they wrote (divergence).
    proc_root, sys_root, run_root: the host's trees, for tests.

Returns for snapshot: host, envelope, provenance, recorded_at, monotonic_seconds.
Returns for step: record (path), stop (null or why), next_guests (null: the arm is over), fitting_guests (the
most that fitted so far; null: none), msg. For divergence: record, msg.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from analysis.capacity import PROBES, breach, used_bytes
from analysis.capacity_design import CapacityDesign, fitting, next_guests, stop
from analysis.design import MIB, make_private_directory, write_private
from analysis.policies import OFF

SCHEMA_VERSION = 2
PROVENANCE_GIVEN = ("image_digest", "accelerator", "testbed_version", "start")
VMSTAT = ("pgfault", "pgmajfault", "cow_ksm", "pswpin", "pswpout", "oom_kill")
RESOURCES = ("cpu", "memory", "io")


class ActionModule(ActionBase):  # type: ignore[misc]
    """Controller side; see the module's text."""

    _supports_check_mode = True
    _supports_async = False
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Read, and write what is asked."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        args = self._arguments()
        seen = self._snapshot(args, task_vars or {})
        if seen.get("failed") or seen.get("unreachable") or args["phase"] == "snapshot":
            return {**result, "changed": False, **seen}
        hypervisor = str((task_vars or {})["inventory_hostname"])
        make = step_record if args["phase"] == "step" else divergence_record
        record = make(args, hypervisor, seen)
        wrong = breach(record, "capacity")
        if wrong:
            raise AnsibleActionFail(f"capacity_record: the {record['kind']} record is not valid at {wrong}")
        folder = Path(args["plan"]["directory"]) / hypervisor
        path = folder / file_name(record)
        if self._task.check_mode:
            return {**result, "changed": False, "record": str(path), "msg": f"would write {path}"}
        try:
            make_private_directory(folder)
            write_private(path, json.dumps(record, indent=1, allow_nan=False) + "\n")
        except OSError as error:
            raise AnsibleActionFail(f"capacity_record: cannot write {path}: {error.strerror}.") from None
        if args["phase"] == "divergence":
            alive = record["observed"]["guests_alive"]
            outcome: dict[str, Any] = {"msg": f"{alive} of {record['guests']} guests hold what they wrote"}
        else:
            outcome = progress(record, folder, args["plan"])
        Display().display(f"    [{hypervisor}] {outcome['msg']}")
        return {**result, "changed": False, "record": str(path), **outcome}

    def _arguments(self) -> dict[str, Any]:
        _, args = self.validate_argument_spec(
            argument_spec={
                "phase": {"type": "str", "required": True, "choices": ["snapshot", "step", "divergence"]},
                "plan": {"type": "dict", "required": True},
                "provenance": {"type": "dict", "default": {}},
                "policy": {"type": "str", "default": OFF},
                "guests": {"type": "int"},
                "before": {"type": "dict"},
                "probes": {"type": "dict", "default": {}},
                "converged": {"type": "bool"},
                "series": {"type": "dict"},
                "divergences": {"type": "dict", "default": {}},
                "answered_at": {"type": "str"},
                "alive": {"type": "int", "default": 0},
                "proc_root": {"type": "str", "default": "/proc"},
                "sys_root": {"type": "str", "default": "/sys"},
                "run_root": {"type": "str", "default": "/run"},
            },
            required_if=[
                ("phase", "step", ("guests", "before")),
                ("phase", "divergence", ("guests", "before", "series", "answered_at")),
            ],
        )
        # Templated values carry Ansible's tags; a record is plain JSON.
        plain: dict[str, Any] = json.loads(json.dumps(args))
        return plain

    def _snapshot(self, args: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        roots = {name: args[name] for name in ("proc_root", "sys_root", "run_root")}
        measured: dict[str, Any] = self._execute_module(
            module_name="measure_host", module_args={"domains": {}, **roots}, task_vars=task_vars
        )
        if measured.get("failed") or measured.get("unreachable"):
            return measured
        envelope = None
        if args["plan"]["envelope_bytes"]:
            read: dict[str, Any] = self._execute_module(
                module_name="envelope", module_args={"state": "read"}, task_vars=task_vars
            )
            if read.get("failed") or read.get("unreachable"):
                return read
            envelope = read["memory"]
        return {
            "host": measured["observed"]["host"],
            "envelope": envelope,
            **{name: measured[name] for name in ("provenance", "recorded_at", "monotonic_seconds")},
        }


def step_record(args: dict[str, Any], hypervisor: str, after: dict[str, Any]) -> dict[str, Any]:
    """The record of a step: memory as it was before the probes, and what their time did to the host."""
    before = args["before"]
    observed = {
        "host": before["host"],
        "envelope": before["envelope"],
        "converged": args["converged"],
        "probes": args["probes"],
        "window": window(before, after),
    }
    record = head(args, hypervisor, before, "capacity_step", observed)
    design = CapacityDesign(**args["plan"]["capacity"])
    return {**record, "stop": stop(design, observed, used_bytes(record))}


def divergence_record(args: dict[str, Any], hypervisor: str, after: dict[str, Any]) -> dict[str, Any]:
    """The record of a divergence: it begins with the request to write, and ends with the last answer."""
    before, series = args["before"], args["series"]
    samples = dict(series["samples"])
    if not args["plan"]["envelope_bytes"]:
        samples["envelope_working_set_bytes"] = [None] * len(samples["seconds"])
    began = moment(series["started_at"])
    started = max(0.0, round(moment(before["recorded_at"]) - began, 3))
    answers = args["divergences"]
    kills = [seen["host"]["vmstat"].get("oom_kill") for seen in (before, after)]
    observed = {
        "write": {
            "started_seconds": started,
            "finished_seconds": (
                None if None in answers.values() else round(moment(args["answered_at"]) - began, 3)
            ),
            "written_bytes": {name: said["written_bytes"] for name, said in answers.items() if said},
        },
        "samples": samples,
        "probes_before": args["probes"],
        "probes_during": {
            name: None if said is None else {field: said[field] for field in PROBES}
            for name, said in answers.items()
        },
        "guests_alive": args["alive"],
        "oom_kills": None if None in kills else kills[1] - kills[0],
    }
    return {**head(args, hypervisor, before, "divergence", observed), "stop": None}


def head(
    args: dict[str, Any], hypervisor: str, seen: dict[str, Any], kind: str, observed: dict[str, Any]
) -> dict[str, Any]:
    """A record of the contract, all but stop."""
    plan = args["plan"]
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "run_id": plan["run_id"],
        "recorded_at": seen["recorded_at"],
        "hypervisor": hypervisor,
        "policy": args["policy"],
        "workload": plan["capacity"]["workload"],
        "guests": args["guests"],
        "guest_memory_bytes": plan["guest_memory_bytes"],
        "envelope_bytes": plan["envelope_bytes"],
        "requested": {"guest_reserve_bytes": plan["design"]["guest_reserve_mib"] * MIB},
        "provenance": {
            **seen["provenance"],
            **{name: args["provenance"].get(name) for name in PROVENANCE_GIVEN},
            "design_digest": plan["design_digest"],
            "guest_memory_bytes": plan["guest_memory_bytes"],
        },
        "observed": observed,
    }


def window(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What happened on the host from one snapshot to the other; None for what the kernel does not count."""
    hosts = before["host"], after["host"]

    def difference(*path: str) -> Any:
        ends = []
        for node in hosts:
            for name in path:
                node = None if node is None else node.get(name)  # noqa: PLW2901 -- walks down
            ends.append(node)
        return None if None in ends else max(0, ends[1] - ends[0])

    psi = {name: difference("psi", name, "some", "total_microseconds") for name in RESOURCES}
    return {
        "seconds": round(after["monotonic_seconds"] - before["monotonic_seconds"], 3),
        "ksmd_cpu_seconds": difference("ksmd_cpu_seconds"),
        "steal_seconds": difference("cpu_seconds", "steal"),
        "vmstat": {name: difference("vmstat", name) for name in VMSTAT},
        "psi_some_microseconds": None if None in psi.values() else psi,
    }


def progress(record: dict[str, Any], folder: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """What the arm's steps so far say: whether to go on, and with how many guests."""
    design = CapacityDesign(**plan["capacity"])
    steps = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in folder.glob(f"{record['workload']}-{record['policy']}-guests*.json")
    ]
    seen = {step["guests"]: step["stop"] is not None for step in steps}
    used, state = used_bytes(record) / MIB, record["stop"]
    return {
        "stop": state,
        "next_guests": next_guests(seen, design.step_guests, plan["most_guests"]),
        "fitting_guests": fitting(seen),
        "msg": f"policy {record['policy']}, {record['guests']} guests use {used:.0f} MiB"
        + (f"; beyond the limit: {state['reason']}" if state else ""),
    }


def file_name(record: dict[str, Any]) -> str:
    """The record's file in the folder of its hypervisor."""
    what = record["policy"] if record["kind"] == "capacity_step" else "divergence"
    return f"{record['workload']}-{what}-guests{record['guests']:03d}.json"


def moment(text: str) -> float:
    """Seconds since the epoch of a record's time."""
    return datetime.fromisoformat(text).timestamp()

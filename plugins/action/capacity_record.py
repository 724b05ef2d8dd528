"""Take a step of a capacity run, or let its guests diverge, and write the record.

Arguments:
    phase: step (wait until KSM has settled, where it runs and has guests; read the host, probe the guests,
        read again) or divergence (wait and probe likewise, begin a series, read, let every page held diverge
        in all guests at once, read again, verify what was written).
    plan: what the action capacity_plan returned; with its envelope_bytes the envelope must exist.
    provenance: image_digest, accelerator, testbed_version and start; the rest is read from the host.
    policy: off or another policy's name. channels: guest name to its port's socket.
    former: what this action returned for the step before; at the beginning of an arm next_guests is 0 (step).
    filled_bytes: what each of the guests added now filled; 0 for none (step).
    guests: how many run (divergence).
    proc_root, sys_root, run_root: the host's trees, for tests.

A guest that does not answer is a finding: it is null in the record, and the step does not fit.

Returns for step: record (path), stop (null or why), next_guests (null: the arm is over, and a step after that
does nothing), fitting_guests (policy to the most guests that fitted so far), load_size_bytes (what every
further guest is to fill), msg. For divergence: record, msg.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from analysis.model.capacity import used_bytes
from analysis.plan.capacity_design import CapacityDesign, fitting, next_guests, stop
from analysis.plan.design import MIB
from analysis.plan.policies import OFF
from analysis.plan.variables import plain_data
from analysis.progress.module import run_series, run_workload, start_module
from analysis.records.action import head, record_path, store
from analysis.records.capacity import PROBES
from analysis.records.models import RECORDS, StepRecord
from analysis.records.reading import RecordError, read_record

ACTION = "capacity_record"
POLL_SECONDS = 2
VMSTAT = ("pgfault", "pgmajfault", "cow_ksm", "pswpin", "pswpout", "oom_kill")
RESOURCES = ("cpu", "memory", "io")


class ActionModule(ActionBase):  # type: ignore[misc]
    """Controller side; see the module's text."""

    _supports_check_mode = True
    _supports_async = False
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Do it, and write what was seen."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        args, variables = self._arguments(), task_vars or {}
        hypervisor = str(variables["inventory_hostname"])
        if self._task.check_mode:
            return {**result, "changed": False, "msg": f"would take and record a {args['phase']}"}
        former = args["former"]
        if args["phase"] == "step" and former["next_guests"] is None:
            kept = ("next_guests", "fitting_guests", "load_size_bytes")
            return {**result, "changed": False, **{name: former[name] for name in kept}}
        try:
            if args["phase"] == "step":
                args["guests"] = int(former["next_guests"])
                record = self._step(args, hypervisor, variables)
            else:
                record = self._divergence(args, hypervisor, variables)
        except _ModuleFailed as failed:
            return {**result, **failed.result}
        path = record_path(ACTION, f"{args['plan']['directory']}/{hypervisor}", file_name(record))
        store(ACTION, path, record, RECORDS[record["kind"]])
        if args["phase"] == "divergence":
            alive = record["observed"]["guests_alive"]
            outcome: dict[str, Any] = {"msg": f"{alive} of {record['guests']} guests hold what they wrote"}
        else:
            filled = args["filled_bytes"] if args["guests"] else 0
            outcome = progress(record, path.parent, args["plan"])
            outcome["load_size_bytes"] = filled or former["load_size_bytes"]
        Display().display(f"    [{hypervisor}] {outcome['msg']}")
        return {**result, "changed": True, "record": str(path), **outcome}

    def _step(self, args: dict[str, Any], hypervisor: str, task_vars: dict[str, Any]) -> dict[str, Any]:
        converged = self._settle(args, task_vars)
        before = self._snapshot(args, task_vars)
        probes = self._probe(args, task_vars)
        after = self._snapshot(args, task_vars)
        seen = {"converged": converged, "before": before, "probes": probes}
        return step_record({**args, **seen}, hypervisor, after)

    def _divergence(self, args: dict[str, Any], hypervisor: str, task_vars: dict[str, Any]) -> dict[str, Any]:
        self._settle(args, task_vars)
        probes = self._probe(args, task_vars)
        job = self._begin_series(args, task_vars)
        before = self._snapshot(args, task_vars)
        said = self._ask(args, task_vars, "diverged")
        after = self._snapshot(args, task_vars)
        series = self._series(job, task_vars)
        written = {name: answer["digest"] for name, answer in said.items() if answer}
        proof = self._ask(args, task_vars, "verified", expected=written)
        seen = {
            "before": before,
            "probes": probes,
            "series": series,
            "divergences": said,
            "answered_seconds": after["monotonic_seconds"],
            "alive": sum(bool(verdict and verdict["intact"]) for verdict in proof.values()),
        }
        return divergence_record({**args, **seen}, hypervisor, after)

    def _settle(self, args: dict[str, Any], task_vars: dict[str, Any]) -> bool | None:
        """Let KSM merge what it can; whether it settled, None where it does not run or has no guest."""
        policy = args["plan"]["policies"][args["policy"]]
        if int(policy["run"]) != 1 or not args["guests"]:
            return None
        series = run_series(
            self, task_vars, policy["requested"], guests=args["guests"], roots=self._roots(args)
        )
        if series.get("failed") or series.get("unreachable"):
            raise _ModuleFailed(series)
        return bool(series["observed"]["converged"])

    def _probe(self, args: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        seconds = args["plan"]["capacity"]["probe_seconds"]
        return self._ask(args, task_vars, "probed", probe_seconds=seconds)

    @staticmethod
    def _roots(args: dict[str, Any]) -> dict[str, str]:
        return {name: args[name] for name in ("proc_root", "sys_root", "run_root")}

    def _module(self, name: str, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = self._execute_module(
            module_name=name, module_args=arguments, task_vars=task_vars
        )
        if answer.get("failed") or answer.get("unreachable"):
            raise _ModuleFailed(answer)
        return answer

    def _ask(
        self, args: dict[str, Any], task_vars: dict[str, Any], state: str, **options: Any
    ) -> dict[str, Any]:
        """Guest -> its answer, None for a silent one."""
        if not args["channels"]:
            return {}
        asked = {"state": state, "channels": args["channels"], "silence": "null", **options}
        answer = run_workload(self, task_vars, asked)
        if answer.get("failed") or answer.get("unreachable"):
            raise _ModuleFailed(answer)
        answers: dict[str, Any] = answer["answers"]
        return answers

    def _begin_series(self, args: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        """Sample KSM's counters in the background, while the guests write; the job."""
        roots, seconds = self._roots(args), args["plan"]["capacity"]["divergence_seconds"]
        sampled = {
            "interval_seconds": args["plan"]["design"]["sample_interval_seconds"],
            "until": "seconds",
            "duration_seconds": seconds,
            "proc_root": roots["proc_root"],
            "sys_root": roots["sys_root"],
        }
        if args["plan"]["envelope_bytes"]:
            sampled["envelope_path"] = self._module("envelope", {"state": "read"}, task_vars)["path"]
        job = start_module(self, "measure_series", sampled, task_vars, seconds + 120)
        if job.get("failed") or job.get("unreachable"):
            raise _ModuleFailed(job)
        return job

    def _series(self, job: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        """Wait for the series in the background; what it observed."""
        asked = {"jid": job["ansible_job_id"], "_async_dir": str(Path(job["results_file"]).parent)}
        while True:
            answer = self._module("ansible.legacy.async_status", {**asked, "mode": "status"}, task_vars)
            if answer.get("finished", True):
                self._module("ansible.legacy.async_status", {**asked, "mode": "cleanup"}, task_vars)
                return {**answer["observed"], "began_seconds": answer["began_monotonic_seconds"]}
            time.sleep(POLL_SECONDS)

    def _arguments(self) -> dict[str, Any]:
        _, args = self.validate_argument_spec(
            argument_spec={
                "phase": {"type": "str", "required": True, "choices": ["step", "divergence"]},
                "plan": {"type": "dict", "required": True},
                "provenance": {"type": "dict", "default": {}},
                "policy": {"type": "str", "default": OFF},
                "former": {"type": "dict"},
                "filled_bytes": {"type": "int", "default": 0},
                "guests": {"type": "int"},
                "channels": {"type": "dict", "default": {}},
                "proc_root": {"type": "str", "default": "/proc"},
                "sys_root": {"type": "str", "default": "/sys"},
                "run_root": {"type": "str", "default": "/run"},
            },
            required_if=[("phase", "step", ("former",)), ("phase", "divergence", ("guests",))],
        )
        return plain_data(args)

    def _snapshot(self, args: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        measured = self._module("measure_host", {"domains": {}, **self._roots(args)}, task_vars)
        envelope = None
        if args["plan"]["envelope_bytes"]:
            envelope = self._module("envelope", {"state": "read"}, task_vars)["memory"]
        return {
            "host": measured["observed"]["host"],
            "other_mergeable": measured["observed"]["other_mergeable"],
            "envelope": envelope,
            **{name: measured[name] for name in ("provenance", "recorded_at", "monotonic_seconds")},
        }


class _ModuleFailed(Exception):  # noqa: N818 -- it carries a module's result
    """A module on the host failed; its result."""

    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__(result.get("msg"))
        self.result = result


def step_record(args: dict[str, Any], hypervisor: str, after: dict[str, Any]) -> dict[str, Any]:
    """The record of a step: memory as it was before the probes, and what their time did to the host."""
    before = args["before"]
    observed = {
        "host": before["host"],
        "envelope": before["envelope"],
        "converged": args["converged"],
        "probes": args["probes"],
        "window": window(before, after),
        "other_mergeable": before["other_mergeable"],
    }
    record = common(args, hypervisor, before, "capacity_step", observed)
    design = CapacityDesign(**args["plan"]["capacity"])
    return {**record, "stop": stop(design, observed)}


def divergence_record(args: dict[str, Any], hypervisor: str, after: dict[str, Any]) -> dict[str, Any]:
    """The record of a divergence: it begins with the request to write, and ends with the last answer."""
    before, series = args["before"], args["series"]
    samples = dict(series["samples"])
    if not args["plan"]["envelope_bytes"]:
        samples["envelope_working_set_bytes"] = [None] * len(samples["seconds"])
    # Of the clock that nobody sets, the host's own in both
    began = series["began_seconds"]
    started = max(0.0, round(before["monotonic_seconds"] - began, 3))
    answers = args["divergences"]
    kills = [seen["host"]["vmstat"].get("oom_kill") for seen in (before, after)]
    observed = {
        "write": {
            "started_seconds": started,
            "finished_seconds": (
                None if None in answers.values() else round(args["answered_seconds"] - began, 3)
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
        "other_mergeable": before["other_mergeable"],
    }
    return {**common(args, hypervisor, before, "divergence", observed), "stop": None}


def common(
    args: dict[str, Any], hypervisor: str, seen: dict[str, Any], kind: str, observed: dict[str, Any]
) -> dict[str, Any]:
    """A record of the contract, all but stop."""
    plan = args["plan"]
    known = {**args["provenance"], "design_digest": plan["design_digest"]}
    return {
        **head(kind, plan["run_id"], seen, known, plan["guest_memory_bytes"]),
        "hypervisor": hypervisor,
        "policy": args["policy"],
        "workload": plan["capacity"]["workload"],
        "guests": args["guests"],
        "guest_memory_bytes": plan["guest_memory_bytes"],
        "envelope_bytes": plan["envelope_bytes"],
        "forecasts": plan["forecasts"],
        "requested": {"guest_reserve_bytes": plan["design"]["guest_reserve_mib"] * MIB},
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
    """What the steps so far say: whether the arm goes on, with how many guests, and what fitted in each."""
    design = CapacityDesign(**plan["capacity"])
    stopped: dict[str, dict[int, bool]] = {}
    for path in folder.glob(f"{record['workload']}-*-guests*.json"):
        try:
            step = read_record(path, StepRecord)
        except RecordError:  # a divergence; or damaged since, which the report names
            continue
        stopped.setdefault(step.policy, {})[step.guests] = step.stop is not None
    used = used_bytes(StepRecord.model_validate_json(json.dumps(record))) / MIB
    state = record["stop"]
    return {
        "stop": state,
        "next_guests": next_guests(stopped[record["policy"]], design.step_guests, plan["most_guests"]),
        "fitting_guests": {policy: fitting(seen) or 0 for policy, seen in stopped.items()},
        "msg": f"policy {record['policy']}, {record['guests']} guests use {used:.0f} MiB"
        + (f"; beyond the limit: {state['reason']}" if state else ""),
    }


def file_name(record: dict[str, Any]) -> str:
    """The record's file in the folder of its hypervisor."""
    what = record["policy"] if record["kind"] == "capacity_step" else "divergence"
    return f"{record['workload']}-{what}-guests{record['guests']:03d}.json"

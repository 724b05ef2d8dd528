"""Take a step of a capacity run, or let its guests diverge, and write the record.

Arguments:
    phase: watch (begin to sample the host, before guests are started), step (wait until KSM has settled,
        where it runs and has guests; end the samples, read the host, probe some guests, read again),
        divergence (wait likewise, begin samples, let one guest after another make all that it holds differ
        until the envelope is full, verify what was written) or unwatch (end samples that a failure left).
    plan: what the action capacity_plan returned; with its envelope_bytes the envelope must exist.
    provenance: image_digest, accelerator, testbed_version and start; the rest is read from the host.
    arm: boot and policy. channels: guest name to its port's socket. domains: guest name to domain (step).
    watched: what the phase watch returned (step, unwatch).
    former: what this action returned for the step before; at the beginning of an arm next_guests is 0 (step).
    filled_bytes: what each of the guests added now filled; 0 for none (step).
    proc_root, sys_root, run_root: the host's trees, for tests.

A guest that gives no answer is a finding: it is null in the record, and the step does not fit. What somebody
else set of KSM meanwhile is in the record, too: such a step is the last one of its arm and says nothing.

Returns for watch: job. For step: record (path), stop (null or why), next_guests (null: the arm is over, and a
step after that does nothing), diverging_guests (the numbers of guests that are to diverge when it is),
load_size_bytes (what every further guest is to fill), msg. For divergence: record, msg.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from analysis.measure.saving import ksm_own_bytes
from analysis.measure.saving import used_bytes as host_used_bytes
from analysis.model.capacity import (
    fits,
    known_or_nothing,
    line_bytes,
    peak_bytes,
    steady_limit,
    used_bytes,
)
from analysis.plan.capacity_design import CapacityDesign, next_guests, stop
from analysis.plan.design import MIB, load_file_name
from analysis.plan.mix import mix_of
from analysis.plan.policies import OFF
from analysis.plan.variables import plain_data
from analysis.plan.workloads import read_workload
from analysis.progress.module import begin_series, end_series, run_series, run_workload
from analysis.records.action import head, record_path, store
from analysis.records.models import RECORDS, Host, StepRecord
from analysis.records.probes import as_recorded, window
from analysis.records.reading import RecordError, read_record
from analysis.records.rivals import knob_changes

ACTION = "capacity_record"
# Longer than guests take to start, load and settle, beside the limit of the settling itself
WATCH_SECONDS = 3600
# KSM may merge what a guest fills within seconds; between two samples the most that was used is not seen.
WATCH_INTERVAL_SECONDS = 0.25
KEPT = ("next_guests", "diverging_guests", "load_size_bytes")


class ActionModule(ActionBase):  # type: ignore[misc]
    """Controller side; see the module's text."""

    _supports_check_mode = True
    _supports_async = False
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Do it, and write what was seen."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        args, variables = self._arguments(), task_vars or {}
        phase = args["phase"]
        if self._task.check_mode:
            return {**result, "changed": False, "msg": f"would take and record a {phase}"}
        if phase == "unwatch":
            # What is gone already is no failure.
            self._end_watch(args, variables)
            return {**result, "changed": False}
        if phase == "step" and args["former"]["next_guests"] is None:
            return {**result, "changed": False, **{name: args["former"].get(name) for name in KEPT}}
        try:
            if phase == "watch":
                return {**result, "changed": False, "job": self._watch(args, variables)}
            return {**result, "changed": True, **self._recorded(args, variables)}
        except _ModuleFailed as failed:
            return {**result, **failed.result}

    def _recorded(self, args: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        """Take a step or a divergence, and write it; what is returned of it."""
        hypervisor = str(task_vars["inventory_hostname"])
        if args["phase"] == "step":
            args["guests"] = int(args["former"]["next_guests"])
            record = self._step(args, hypervisor, task_vars)
        else:
            args["guests"] = len(args["channels"])
            record = self._divergence(args, hypervisor, task_vars)
        path = record_path(ACTION, f"{args['plan']['directory']}/{hypervisor}", file_name(record))
        store(ACTION, path, record, RECORDS[record["kind"]])
        if args["phase"] == "step":
            filled = args["filled_bytes"] if args["guests"] else 0
            outcome = progress(record, path.parent, args["plan"])
            outcome["load_size_bytes"] = filled or args["former"]["load_size_bytes"]
        else:
            outcome = {"msg": divergence_words(record)}
        Display().display(f"    [{hypervisor}] {outcome['msg']}")
        return {"record": str(path), **outcome}

    def _step(self, args: dict[str, Any], hypervisor: str, task_vars: dict[str, Any]) -> dict[str, Any]:
        settled = self._settle(args, task_vars)
        series = self._end_watch(args, task_vars)
        before = self._snapshot(args, task_vars)
        probes = self._probe(args, task_vars)
        after = self._snapshot(args, task_vars)
        seen = {
            "converged": None if settled is None else settled["observed"]["converged"],
            "before": before,
            "probes": probes,
            "admission": series and samples(series, args["plan"]),
            "followed": [one for one in (series, settled) if one],
        }
        return step_record({**args, **seen}, hypervisor, after)

    def _divergence(self, args: dict[str, Any], hypervisor: str, task_vars: dict[str, Any]) -> dict[str, Any]:
        settled = self._settle(args, task_vars)
        args["watched"] = {"job": self._watch(args, task_vars)}
        before = after = self._snapshot(args, task_vars)
        said: list[dict[str, Any]] = []
        for name in sorted(args["channels"]):
            began = after["monotonic_seconds"]
            answer = self._ask(args, task_vars, "diverged", names=(name,))[name]
            after = self._snapshot(args, task_vars)
            ended = after["monotonic_seconds"]
            said.append({"guest": name, "began": began, "ended": ended, "answer": answer})
            if answer is None or is_full(args["plan"], after):
                break
        series = self._end_watch(args, task_vars)
        written = {one["guest"]: one["answer"]["digest"] for one in said if one["answer"]}
        proof = self._ask(args, task_vars, "verified", expected=written)
        # The others hold what they held, and answer.
        alive = sum(
            bool(verdict) and (verdict["intact"] or name not in written) for name, verdict in proof.items()
        )
        held = {name: verdict["filled_bytes"] for name, verdict in proof.items() if verdict}
        seen = {"before": before, "series": series, "divergences": said, "alive": alive, "held": held}
        seen["followed"] = [settled, series]
        return divergence_record({**args, **seen}, hypervisor, after)

    def _settle(self, args: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any] | None:
        """Let KSM merge what it can; the module's result, None where it does not run or has no guest."""
        policy = args["plan"]["policies"][args["arm"]["policy"]]
        if int(policy["run"]) != 1 or not args["guests"]:
            return None
        series = run_series(
            self,
            task_vars,
            policy["requested"],
            guests=args["guests"],
            roots=self._roots(args),
            domains=args["domains"],
        )
        if series.get("failed") or series.get("unreachable"):
            raise _ModuleFailed(series)
        return series

    def _probe(self, args: dict[str, Any], task_vars: dict[str, Any]) -> list[dict[str, Any]]:
        capacity = args["plan"]["capacity"]
        if not args["channels"] or not capacity["probes"]:
            return []
        asked = {name: capacity[name] for name in ("probes", "probe_seconds")}
        return as_recorded(self._workload(args, task_vars, "probed", **asked)["probes"])

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

    def _workload(
        self,
        args: dict[str, Any],
        task_vars: dict[str, Any],
        state: str,
        names: tuple[str, ...] = (),
        **options: Any,
    ) -> dict[str, Any]:
        """The module's result for these guests, for all of them where none is named."""
        channels = {name: args["channels"][name] for name in names or args["channels"]}
        asked = {"state": state, "channels": channels, "silence": "null", **options}
        answer = run_workload(self, task_vars, asked)
        if answer.get("failed") or answer.get("unreachable"):
            raise _ModuleFailed(answer)
        for name, why in answer.get("silent", {}).items():
            Display().display(f"    [{task_vars['inventory_hostname']}] {name} gave no answer: {why}")
        return answer

    def _ask(
        self, args: dict[str, Any], task_vars: dict[str, Any], state: str, **options: Any
    ) -> dict[str, Any]:
        """Guest -> its answer, None for a silent one."""
        answers: dict[str, Any] = self._workload(args, task_vars, state, **options)["answers"]
        return answers

    def _watch(self, args: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        """Sample the host's memory in the background from now on; the job."""
        plan, roots = args["plan"], self._roots(args)
        sampled = {
            "interval_seconds": WATCH_INTERVAL_SECONDS,
            "proc_root": roots["proc_root"],
            "sys_root": roots["sys_root"],
        }
        if plan["envelope_bytes"]:
            sampled["envelope_path"] = self._module("envelope", {"state": "read"}, task_vars)["path"]
        seconds = WATCH_SECONDS + plan["design"]["converge_timeout_seconds"]
        job = begin_series(self, task_vars, sampled, seconds, roots["run_root"])
        if job.get("failed") or job.get("unreachable"):
            raise _ModuleFailed(job)
        return job

    def _end_watch(self, args: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any] | None:
        """End the samples; the module's result, None where none were taken."""
        job = args["watched"].get("job")
        if not job:
            return None
        series = end_series(self, task_vars, job)
        if (series.get("failed") or series.get("unreachable")) and args["phase"] != "unwatch":
            raise _ModuleFailed(series)
        return series

    def _snapshot(self, args: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        domains = args["domains"] if args["guests"] else {}
        measured = self._module("measure_host", {"domains": domains, **self._roots(args)}, task_vars)
        envelope = None
        if args["plan"]["envelope_bytes"]:
            envelope = self._module("envelope", {"state": "read"}, task_vars)["memory"]
        return {
            "envelope": envelope,
            **{name: measured["observed"][name] for name in ("host", "guests", "other_mergeable")},
            **{name: measured[name] for name in ("provenance", "recorded_at", "monotonic_seconds")},
        }

    def _arguments(self) -> dict[str, Any]:
        _, args = self.validate_argument_spec(
            argument_spec={
                "phase": {
                    "type": "str",
                    "required": True,
                    "choices": ["watch", "step", "divergence", "unwatch"],
                },
                "plan": {"type": "dict", "default": {}},
                "provenance": {"type": "dict", "default": {}},
                "arm": {"type": "dict", "default": {}},
                "former": {"type": "dict"},
                "watched": {"type": "dict", "default": {}},
                "filled_bytes": {"type": "int", "default": 0},
                "channels": {"type": "dict", "default": {}},
                "domains": {"type": "dict", "default": {}},
                "proc_root": {"type": "str", "default": "/proc"},
                "sys_root": {"type": "str", "default": "/sys"},
                "run_root": {"type": "str", "default": "/run"},
            },
            required_if=[("phase", "step", ("plan", "arm", "former"))],
        )
        return plain_data(args)


class _ModuleFailed(Exception):  # noqa: N818 -- it carries a module's result
    """A module on the host failed; its result."""

    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__(result.get("msg"))
        self.result = result


def samples(series: Mapping[str, Any], plan: Mapping[str, Any]) -> dict[str, Any]:
    """A record's samples of a series."""
    taken = dict(series["observed"]["samples"])
    if not plan["envelope_bytes"]:
        taken["envelope_working_set_bytes"] = [None] * len(taken["seconds"])
    return taken


def step_record(args: dict[str, Any], hypervisor: str, after: dict[str, Any]) -> dict[str, Any]:
    """The record of a step: memory as it was before the probes, and what their time did to the host."""
    before = args["before"]
    observed = {
        **{name: before[name] for name in ("host", "guests", "envelope", "other_mergeable")},
        "converged": args["converged"],
        "admission": args["admission"],
        "probes": args["probes"],
        "window": window(before, after),
        "knob_changes": changed_by_others(args, before, after),
    }
    record = {**common(args, hypervisor, before, "capacity_step", observed), "stop": None}
    step = StepRecord.model_validate_json(json.dumps(record))
    design = CapacityDesign(**args["plan"]["capacity"])
    return {**record, "stop": stop(design, step.observed, used_bytes(step))}


def divergence_record(args: dict[str, Any], hypervisor: str, after: dict[str, Any]) -> dict[str, Any]:
    """The record of a divergence: its turns in seconds of the samples, on the clock that nobody sets."""
    before, said = args["before"], args["divergences"]
    began = float(args["series"]["began_monotonic_seconds"])

    def second(moment: float) -> float:
        return round(max(0.0, moment - began), 3)

    written = {one["guest"]: one["answer"]["written_bytes"] for one in said if one["answer"]}
    kills = [seen["host"]["vmstat"].get("oom_kill") for seen in (before, after)]
    observed = {
        "turns": [
            {
                "guest": one["guest"],
                "started_seconds": second(one["began"]),
                "finished_seconds": None if one["answer"] is None else second(one["ended"]),
                "written_bytes": None if one["answer"] is None else one["answer"]["written_bytes"],
            }
            for one in said
        ],
        "held_bytes": {**args["held"], **written},
        "samples": samples(args["series"], args["plan"]),
        "psi_some_microseconds": window(before, after)["psi_some_microseconds"],
        "guests_alive": args["alive"],
        "oom_kills": None if None in kills else kills[1] - kills[0],
        "other_mergeable": before["other_mergeable"],
        "knob_changes": changed_by_others(args, before, after),
    }
    return {**common(args, hypervisor, before, "divergence", observed), "stop": None}


def changed_by_others(args: dict[str, Any], *readings: dict[str, Any]) -> list[dict[str, Any]]:
    """What somebody else set of KSM while the series of a record were taken, and until its last reading."""
    policy = args["plan"]["policies"][args["arm"]["policy"]]
    return knob_changes(policy, guests=args["guests"] > 0, series=args["followed"], readings=readings)


def common(
    args: dict[str, Any], hypervisor: str, seen: dict[str, Any], kind: str, observed: dict[str, Any]
) -> dict[str, Any]:
    """A record of the contract, all but stop."""
    plan = args["plan"]
    known = {**args["provenance"], "design_digest": plan["design_digest"]}
    return {
        **head(kind, plan["run_id"], seen, known, plan["guest_memory_bytes"]),
        "hypervisor": hypervisor,
        "policy": args["arm"]["policy"],
        "workload": plan["capacity"]["workload"],
        "boot": args["arm"]["boot"],
        "guests": args["guests"],
        "guest_memory_bytes": plan["guest_memory_bytes"],
        "envelope_bytes": plan["envelope_bytes"],
        "forecasts": plan["forecasts"],
        "requested": {
            "guest_reserve_bytes": plan["design"]["guest_reserve_mib"] * MIB,
            "host_reserve_bytes": plan["capacity"]["stop_available_mib"] * MIB,
        },
        "observed": observed,
    }


def is_full(plan: Mapping[str, Any], seen: Mapping[str, Any]) -> bool:
    """Whether more is used than the guests have to fit in."""
    host = Host.model_validate_json(json.dumps(seen["host"]))
    page, total = seen["provenance"]["page_size_bytes"], seen["provenance"]["memory_total_bytes"]
    if plan["envelope_bytes"]:
        own = known_or_nothing(ksm_own_bytes(host, {}, seen["provenance"]["ksm_knobs"], page))
        return bool(seen["envelope"]["working_set_bytes"] + own > plan["envelope_bytes"])
    line = total - plan["capacity"]["stop_available_mib"] * MIB
    return bool(known_or_nothing(host_used_bytes(host, page)) > line)


def progress(record: dict[str, Any], folder: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """What the steps so far say: how many guests come next, and at the end of an arm which are to diverge."""
    step = StepRecord.model_validate_json(json.dumps(record))
    arms: dict[str, list[StepRecord]] = {}
    for path in folder.glob(f"{load_file_name(step.workload)}-boot{step.boot}-*-guests*.json"):
        try:
            one = read_record(path, StepRecord)
        except RecordError:  # a divergence; or damaged since, which the report names
            continue
        if not one.observed.knob_changes:
            arms.setdefault(one.policy, []).append(one)
    used, line = used_bytes(step), line_bytes(step)
    design, following = CapacityDesign(**plan["capacity"]), None
    changes = step.observed.knob_changes
    if fits(step) and not changes:
        following = next_guests(step.guests, line - used, plan["full_guest_bytes"], design)
    fills = any(read_workload(name).fills for name in mix_of(step.workload))
    diverging = set()
    if following is None and step.policy != OFF and design.divergence and fills and not changes:
        diverging = {steady_limit(steps).guests for steps in arms.values()} - {0}
    peak = peak_bytes(step)
    return {
        "stop": record["stop"],
        "next_guests": following,
        "diverging_guests": sorted(diverging, reverse=True),
        "msg": f"boot {step.boot}, {step.policy}, {step.guests} guests use {used / MIB:.0f} MiB"
        + ("" if peak is None else f", at most {peak / MIB:.0f} while they were started")
        + (f"; beyond the limit: {step.stop.reason}" if step.stop else "")
        + (f"; {changes[0].words}: it is left out, and its arm ends" if changes else ""),
    }


def divergence_words(record: dict[str, Any]) -> str:
    """One line for a person."""
    observed = record["observed"]
    return (
        f"boot {record['boot']}, {len(observed['turns'])} of {record['guests']} guests diverged, "
        f"{observed['guests_alive']} are well"
    )


def file_name(record: dict[str, Any]) -> str:
    """The record's file in the folder of its hypervisor."""
    what = record["policy"] if record["kind"] == "capacity_step" else "divergence"
    load = load_file_name(record["workload"])
    return f"{load}-boot{record['boot']}-{what}-guests{record['guests']:03d}.json"

"""Measure one phase of a cell on a hypervisor and write its record on the controller.

Arguments:
    phase: off, merge, on, after, leave, arrive, diverge, verify, performance or failed.
    run_id, cell, requested: as in the record (analysis/records/models.py).
    provenance: design_digest, image_digest, accelerator, testbed_version, start and ksm_before; the rest is
        read from the host.
    directory: the cell's folder on the controller, absolute; created with mode 0700.
    domains: guest name to libvirt domain name (off, on).
    workload: guest name to what filled it (off, on); empty where nothing was filled.
    verify: guest name to the digests before and after merging (verify); or
    channels: guest name to the socket of its port, and the guests that workload names are asked.
        Of a mix both name the guests that hold something, by their names in domains. Where there is none,
        no guest is asked, and the host is as in the record on.
    applications: guest name to the application that it runs (module application), of those that run one; they
        are verified by it (verify), and measured (performance).
    performance_off: guest name to what its application did before KSM merged (performance).
    drop_caches: drop the host's caches before it is read (off, on).
    requested.probes: so many probes of guests, by their channels, after the host was read (off, on).
    failure: phase, task and message (failed).
    start_ksm: merge begins with writing 1 to run (default true); the other series go on with what
        runs. Under the policy off nothing is started, and merge is as long as the default policy takes to
        settle or so.
    until, duration_seconds: what ends a series (converged or seconds), as in the module measure_series.
    replace: write over a record of this phase (default false; a failed record always replaces its kind).
    proc_root, sys_root, run_root: the host's trees, for tests.

Returns: record (path), msg (one line), cell_id, changed (by starting KSM, dropping caches or probing). A
failed record adds its message to the fact failures, with which the run ends when all has been measured.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase

from analysis.plan.design import CHURN
from analysis.plan.policies import OFF
from analysis.plan.variables import add_failure, plain_data
from analysis.progress.module import run_application, run_series, run_workload, show_begin
from analysis.records.action import GIVEN, head, prepare, record_path, store
from analysis.records.models import PHASES as RECORDS
from analysis.records.models import Machine
from analysis.records.probes import as_recorded, window
from plugins.module_utils.ksm_convergence import saved_pages

ACTION = "measure_record"
PHASES = ("off", "merge", "on", "after", *CHURN, "verify", "performance", "failed")
SERIES = ("merge", "after", *CHURN)
# YAML 1.1 reads an unquoted off or on as a truth value.
YAML_TRUTH = {False: "off", True: "on"}
# Whether KSM was in use before is of cells alone.
GIVEN_OF_CELLS = (*GIVEN, "ksm_before")
NEEDS = {"off": "domains", "on": "domains", "performance": "performance_off", "failed": "failure"}
# Between the two arms of a cell under the policy off
IDLE_SECONDS = 30.0
MESSAGE_LIMIT_CHARACTERS = 4000
MIB = 1 << 20


class ActionModule(ActionBase):  # type: ignore[misc]
    """Controller side; see the module's text."""

    _supports_check_mode = True
    _supports_async = False
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Measure, check, write."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        args = self._arguments()
        phase = args["phase"]
        name = f"{phase}.json"
        path = record_path(ACTION, args["directory"], name)
        if self._task.check_mode:
            return {
                **result,
                "changed": False,
                "record": str(path),
                "msg": f"would measure {phase} and write {path}",
            }
        # Hours of machine time depend on it.
        prepare(ACTION, args["directory"], name, replace=args["replace"] or phase == "failed")
        show_begin(self, variables)

        if phase == "failed":
            measured = self._failed(args, variables)
        elif phase in SERIES:
            measured = self._merge(args, variables)
        elif phase == "verify":
            measured = self._verify(args, variables)
        elif phase == "performance":
            measured = self._performance(args, variables)
        else:
            measured = self._arm(args, variables)
        if measured.get("failed") or measured.get("unreachable"):
            return {**result, **measured}
        record = assemble(args, measured, observed(args, measured))
        store(ACTION, path, record, RECORDS[phase])
        facts = add_failure(variables, record["observed"]["message"]) if phase == "failed" else {}
        changed = args["start_ksm"] if phase in SERIES else measured.get("changed", False)
        return {
            **result,
            "changed": changed,
            "record": str(path),
            "cell_id": args["cell"].get("cell_id"),
            "msg": summary(record),
            "ansible_facts": facts,
        }

    def _arguments(self) -> dict[str, Any]:
        given = dict(self._task.args)
        if isinstance(given.get("phase"), bool):
            given["phase"] = YAML_TRUTH[given["phase"]]
        self._task.args = given
        _, args = self.validate_argument_spec(
            argument_spec={
                "phase": {"type": "str", "required": True, "choices": list(PHASES)},
                "run_id": {"type": "str", "required": True},
                "cell": {"type": "dict", "required": True},
                "requested": {"type": "dict", "required": True},
                "provenance": {"type": "dict", "required": True},
                "directory": {"type": "str", "required": True},
                "domains": {"type": "dict", "default": {}},
                "workload": {"type": "dict", "default": {}},
                "verify": {"type": "dict", "default": {}},
                "channels": {"type": "dict", "default": {}},
                "applications": {"type": "dict", "default": {}},
                "performance_off": {"type": "dict", "default": {}},
                "drop_caches": {"type": "bool", "default": False},
                "failure": {"type": "dict", "default": {}},
                "start_ksm": {"type": "bool", "default": True},
                "until": {"type": "str", "choices": ["converged", "seconds"], "default": "converged"},
                "duration_seconds": {"type": "float"},
                "replace": {"type": "bool", "default": False},
                "proc_root": {"type": "str", "default": "/proc"},
                "sys_root": {"type": "str", "default": "/sys"},
                "run_root": {"type": "str", "default": "/run"},
            },
            required_if=[("until", "seconds", ["duration_seconds"])],
        )
        plain = plain_data(args)
        if plain["cell"].get("policy") == OFF:
            plain["start_ksm"] = False
        needed = NEEDS.get(plain["phase"])
        if needed and not plain[needed]:
            raise AnsibleActionFail(f"{ACTION}: phase {plain['phase']} needs the argument {needed}.")
        guests = plain["cell"].get("guests")
        if plain["domains"] and len(plain["domains"]) != guests:
            raise AnsibleActionFail(
                f"measure_record: domains names {len(plain['domains'])} guests; cell.guests is {guests}."
            )
        strangers = sorted(set(plain["workload"]) - set(plain["domains"]))
        if plain["domains"] and strangers:
            raise AnsibleActionFail(f"measure_record: workload names {', '.join(strangers)}, not in domains.")
        return plain

    def _verify(self, args: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        """Ask the guests that were filled for the digest of the same memory; the verdicts go into args."""
        filled = args["workload"]
        if args["verify"]:
            return self._host(args, task_vars, {})
        if not filled:
            return before(args) or self._host(args, task_vars, {})
        verdicts: dict[str, Any] = {}
        running = args["applications"]
        for run, names in (
            (run_workload, filled.keys() - running.keys()),
            (run_application, filled.keys() & running.keys()),
        ):
            asked = {
                "state": "verified",
                "channels": {name: args["channels"][name] for name in sorted(names)},
                "expected": {name: filled[name]["digest"] for name in names},
            }
            if run is run_application:
                asked["applications"] = {name: running[name] for name in names}
            answer = run(self, task_vars, asked) if names else {"answers": {}}
            if answer.get("failed") or answer.get("unreachable"):
                return answer
            verdicts |= answer["answers"]
        args["verify"] = verdicts
        return self._host(args, task_vars, {})

    def _performance(self, args: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        """Measure the guests that were measured before KSM merged once more; the pairs go into args."""
        before_merge = args["performance_off"]
        answer = run_application(
            self,
            task_vars,
            {
                "state": "performed",
                **{
                    name: {guest: args[name][guest] for guest in before_merge}
                    for name in ("channels", "applications")
                },
            },
        )
        if answer.get("failed") or answer.get("unreachable"):
            return answer
        args["performance"] = {
            guest: {"off": before_merge[guest], "on": done} for guest, done in answer["answers"].items()
        }
        return self._host(args, task_vars, {})

    def _arm(self, args: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        """Read the host; then probe some guests where that is asked for, and see what it did to the host."""
        read = self._host(args, task_vars, args["domains"], drop_caches=args["drop_caches"])
        probes = args["requested"].get("probes")
        if not probes or read.get("failed") or read.get("unreachable"):
            return read
        asked = {
            "state": "probed",
            "channels": args["channels"],
            "probes": probes,
            "silence": "null",
        }
        answer = run_workload(self, task_vars, asked)
        if answer.get("failed") or answer.get("unreachable"):
            return answer
        after = self._host(args, task_vars, {})
        if after.get("failed") or after.get("unreachable"):
            return after
        ends = ({**one["observed"], "monotonic_seconds": one["monotonic_seconds"]} for one in (read, after))
        seen = {**read["observed"], "probes": as_recorded(answer["probes"]), "window": window(*ends)}
        return {**read, "changed": True, "observed": seen}

    def _host(
        self,
        args: dict[str, Any],
        task_vars: dict[str, Any],
        domains: dict[str, str],
        *,
        drop_caches: bool = False,
    ) -> dict[str, Any]:
        roots = {name: args[name] for name in ("proc_root", "sys_root", "run_root")}
        measured: dict[str, Any] = self._execute_module(
            module_name="measure_host",
            module_args={"domains": domains, "drop_caches": drop_caches, **roots},
            task_vars=task_vars,
        )
        return measured

    def _merge(self, args: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        off = args["cell"].get("policy") == OFF
        return run_series(
            self,
            task_vars,
            args["requested"],
            guests=args["cell"]["guests"],
            domains=args["domains"],
            roots={name: args[name] for name in ("proc_root", "sys_root", "run_root")},
            start_ksm=args["start_ksm"],
            until="told" if off else args["until"],
            duration_seconds=IDLE_SECONDS if off else args["duration_seconds"],
        )

    def _failed(self, args: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        try:
            measured = self._host(args, task_vars, {})
        except AnsibleError:
            measured = {"failed": True}
        if measured.get("failed") or measured.get("unreachable"):
            return {
                "provenance": dict.fromkeys(Machine.model_fields),
                "recorded_at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}",
                "monotonic_seconds": None,
            }
        return measured


def before(args: dict[str, Any]) -> dict[str, Any] | None:
    """The host as the cell's record before has it; None without one. For what reads nothing of it anew."""
    try:
        record = json.loads((Path(args["directory"]) / "on.json").read_text(encoding="utf-8"))
        return {name: record[name] for name in ("provenance", "recorded_at", "monotonic_seconds")}
    except (OSError, ValueError, KeyError):
        return None


def observed(args: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    """`observed` of a record, whose shape follows the phase."""
    if args["phase"] == "verify":
        return {"guests": args["verify"]}
    if args["phase"] == "performance":
        return {"guests": args["performance"]}
    if args["phase"] == "failed":
        return failure(args["failure"])
    seen: dict[str, Any] = measured["observed"]
    return seen if args["phase"] in SERIES else {**seen, "workload": args["workload"]}


def assemble(args: dict[str, Any], measured: dict[str, Any], seen: dict[str, Any]) -> dict[str, Any]:
    """The record of the contract from its parts."""
    memory = args["cell"].get("guest_memory_bytes")
    return {
        **head(args["phase"], args["run_id"], measured, args["provenance"], memory, given=GIVEN_OF_CELLS),
        "monotonic_seconds": measured["monotonic_seconds"],
        "cell": args["cell"],
        "requested": args["requested"],
        "observed": seen,
    }


def failure(given: dict[str, Any]) -> dict[str, str]:
    """What failed, short enough to read; a task's message may be a whole log."""
    return {
        "phase": str(given.get("phase", "")),
        "task": str(given.get("task", "")),
        "message": str(given.get("message", ""))[:MESSAGE_LIMIT_CHARACTERS],
    }


def summary(record: dict[str, Any]) -> str:
    """One line for a person; MiB are 2^20 bytes."""
    seen, kind = record["observed"], record["kind"]
    if kind in ("off", "on"):
        available = seen["host"]["meminfo"]["MemAvailable_bytes"]
        ksm = seen["host"]["ksm"]
        pages = saved_pages(ksm["pages_sharing"], ksm["ksm_zero_pages"])
        saved = pages * record["provenance"]["page_size_bytes"]
        pss = sum(guest["smaps_rollup"]["Pss_bytes"] for guest in seen["guests"].values())
        return (
            f"{kind}: {available / MIB:.0f} MiB available, KSM saves {saved / MIB:.0f} MiB, "
            f"PSS of {len(seen['guests'])} guests {pss / MIB:.0f} MiB"
        )
    if kind in SERIES:
        return (
            f"{kind}: {seen['full_scans']} full scans in {seen['duration_seconds']:.0f} s; {seen['reason']}"
        )
    if kind == "verify":
        intact = sum(guest["intact"] for guest in seen["guests"].values())
        return f"verify: {intact} of {len(seen['guests'])} guests intact"
    if kind == "performance":
        first = min(seen["guests"])
        arms = seen["guests"][first]
        return (
            f"performance of {first}: {arms['off']['figure']:g} {arms['off']['unit']} with KSM off, "
            f"{arms['on']['figure']:g} merged"
        )
    return f"failed: phase {seen['phase']}, task {seen['task']!r}"

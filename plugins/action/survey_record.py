"""Survey a hypervisor and write the record on the controller; nothing on the host is changed.

Arguments:
    run_id: as in the record (analysis/records/survey.py).
    directory: the record's folder on the controller, absolute; created with mode 0700.
    testbed_version: of this project.
    census, sample, cpu_percent, pause: as in the module survey.
    compare: of a census, keep a sketch for the action survey_placement (default false).
    optional: where no survey can be had say so, add it to the fact failures, and succeed (default false).
    timeout_seconds: the longest time for all.
    proc_root, sys_root, run_root: the host's trees, for tests.

Returns: record (path), msg (one line), changed (always false); missing, true where an optional survey could
not be had, and there is no record.
"""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from analysis.plan.design import SCHEMA_VERSION, check_hypervisors, check_run_id
from analysis.plan.variables import plain_data
from analysis.progress.module import run_with_progress
from analysis.records.action import prepare, record_path, refusals, store, taken_or_missing
from analysis.records.sketches import common_seed, keep_sketch
from analysis.records.survey import FILE, KIND, SurveyRecord

ACTION = "survey_record"
ROOTS = ("proc_root", "sys_root", "run_root")
CENSUS = ("census", "sample", "cpu_percent", "pause")
MIB = 1 << 20


class ActionModule(ActionBase):  # type: ignore[misc]
    """Controller side of playbooks/survey.yml."""

    _supports_check_mode = True
    _supports_async = False
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Survey; where it is optional, its failure is only said."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        args = self._arguments()
        if not args["optional"]:
            return self._take(args, variables, result)
        return taken_or_missing(
            "survey", args["directory"], variables, lambda: self._take(args, variables, result)
        )

    def _take(
        self, args: dict[str, Any], variables: dict[str, Any], result: dict[str, Any]
    ) -> dict[str, Any]:
        """Survey, check, write."""
        hypervisor = str(variables.get("inventory_hostname", ""))
        with refusals(ACTION):
            check_run_id(args["run_id"])
            check_hypervisors([hypervisor])
        path = record_path(ACTION, args["directory"], FILE)
        if self._task.check_mode:
            return {**result, "changed": False, "record": str(path), "msg": f"would survey into {path}"}
        prepare(ACTION, args["directory"], FILE)
        seen = self._survey(args, variables)
        if seen.get("failed") or seen.get("unreachable"):
            return {**result, **seen}
        if seen["sketch"]:
            keep_sketch(hypervisor, seen["sketch"])
        record = {
            "schema_version": SCHEMA_VERSION,
            "kind": KIND,
            "run_id": args["run_id"],
            "hypervisor": hypervisor,
            "recorded_at": seen["recorded_at"],
            "monotonic_seconds": seen["monotonic_seconds"],
            "provenance": seen["provenance"],
            "testbed_version": args["testbed_version"] or None,
            "observed": seen["observed"],
        }
        store(ACTION, path, record, SurveyRecord)
        return {**result, "changed": False, "record": str(path), "msg": summary(record["observed"])}

    def _survey(self, args: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        """The module's result; only a census takes long enough for a progress file on the host."""
        asked = {name: args[name] for name in (*CENSUS, *ROOTS)}
        if args["census"]:
            asked["seed"] = common_seed() if args["compare"] else ""
            return run_with_progress(
                self, "survey", asked, variables, args["timeout_seconds"], args["run_root"]
            )
        seen: dict[str, Any] = self._execute_module(
            module_name="survey", module_args=asked, task_vars=variables
        )
        return seen

    def _arguments(self) -> dict[str, Any]:
        _, args = self.validate_argument_spec(
            argument_spec={
                "run_id": {"type": "str", "required": True},
                "directory": {"type": "str", "required": True},
                "testbed_version": {"type": "str", "default": ""},
                "census": {"type": "bool", "default": False},
                "sample": {"type": "int", "default": 1},
                "cpu_percent": {"type": "int", "default": 100},
                "pause": {"type": "bool", "default": False},
                "compare": {"type": "bool", "default": False},
                "optional": {"type": "bool", "default": False},
                "timeout_seconds": {"type": "float", "default": 3600.0},
                **{name: {"type": "str", "default": f"/{name.removesuffix('_root')}"} for name in ROOTS},
            },
        )
        return plain_data(args)


def summary(observed: dict[str, Any]) -> str:
    """One line for a person; MiB are 2^20 bytes."""
    machines, census = observed["machines"], observed["census"]
    words = f"{len(machines)} virtual machines surveyed in {observed['seconds']:.1f} s"
    if census is None:
        return words
    return (
        f"{words}, {census['bytes_read'] / MIB:.0f} MiB of {len(census['machines'])} read in "
        f"{census['read_seconds']:.1f} s"
    )

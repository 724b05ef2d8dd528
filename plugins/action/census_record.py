"""Take a census on a hypervisor and write its record on the controller.

Arguments:
    run_id, cell: as in the record (analysis/records/models.py); cell is empty outside an experiment.
    provenance: design_digest, image_digest, accelerator and testbed_version; the rest is read from the host.
    directory: the record's folder on the controller, absolute; created with mode 0700.
    domains: guest name to libvirt domain name; empty: every running guest of this testbed.
    uri, processes: as in the module census.
    timeout_seconds: the longest time for all; the guests run again when it is over.
    optional: where no census can be had say so, add it to the fact failures, and succeed (default false).
    sys_root, run_root: the host's trees, for tests.

Returns: record (path), msg (one line), changed (always false: the guests run on as before); missing, true
where an optional census could not be had, and there is no record.
"""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from analysis.plan.design import check_hypervisors, check_run_id
from analysis.plan.variables import plain_data
from analysis.progress.module import run_with_progress
from analysis.records.action import GIVEN, head, prepare, record_path, refusals, store, taken_or_missing
from analysis.records.models import CensusRecord

ACTION = "census_record"
FILE = "census.json"
MIB = 1 << 20


class ActionModule(ActionBase):  # type: ignore[misc]
    """Controller side of the role census."""

    _supports_check_mode = True
    _supports_async = False
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Take a census; where it is optional, its failure is only said."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        args = self._arguments()
        if not args["optional"]:
            return self._take(args, variables, result)
        return taken_or_missing(
            "census", args["directory"], variables, lambda: self._take(args, variables, result)
        )

    def _take(
        self, args: dict[str, Any], task_vars: dict[str, Any], result: dict[str, Any]
    ) -> dict[str, Any]:
        with refusals(ACTION):
            check_run_id(args["run_id"])
            check_hypervisors([str(task_vars.get("inventory_hostname", ""))])
        path = record_path(ACTION, args["directory"], FILE)
        if self._task.check_mode:
            return {
                **result,
                "changed": False,
                "record": str(path),
                "msg": f"would take a census into {path}",
            }
        # Before any guest is paused
        prepare(ACTION, args["directory"], FILE)
        taken = run_with_progress(
            self,
            "census",
            {name: args[name] for name in ("domains", "uri", "processes", "sys_root", "run_root")},
            task_vars,
            args["timeout_seconds"],
            args["run_root"],
        )
        if taken.get("failed") or taken.get("unreachable"):
            return {**result, **taken}
        record = assemble(args, taken)
        store(ACTION, path, record, CensusRecord)
        return {**result, "changed": False, "record": str(path), "msg": summary(record)}

    def _arguments(self) -> dict[str, Any]:
        _, args = self.validate_argument_spec(
            argument_spec={
                "run_id": {"type": "str", "required": True},
                "cell": {"type": "dict", "default": {}},
                "provenance": {"type": "dict", "default": {}},
                "directory": {"type": "str", "required": True},
                "domains": {"type": "dict", "default": {}},
                "uri": {"type": "str", "default": "qemu:///system"},
                "processes": {"type": "int", "default": 0},
                "timeout_seconds": {"type": "float", "default": 600.0},
                "optional": {"type": "bool", "default": False},
                "sys_root": {"type": "str", "default": "/sys"},
                "run_root": {"type": "str", "default": "/run"},
            },
        )
        return plain_data(args)


def assemble(args: dict[str, Any], taken: dict[str, Any]) -> dict[str, Any]:
    """The record from its parts; guests outside an experiment began somewhere."""
    memory = args["cell"].get("guest_memory_bytes")
    given = [name for name in GIVEN if name != "start"]
    return {
        **head("census", args["run_id"], taken, args["provenance"], memory, given=given),
        "monotonic_seconds": taken["monotonic_seconds"],
        "cell": args["cell"] or None,
        "observed": taken["observed"],
    }


def summary(record: dict[str, Any]) -> str:
    """One line for a person; MiB are 2^20 bytes."""
    seen = record["observed"]
    return (
        f"census: {seen['bytes_read'] / MIB:.0f} MiB of {len(seen['guests'])} guests read in "
        f"{seen['read_seconds']:.1f} s, guests paused for {seen['pause_seconds']:.1f} s"
    )

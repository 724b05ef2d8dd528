"""Compare the contents of the hosts of a survey, by the sketches that survey_record left; once a play.

Arguments:
    run_id: as in the record (analysis/records/placement.py).
    directory: the folder of the run on the controller, absolute.

Returns: record (path), msg (one line), changed (always false); skipped where fewer than two hosts have a
sketch.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from ansible.plugins.action import ActionBase

from analysis.measure.placement import count
from analysis.plan.design import SCHEMA_VERSION
from analysis.plan.variables import plain_data
from analysis.records.action import prepare, store
from analysis.records.placement import FILE, KIND, PlacementRecord
from analysis.records.sketches import take_sketches

ACTION = "survey_placement"


class ActionModule(ActionBase):  # type: ignore[misc]
    """Controller side alone."""

    _supports_check_mode = True
    _supports_async = False
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Count, forget the sketches, write."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(
            argument_spec={
                "run_id": {"type": "str", "required": True},
                "directory": {"type": "str", "required": True},
            },
        )
        args = plain_data(arguments)
        one_in, sketches = take_sketches()
        hosts = sorted({one.hypervisor for one in sketches})
        if len(hosts) < 2:
            return {**result, "changed": False, "skipped": True, "msg": "fewer than two hosts to compare"}
        path = prepare(ACTION, args["directory"], FILE)
        record = {
            "schema_version": SCHEMA_VERSION,
            "kind": KIND,
            "run_id": args["run_id"],
            "recorded_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "one_in": one_in,
            "hypervisors": hosts,
            "machines": count(sketches),
        }
        store(ACTION, path, record, PlacementRecord)
        return {**result, "changed": False, "record": str(path), "msg": f"{len(hosts)} hosts compared"}

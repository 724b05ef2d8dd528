"""Controller side of the module measure_series for a wait: KSM on, until the saving has settled; no record.

Arguments: requested (its convergence and sample_interval_seconds), guests (their number), proc_root, sys_root,
run_root. Returns: observed, as in a merge record, and msg (one line).
"""

from __future__ import annotations

import json
import secrets
from typing import Any

from ansible.plugins.action import ActionBase

from analysis.module_progress import run_with_progress

SETUP_SECONDS = 120


class ActionModule(ActionBase):  # type: ignore[misc]
    """Shows the progress of the module."""

    _supports_check_mode = True
    _supports_async = False
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Wait."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, given = self.validate_argument_spec(
            argument_spec={
                "requested": {"type": "dict", "required": True},
                "guests": {"type": "int", "required": True},
                "proc_root": {"type": "str", "default": "/proc"},
                "sys_root": {"type": "str", "default": "/sys"},
                "run_root": {"type": "str", "default": "/run"},
            }
        )
        args = json.loads(json.dumps(given))
        arguments, progress_path, limit = series_arguments(args["requested"], args)
        series = run_with_progress(
            self, "measure_series", arguments, task_vars or {}, progress_path, limit + SETUP_SECONDS
        )
        if series.get("failed") or self._task.check_mode:
            return {**result, **series}
        observed = series["observed"]
        return {
            **result,
            "changed": True,
            "observed": observed,
            "msg": f"{observed['full_scans']} full scans in {observed['duration_seconds']:.0f} s; "
            f"{observed['reason']}",
        }


def series_arguments(requested: dict[str, Any], args: dict[str, Any]) -> tuple[dict[str, Any], str, float]:
    """Arguments of measure_series that start KSM and wait, where its progress is, and its own time limit."""
    convergence = requested["convergence"]
    progress_path = f"{args['run_root']}/measure_series-{secrets.token_hex(8)}.progress"
    return (
        {
            "start_ksm": True,
            "interval_seconds": requested["sample_interval_seconds"],
            "until": "converged",
            "timeout_seconds": convergence["timeout_seconds"],
            "min_full_scans": convergence["min_full_scans"],
            "window_scans": convergence["window_scans"],
            "threshold_percent": convergence["threshold_percent"],
            "guests": args["guests"],
            "progress_path": progress_path,
            "proc_root": args["proc_root"],
            "sys_root": args["sys_root"],
        },
        progress_path,
        float(convergence["timeout_seconds"]),
    )

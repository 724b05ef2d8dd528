"""Controller side of the module measure_series for a wait: KSM on until the saving has settled; no record.

Arguments: requested (its convergence and sample_interval_seconds), guests (their number), proc_root,
sys_root, run_root. Returns: observed, as in a merge record, and msg (one line).
"""

from __future__ import annotations

import json
from typing import Any

from ansible.plugins.action import ActionBase

from analysis.progress.module import run_series


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
        series = run_series(
            self,
            task_vars or {},
            args["requested"],
            guests=args["guests"],
            roots={name: args[name] for name in ("proc_root", "sys_root", "run_root")},
        )
        if series.get("failed") or "observed" not in series:
            return {**result, **series}
        seen = series["observed"]
        said = f"{seen['full_scans']} full scans in {seen['duration_seconds']:.0f} s; {seen['reason']}"
        return {**result, "changed": True, "observed": seen, "msg": said}

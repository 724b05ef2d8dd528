"""Run the module of the same name and show each guest's answer as it comes."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from analysis.progress.module import run_workload


class ActionModule(ActionBase):  # type: ignore[misc]
    """Filling all guests takes minutes where they are emulated; where none fills anything no module runs."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        given = self._task.args
        fills = any(given.get("segments", {}).values()) or int(given.get("probe_mib", 0))
        if given.get("state") == "loaded" and not fills:
            return {**result, "changed": False, "answers": {}, "silent": {}, "size_bytes": 0}
        result.update(run_workload(self, task_vars or {}, self._task.args))
        return result

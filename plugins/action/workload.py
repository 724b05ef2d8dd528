"""Run the module of the same name and show each guest's answer as it comes.

Arguments: the module's, and with the state loaded
    applications: guest name to the application that it runs (module application), loaded after the others.
"""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from analysis.progress.module import run_application, run_workload


class ActionModule(ActionBase):  # type: ignore[misc]
    """Loading all guests takes minutes where they are emulated; where none loads anything no module runs."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        given = {**self._task.args}
        applications = given.pop("applications", {})
        fills = any(given.get("segments", {}).values()) or int(given.get("probe_mib", 0))
        if given.get("state") == "loaded" and not fills:
            result |= {"changed": False, "answers": {}, "silent": {}, "size_bytes": 0}
        else:
            result |= run_workload(self, task_vars or {}, given)
        if not applications or result.get("failed") or result.get("unreachable"):
            return result
        asked = {name: given[name] for name in ("state", "channels", "seed")}
        ran = run_application(self, task_vars or {}, {**asked, "applications": applications})
        if ran.get("failed") or ran.get("unreachable"):
            return {**result, **ran}
        return {**result, "changed": True, "answers": {**result["answers"], **ran["answers"]}}

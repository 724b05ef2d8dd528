"""Run the module of the same name and show each guest's answer as it comes."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from analysis.progress.module import run_application


class ActionModule(ActionBase):  # type: ignore[misc]
    """What applications do takes seconds to minutes in each guest."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        result.update(run_application(self, task_vars or {}, self._task.args))
        return result

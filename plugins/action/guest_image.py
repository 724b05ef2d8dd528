"""Run the module of the same name and show its steps while it works."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from analysis.progress.module import run_with_progress

LIMIT_SECONDS = 3600


class ActionModule(ActionBase):  # type: ignore[misc]
    """The module needs minutes when the image is not there yet."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        result.update(run_with_progress(self, "guest_image", self._task.args, task_vars or {}, LIMIT_SECONDS))
        return result

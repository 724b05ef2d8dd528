"""Run the module of the same name and show each guest's answer as it comes."""

from __future__ import annotations

import json
import secrets
from typing import Any

from ansible.plugins.action import ActionBase

from analysis.module_progress import run_with_progress

GRACE_SECONDS = 60


class ActionModule(ActionBase):  # type: ignore[misc]
    """Filling all guests takes minutes where they are emulated."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        path = f"/run/ksm-testbed-workload-{secrets.token_hex(8)}.progress"
        # Templated values carry Ansible's tags; the module gets plain JSON.
        arguments = {**json.loads(json.dumps(self._task.args)), "progress_path": path}
        limit = float(arguments.get("timeout_seconds", 1200)) + GRACE_SECONDS
        result.update(run_with_progress(self, "workload", arguments, task_vars or {}, path, limit))
        return result

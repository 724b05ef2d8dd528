"""Install Debian packages that are not installed yet, without what they only recommend.

Arguments:
    name: their names.

Where all are installed nothing but dpkg's own list is read: opening apt's lists takes seconds, in every run.
A new machine may have no package lists yet, or old ones: then they are fetched and it is tried once more.
Returns: what ansible.builtin.apt returns.
"""

from __future__ import annotations

import shlex
from typing import Any

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):  # type: ignore[misc]
    """Controller side; see the module's text."""

    _supports_check_mode = True
    _supports_async = False
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Install what is missing."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, args = self.validate_argument_spec(
            argument_spec={"name": {"type": "list", "elements": "str", "required": True}}
        )
        if self._installed(args["name"]):
            return {**result, "changed": False}
        asked = {**args, "install_recommends": False}
        for more in ({}, {"update_cache": True}):
            answer: dict[str, Any] = self._execute_module(
                module_name="ansible.builtin.apt", module_args={**asked, **more}, task_vars=task_vars
            )
            if not answer.get("failed"):
                break
        return {**result, **answer}

    def _installed(self, names: list[str]) -> bool:
        packages = " ".join(map(shlex.quote, names))
        asked = f"dpkg-query -W -f '${{db:Status-Status}}\\n' -- {packages}"
        answer = self._low_level_execute_command(asked)
        return not answer["rc"] and str(answer["stdout"]).split() == ["installed"] * len(names)

"""Controller side of the module of the same name: the guests' key, and the progress of boots and restores."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from analysis.progress.lease import hold
from analysis.progress.module import run_with_progress, show_begin

LIMIT_SECONDS = 7200


class ActionModule(ActionBase):  # type: ignore[misc]
    """Booting all guests takes minutes where they are emulated."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result; I(ssh_key_path) is a path on the controller."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        result |= hold(self, task_vars or {})
        if self._task.args.get("state") == "absent":
            # Over in a second or two, which is what waiting for a long module costs.
            show_begin(self, task_vars or {})
            result.update(self._execute_module(module_name="guests", task_vars=task_vars))
            if self._task.args.get("checkpoints") and not result.get("failed"):
                Display().display(f"    [{(task_vars or {}).get('inventory_hostname')}] {result['msg']}")
            return result
        arguments = dict(self._task.args)
        path = arguments.pop("ssh_key_path", None)
        if path is not None:
            arguments["ssh_private_key"], arguments["ssh_public_key"] = key_pair(Path(path).resolve())
        result.update(run_with_progress(self, "guests", arguments, task_vars or {}, LIMIT_SECONDS))
        return result


def key_pair(path: Path) -> tuple[str, str]:
    """Return the private and the public key; they are made at the first call and stay private to the user."""
    public = path.with_name(f"{path.name}.pub")
    try:
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "ksm-testbed", "-f", str(path)],
                check=True,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
            )
        return path.read_text(), public.read_text().strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise AnsibleActionFail(
            f"guests_ssh_key_path is {path}, and a key can't be made or read there: {error}"
        ) from None

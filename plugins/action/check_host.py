"""Before anything is changed: become root, see that the host can do the policies, and take its lease.

Arguments:
    policies: each policy by its name, as the action plan returns them; none where none is used.
    packages: what the guests' image is built with for the workloads; none where that is nothing.

The task must `become`. Nothing but the lease is changed. Returns: msg where it failed.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase

from analysis.plan.policies import runs_unit
from analysis.plan.variables import snapshot_path
from analysis.progress.lease import hold

_NO_SYSTEMD = 3
_PACKAGE_LISTS = "/var/lib/apt/lists/*_Packages*"


class ActionModule(ActionBase):  # type: ignore[misc]
    """Controller side; see the module's text."""

    _supports_check_mode = True
    _supports_async = False
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Check, then take the lease."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        _, args = self.validate_argument_spec(
            argument_spec={
                "policies": {"type": "dict", "default": {}},
                "packages": {"type": "list", "elements": "str", "default": []},
            }
        )
        if not self._is_root():
            return {
                **result,
                "failed": True,
                "msg": f"{variables.get('inventory_hostname')}: the testbed changes kernel settings and "
                "needs root, which this user could not become: run as root, or with sudo and "
                "--ask-become-pass.",
            }
        # The modules only look then.
        check_mode, self._task.check_mode = self._task.check_mode, True
        try:
            wrong = self._problem(args["policies"], args["packages"], variables)
        finally:
            self._task.check_mode = check_mode
        if wrong:
            return {**result, **wrong}
        return {**result, "changed": False, **hold(self, variables, new=True)}

    def _problem(
        self, policies: Mapping[str, Any], packages: Sequence[str], variables: dict[str, Any]
    ) -> dict[str, Any]:
        """What a failed module returns, of the first thing that this host cannot do; empty without one."""
        services = [self._service_problem(policy, variables) for policy in policies.values()]
        problems = [one for one in (*services, self._packages_problem(packages)) if one]
        if problems:
            return {"failed": True, "msg": f"{variables.get('inventory_hostname')}: {problems[0]}"}
        for name, policy in policies.items():
            thp = policy["thp_enabled"]
            # As the role ksm asks for it in a cell: pages that others had merged before stay merged.
            asked = {
                "knobs": policy["knobs"],
                "optional": policy["optional_knobs"],
                "thp": {} if thp == "keep" else {"enabled": thp},
                "unmerge": True,
                "reset": True,
                "snapshot": snapshot_path(self, variables),
            }
            seen: dict[str, Any] = self._execute_module(
                module_name="ksm", module_args=asked, task_vars=variables
            )
            if seen.get("failed") or seen.get("unreachable"):
                return {**seen, "msg": f"policy {name}: {seen.get('msg')}"}
        return {}

    def _service_problem(self, policy: Mapping[str, Any], variables: dict[str, Any]) -> str:
        """Why this host cannot run the policy's service, "" where it can or there is none."""
        service = policy["service"]
        if not runs_unit(service):
            return ""
        answer = self._low_level_execute_command(
            f"test -d /run/systemd/system || exit {_NO_SYSTEMD}; "
            f"systemctl cat -- {shlex.quote(service)} >/dev/null"
        )
        why = ""
        if answer["rc"] == _NO_SYSTEMD:
            # Without systemd the role ksm starts what the unit does.
            seen = self._execute_module(
                module_name="unit_process", module_args={"name": service}, task_vars=variables
            )
            why = str(seen.get("msg")).rstrip(".") if seen.get("failed") else ""
        elif answer["rc"]:
            why = f"{service} is not installed on this host: install its package"
        return f"policy {policy['name']}: {why}. Mend that, or choose another policy." if why else ""

    def _packages_problem(self, packages: Sequence[str]) -> str:
        """Which packages of the image apt does not know, "" where it knows all, or has no lists.

        A host of another release than the image's is asked too: names seldom go.
        """
        if not packages:
            return ""
        answer = self._low_level_execute_command(
            f'set -- {_PACKAGE_LISTS}; test -e "$1" && apt-cache pkgnames'
        )
        known = str(answer["stdout"]).split()
        unknown = sorted({package.partition(":")[0] for package in packages} - set(known))
        if not known or not unknown:
            return ""
        return (
            f"workloads need {', '.join(unknown)} in the guests' image, and apt on this host knows no "
            "package of that name: correct packages in the files of workloads/, or run apt-get update."
        )

    def _is_root(self) -> bool:
        try:
            answer = self._low_level_execute_command("id -u")
        except AnsibleConnectionFailure:
            raise
        except AnsibleError:
            return False
        return not answer["rc"] and str(answer["stdout"]).split()[-1:] == ["0"]

"""Put a host right: the one place for the start and the end of a run, for a failure, and for teardown.yml.

Guests go first, since unmerging what they share needs memory. Each step is taken whatever became of those
before it, and what is left is named.

Arguments:
    keeps_guests: leave the guests, and the bound of their memory.
    snapshot: the KSM and THP settings before the first change; left out, the play's ksm_snapshot_path, else
        the role ksm's.
    policies: the folder of the policies on the controller; left out, the project's.
    run_root: the host's /run, for tests.

Returns: changed, and msg where something is left.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase

from analysis.plan.policies import POLICIES, policy_names, read_policy
from analysis.plan.variables import play_variables

SNAPSHOT = "/var/lib/ksm-testbed/ksm-snapshot.json"
BOOT_ID = "/proc/sys/kernel/random/boot_id"
NOT_INSTALLED = "Could not find the requested service"
SERVICE = "ansible.builtin.systemd_service"


class ActionModule(ActionBase):  # type: ignore[misc]
    """Controller side; see the module's text."""

    _supports_check_mode = True
    _supports_async = False
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Take every step, and say what is left."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        _, args = self.validate_argument_spec(
            argument_spec={
                "keeps_guests": {"type": "bool", "default": False},
                "snapshot": {"type": "path"},
                "policies": {"type": "path", "default": str(POLICIES)},
                "run_root": {"type": "path", "default": "/run"},
            }
        )
        given = play_variables(self, variables, ("ksm_snapshot_path",))
        snapshot = str(args["snapshot"] or given.get("ksm_snapshot_path", SNAPSHOT))
        services = [
            (SERVICE, {"name": service, "state": "stopped"})
            for service in self._services(Path(args["policies"]), snapshot, args["run_root"])
        ]
        guests = [] if args["keeps_guests"] else [("guests", {"state": "absent"})]
        envelope = [] if args["keeps_guests"] else [("envelope", {"state": "absent"})]
        steps = {
            "the services of the policies": services,
            "the guests": guests,
            "the KSM and THP settings": [("ksm", {"state": "restored", "snapshot": snapshot})],
            "the bound of their memory": envelope,
        }
        answers = {
            name: [self._module(module, arguments, variables) for module, arguments in modules]
            for name, modules in steps.items()
        }
        left = [f"{name} ({why})" for name, said in answers.items() if (why := reasons(said))]
        result["changed"] = any(answer.get("changed") for said in answers.values() for answer in said)
        # Such as a snapshot that was put aside
        result["warnings"] = [
            text for said in answers.values() for answer in said for text in answer.get("warnings", [])
        ]
        if left:
            result["failed"] = True
            result["msg"] = (
                f"{variables.get('inventory_hostname')} is not put right: {'; '.join(left)}. "
                "Mend that, then run `make teardown`."
            )
        return result

    def _services(self, folder: Path, snapshot: str, run_root: str) -> list[str]:
        """What may tune KSM on this host still; it started none without a snapshot of this boot."""
        services = policy_services(folder)
        look = (
            f"test -e {shlex.quote(f'{run_root}/systemd/system')} && "
            f'grep -qsF -- "$(cat {BOOT_ID})" {shlex.quote(snapshot)}'
        )
        if not services or self._low_level_execute_command(look)["rc"]:
            return []
        return services

    def _module(self, name: str, arguments: Mapping[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        """The module's result, failed=True also where it could not be run."""
        try:
            answer: dict[str, Any] = self._execute_module(
                module_name=name, module_args=dict(arguments), task_vars=task_vars
            )
        except AnsibleConnectionFailure:
            raise
        except AnsibleError as error:
            return {"failed": True, "msg": str(error)}
        return answer


def policy_services(folder: Path) -> list[str]:
    """The services of the policies in a folder, each once."""
    return sorted(
        {service for name in policy_names(folder) if (service := read_policy(name, folder).service)}
    )


def reasons(answers: Sequence[Mapping[str, Any]]) -> str:
    """Why modules failed, each reason once, empty where none did; a service that is not there is stopped."""
    said = (
        " ".join(str(answer.get("msg") or "it failed").split()).rstrip(".")
        for answer in answers
        if answer.get("failed")
    )
    return ", ".join(dict.fromkeys(text for text in said if NOT_INSTALLED not in text))

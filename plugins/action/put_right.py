"""Put a host right: the one place for the start and the end of a run, for a failure, and for teardown.yml.

Guests go first, since unmerging what they share needs memory. Each step is taken whatever became of those
before it, and what is left is named. The steps are modules with their arguments, which the host keeps until
they are done: where no controller is left the holder of its lease takes them (analysis/progress/lease.py).

Arguments:
    begins: a run begins, so that all of this stays owed.
    keeps_guests: leave the guests, and the bound of their memory.
    proves: compare the host with its state before the first change, which is kept beside the snapshot, and
        say what differs; fail where something of the testbed is left.
    snapshot: the KSM and THP settings before the first change; left out, the play's ksm_snapshot_path, else
        the role ksm's.
    policies: the folder of the policies on the controller; left out, the project's.
    run_root: the host's /run, for tests.

Returns: changed, and msg where something is left.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from analysis.plan.policies import POLICIES, policy_names, read_policy, runs_unit
from analysis.plan.variables import snapshot_path
from analysis.progress.lease import hold, lease_directory
from analysis.progress.module import SERIES

STATE = "host-state.json"
# Of the modules ksm_pacer and unit_process
PACER_FOLDER = "ksm-testbed-pacer"
UNIT_FOLDER = "ksm-testbed-unit"
# Of a unit that a policy started, in /run, so that none outlives a reboot (roles/ksm/tasks/service.yml)
UNIT_MARK = "ksm-testbed-started-"
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
                "begins": {"type": "bool", "default": False},
                "keeps_guests": {"type": "bool", "default": False},
                "proves": {"type": "bool", "default": False},
                "snapshot": {"type": "path"},
                "policies": {"type": "path", "default": str(POLICIES)},
                "run_root": {"type": "path", "default": "/run"},
            }
        )
        result |= hold(self, variables, new=args["begins"] or None)
        snapshot = str(args["snapshot"] or snapshot_path(self, variables))
        bound = self._step("the bound of their memory", [("envelope", {"state": "absent"})], variables)
        guests = self._step("the guests", [("guests", {"state": "absent"})], variables)
        pacer = {"state": "stopped", "directory": f"{args['run_root']}/{PACER_FOLDER}"}
        unit = {"state": "stopped", "directory": f"{args['run_root']}/{UNIT_FOLDER}"}
        series = f"{args['run_root']}/{SERIES}"
        steps = [
            # It ends when its file is gone.
            self._step(
                "what samples the host",
                [("ansible.builtin.file", {"path": series, "state": "absent"})],
                variables,
                needs=[series],
            ),
            *(
                self._unit(service, args["run_root"], variables)
                for service in policy_services(Path(args["policies"]))
            ),
            self._step(
                "the service of a policy", [("unit_process", unit)], variables, needs=[unit["directory"]]
            ),
            # It puts back knobs that the step after it may set.
            self._step(
                "the daemon of a policy", [("ksm_pacer", pacer)], variables, needs=[pacer["directory"]]
            ),
            *([] if args["keeps_guests"] else [guests]),
            self._step(
                "the KSM and THP settings", [("ksm", {"state": "restored", "snapshot": snapshot})], variables
            ),
            *([] if args["keeps_guests"] else [bound]),
        ]
        arguments = {
            "steps": json.dumps(steps),
            "begins": args["begins"],
            "directory": lease_directory(self, variables),
        }
        answer = self._execute_module(
            module_name="host_put_right", module_args=arguments, task_vars=variables
        )
        left = list(answer.get("left", []))
        if answer.get("failed") and not left:
            left = [str(answer.get("msg"))]
        result["changed"] = answer.get("changed", False)
        # Such as a snapshot that was put aside
        result["warnings"] = answer.get("warnings", [])
        if args["proves"] and not self._task.check_mode:
            left += self._differences(Path(snapshot).with_name(STATE), variables)
        if left:
            result["failed"] = True
            result["msg"] = (
                f"{variables.get('inventory_hostname')} is not put right: {'; '.join(left)}. "
                "Mend that, then run `make teardown`."
            )
        return result

    def _unit(self, service: str, run_root: str, task_vars: dict[str, Any]) -> dict[str, Any]:
        """Stop a policy's unit where the role ksm marked it as its own; else it is the host's."""
        mark = f"{run_root}/{UNIT_MARK}{service}"
        modules = [
            (SERVICE, {"name": service, "state": "stopped"}),
            ("ansible.builtin.file", {"path": mark, "state": "absent"}),
        ]
        return self._step(f"the service {service}", modules, task_vars, needs=[mark])

    def _differences(self, record: Path, task_vars: dict[str, Any]) -> list[str]:
        """What is not as it was before the first change and must be; shows what is, and what may stay."""
        proof = self._execute_module(
            module_name="host_state",
            module_args={"state": "compared", "record": str(record)},
            task_vars=task_vars,
        )
        said = " ".join(str(proof.get("msg") or "it failed").split())
        if proof.get("failed"):
            return [f"its state ({said.rstrip('.')})"]
        Display().display(f"    [{task_vars.get('inventory_hostname')}] {said}")
        return []

    def _step(
        self,
        name: str,
        modules: list[tuple[str, dict[str, Any]]],
        task_vars: dict[str, Any],
        needs: list[str] | None = None,
    ) -> dict[str, Any]:
        """A step as plugins/module_utils/putting_right.py takes it."""
        texts = [self._text(module, arguments, task_vars) for module, arguments in modules]
        return {"name": name, "needs": needs or [], "modules": texts}

    def _text(self, name: str, arguments: Mapping[str, Any], task_vars: dict[str, Any]) -> str:
        """What Ansible would send to the host to run a module with these arguments."""
        given = dict(arguments)
        self._update_module_args(name, given, task_vars)
        built, _path = self._configure_module(module_name=name, module_args=given, task_vars=task_vars)
        if built.module_style != "new":
            raise AnsibleActionFail(f"module {name} is not one that runs by itself.")
        return str(built.b_module_data.decode())


def policy_services(folder: Path) -> list[str]:
    """The systemd units of the policies in a folder, each once."""
    services = {read_policy(name, folder).service for name in policy_names(folder)}
    return sorted(filter(runs_unit, services))

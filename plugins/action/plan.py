"""Plan a run on the controller: check every variable, write plan.json, return the pending cells."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

from analysis import design as matrix

DOCUMENTATION = r"""
name: plan
short_description: Check the experiment's variables and plan its cells
description:
  - Runs on the controller only; the hypervisors are not touched.
  - Creates C(directory/run_id/plan.json) when it is not there, and adds nothing when it is there and equal.
  - Fails when the run exists with another design, and says in what it differs.
  - What an unfinished attempt at a pending cell left is moved to C(<cell>.attempt<n>).
options:
  variables:
    description: Every variable of the experiment, as Ansible has it.
    type: dict
    required: true
  hypervisors:
    description: Inventory names of the hosts that run the guests.
    type: list
    elements: str
    required: true
  directory:
    description: Directory of all results.
    type: path
    required: true
  run_id:
    description: Name of the run; empty for the UTC time.
    type: str
    default: ""
attributes:
  check_mode:
    support: full
"""

EXAMPLES = r"""
- name: Plan the run
  plan:
    variables:
      focus: "{{ focus }}"
      guests: "{{ guests }}"
    hypervisors: "{{ groups['hypervisors'] }}"
    directory: results
    run_id: "{{ run_id | default('') }}"
  register: plan
  run_once: true
"""

RETURN = r"""
run_id:
  description: Name of the run.
  type: str
  returned: success
run_directory:
  description: Absolute path of the run's directory.
  type: str
  returned: success
cells:
  description: Cells still to be measured, each with its directory.
  type: list
  elements: dict
  returned: success
design:
  description: The variables, typed.
  type: dict
  returned: success
requested:
  description: What each record says under requested.
  type: dict
  returned: success
design_digest:
  description: SHA-256 of what the design measures.
  type: str
  returned: success
"""


class ActionModule(ActionBase):  # type: ignore[misc]
    """Controller-side action; see DOCUMENTATION."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Plan the run."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(
            argument_spec={
                "variables": {"type": "dict", "required": True},
                "hypervisors": {"type": "list", "elements": "str", "required": True},
                "directory": {"type": "path", "required": True},
                "run_id": {"type": "str", "default": ""},
            }
        )
        write = not self._task.check_mode
        try:
            design = matrix.Design.from_variables(arguments["variables"])
            results = Path(arguments["directory"]).expanduser().absolute()
            run_id = str(arguments["run_id"]) or matrix.new_run_id()
            run_directory = results / run_id
            new = matrix.make_plan(design, [str(name) for name in arguments["hypervisors"]], run_id)
            started = (run_directory / matrix.PLAN_FILE).exists()
            plan = matrix.open_run(results, new, write=write)
            directories = [(cell, matrix.cell_directory(run_directory, cell)) for cell in plan.cells]
            pending = [(cell, place) for cell, place in directories if not matrix.is_complete(place)]
            set_aside = [matrix.set_aside_attempt(place) for _cell, place in pending] if write else []
        except matrix.DesignError as error:
            result.update(failed=True, msg=str(error))
            return result
        except OSError as error:
            result.update(failed=True, msg=f"directory cannot hold the run: {error}.")
            return result
        result.update(
            changed=not started or any(set_aside),
            run_id=plan.run_id,
            run_directory=str(run_directory),
            cells=[{**asdict(cell), "directory": str(place)} for cell, place in pending],
            design=design.to_json(),
            requested=design.requested,
            design_digest=plan.design_digest,
        )
        return result

"""Plan a run on the controller: check every variable, write plan.json, return the cells and their needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

from analysis.errors import UserError
from analysis.plan import design as matrix
from analysis.plan import disk, proof, runs
from analysis.plan.variables import play_variables

DOCUMENTATION = r"""
name: plan
short_description: Check the experiment's variables and plan its cells
description:
  - Runs on the controller only; the hypervisors are not touched.
  - Creates C(directory/run_id/plan.json) when it is not there, and adds nothing when it is there and equal.
  - Fails when the run exists with another design, and says in what it differs. A run that exists keeps the
    order of its cells.
  - What an unfinished attempt at a pending cell left is moved to C(<cell>.attempt<n>).
options:
  variables:
    description: Every variable of the experiment, see docs/variables.md; the play's own where it is left out.
    type: dict
  hypervisors:
    description: Inventory names of the hosts that run the guests; the group hypervisors where it is left out.
    type: list
    elements: str
  directory:
    description: Directory of all results; the play's results_directory where it is left out.
    type: path
  run_id:
    description: Name of the run, empty for the UTC time; the play's run_id where it is left out.
    type: str
  forecast:
    description: >-
      Files of the forecasts that the run is to prove, with commas between, each of which must cover some of
      its cells; the play's own forecast where it is left out. A run that exists keeps its own where none is
      given.
    type: str
attributes:
  check_mode:
    support: full
"""

EXAMPLES = r"""
- name: Plan the run
  plan:
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
created_at:
  description: When the run was planned first.
  type: str
  returned: success
cell_order_seed:
  description: What the order of the cells was drawn from.
  type: int
  returned: success
forecasts:
  description: Name, time and SHA-256 of each forecast that the run names.
  type: list
  elements: dict
  returned: success
cells:
  description: >-
    Every cell in the order of the run, with cell_id, workload, policy, guests, guest_memory_bytes, boot and
    repetition. Its directory is C(run_directory/hypervisor/cell_id).
  type: list
  elements: dict
  returned: success
pending:
  description: The cell_id of each cell still to be measured, by hypervisor, in the order of the run.
  type: dict
  returned: success
disk_needs:
  description: >-
    What is still to be stored, by hypervisor, as the module host_preflight takes it; the records only where
    the hypervisor is the controller, which has been looked at itself.
  type: dict
  returned: success
policies:
  description: >-
    Each policy by its name, the overrides of ksm_knobs and thp_enabled laid over it, with run, knobs,
    optional_knobs, thp_enabled, service, and what each record of its cells says under requested.
  type: dict
  returned: success
workloads:
  description: >-
    Each single workload that occurs, those within a mix too, by its name, with its segments or application.
  type: dict
  returned: success
image_packages:
  description: Packages that the built image has beyond the plain one, for the applications of the run.
  type: list
  returned: success
design:
  description: The variables, typed.
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
                "variables": {"type": "dict"},
                "hypervisors": {"type": "list", "elements": "str"},
                "directory": {"type": "path"},
                "run_id": {"type": "str"},
                "forecast": {"type": "str"},
            }
        )
        beside = (*disk.FOLDERS, "results_directory", "run_id", proof.VARIABLE)
        given = play_variables(self, task_vars or {}, (*matrix.VARIABLES, *beside))
        variables = arguments["variables"] or {name: given.get(name) for name in matrix.VARIABLES}
        hypervisors = arguments["hypervisors"] or (task_vars or {}).get("groups", {}).get("hypervisors", [])
        write = not self._task.check_mode
        try:
            design = matrix.Design.from_variables(variables)
            directory = arguments["directory"] or given.get("results_directory", "results")
            results = Path(directory).expanduser().absolute()
            run_id = str(arguments["run_id"] or given.get("run_id") or matrix.new_run_id())
            run_directory = results / run_id
            forecasts = proof.given_forecasts(arguments["forecast"] or given.get(proof.VARIABLE, ""))
            new = runs.make_plan(design, [str(name) for name in hypervisors], run_id, proof.named(forecasts))
            proof.check_cells(forecasts, new.cells)
            started = (run_directory / matrix.PLAN_FILE).exists()
            plan = runs.open_run(results, new, write=write)
            pending = runs.pending_cells(plan, run_directory)
            by_host = {
                host: [cell for cell in pending if cell.hypervisor == host]
                for host in dict.fromkeys([*map(str, hypervisors), *plan.hypervisors])
            }
            records = {
                host: disk.records_need(len(cells), design.to_json(), str(run_directory))
                for host, cells in by_host.items()
            }
            disk.check_records(records.values())
            places = [matrix.cell_directory(run_directory, cell) for cell in pending]
            set_aside = [runs.set_aside_attempt(place) for place in places] if write else []
        except UserError as error:
            result.update(failed=True, msg=str(error))
            return result
        except OSError as error:
            result.update(failed=True, msg=f"directory cannot hold the run: {error}.")
            return result
        stored = plan.to_json()
        most = max(cell.guests for cell in plan.cells)
        result.update(
            changed=not started or any(set_aside),
            run_id=plan.run_id,
            run_directory=str(run_directory),
            created_at=plan.created_at,
            cell_order_seed=plan.cell_order_seed,
            forecasts=stored.get("forecasts", []),
            cells=_without_hypervisor(plan.cells),
            pending={host: [cell.cell_id for cell in cells] for host, cells in by_host.items()},
            disk_needs={
                host: [
                    *disk.host_needs(
                        disk.checkpoints(cells, most, stored["workloads"]),
                        most,
                        design.to_json(),
                        plan.created_at,
                        given,
                    ),
                    *([records[host]] if disk.is_local(task_vars or {}, host) else []),
                ]
                for host, cells in by_host.items()
            },
            policies=stored["policies"],
            workloads=stored["workloads"],
            image_packages=design.image_packages,
            design=design.to_json(),
            design_digest=plan.design_digest,
        )
        return result


def _without_hypervisor(cells: Sequence[matrix.Cell]) -> list[dict[str, Any]]:
    """The matrix, each cell once: those that some hypervisor measures, in their order."""
    return list(
        {
            cell.cell_id: {name: value for name, value in asdict(cell).items() if name != "hypervisor"}
            for cell in cells
        }.values()
    )

"""Plans and directories of cells for the tests of the matrix; no record in them is whole."""

from pathlib import Path
from typing import Any

import yaml

from analysis.design import PROJECT, RECORD_KINDS, Cell, Design, Plan, cell_directory, make_plan, open_run

RUN_ID = "planned"


def variables(**changes: Any) -> dict[str, Any]:
    """Every variable of the experiment as group_vars gives it, with changes."""
    given = yaml.safe_load((PROJECT / "inventory/group_vars/all/experiment.yml").read_text())
    del given["results_directory"]
    return {**given, **changes}


def planned(*, hosts: tuple[str, ...] = ("host1",), **changes: Any) -> Plan:
    """A plan; the order of its cells is always the same unless a seed is given."""
    return make_plan(Design.from_variables(variables(**{"cell_order_seed": 7, **changes})), hosts, RUN_ID)


def complete(run_directory: Path, cell: Cell) -> Path:
    """Leave a file for each record of a cell, and return its directory."""
    place = cell_directory(run_directory, cell)
    place.mkdir(parents=True)
    for kind in RECORD_KINDS:
        (place / f"{kind}.json").write_text("{}")
    return place


def measured(results: Path, plan: Plan) -> Path:
    """A run all of whose cells are complete."""
    open_run(results, plan)
    for cell in plan.cells:
        complete(results / plan.run_id, cell)
    return results / plan.run_id

"""Plans and directories of cells for the tests of the matrix."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from playing import QUICK
from synthetic import synthetic_records

from analysis.plan.design import (
    PROJECT,
    Cell,
    Design,
    cell_directory,
)
from analysis.plan.runs import make_plan, open_run
from analysis.records.models import PlanRecord

RUN_ID = "planned"


def variables(**changes: Any) -> dict[str, Any]:
    """Every variable of the experiment as group_vars gives it, with changes."""
    given = yaml.safe_load((PROJECT / "inventory/group_vars/all/experiment.yml").read_text())
    del given["results_directory"]
    return {**given, **changes}


def planned(*, hosts: tuple[str, ...] = ("host1",), **changes: Any) -> PlanRecord:
    """A plan; the order of its cells is always the same unless a seed is given."""
    return make_plan(Design.from_variables(variables(**{"cell_order_seed": 7, **changes})), hosts, RUN_ID)


def complete(run_directory: Path, plan: PlanRecord, cell: Cell) -> Path:
    """Leave each record of a cell, and return its directory."""
    place = cell_directory(run_directory, cell)
    place.mkdir(parents=True)
    for kind, record in synthetic_records(plan, cell).items():
        (place / f"{kind}.json").write_text(json.dumps(record))
    return place


def measured(results: Path, plan: PlanRecord) -> Path:
    """A run all of whose cells are complete."""
    open_run(results, plan)
    for cell in plan.cells:
        complete(results / plan.run_id, plan, cell)
    return results / plan.run_id


def play_action(directory: Path, task: dict[str, Any], *words: str) -> dict[str, Any]:
    """The result of one task on the controller through ansible-playbook, also where it failed."""
    keep = {"content": "{{ result | to_json }}", "dest": str(directory / "result.json"), "mode": "0600"}
    tasks = [
        {**task, "register": "result", "ignore_errors": True},
        {"ansible.builtin.copy": keep, "check_mode": False},
    ]
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": tasks}
    (directory / "play.yml").write_text(json.dumps([play]))
    (directory / "ansible.cfg").write_text(QUICK)
    ansible = Path(sys.executable).with_name("ansible-playbook")
    subprocess.run(
        [ansible, "-i", "localhost,", directory / "play.yml", *words],
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(directory / "ansible.cfg"),
            "ANSIBLE_ACTION_PLUGINS": str(PROJECT / "plugins" / "action"),
            "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
        },
        cwd=directory,
        check=True,
        capture_output=True,
    )
    result: dict[str, Any] = json.loads((directory / "result.json").read_text())
    return result

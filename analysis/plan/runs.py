"""A run on disk: its plan, made, opened and read, and which of its cells are still owed."""

import json
import secrets
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from analysis.plan.design import (
    HANDLING,
    LOADS,
    PLAN_FILE,
    RECORD_KINDS,
    REFUSE,
    SCHEMA_VERSION,
    SEED,
    SEEDS,
    Cell,
    Design,
    DesignError,
    cell_directory,
    check_hypervisors,
    check_run_id,
)
from analysis.records.models import PHASES, NamedForecast, PlanRecord
from analysis.records.reading import RecordError, read_record
from analysis.records.writing import write_record

# What the design of a plan that was made before this variable does
_SINCE = {"others": REFUSE, "keep_loaded": True, "probes": 0, "pinned": []}
_ONE_OF = {"policies": "policy", "workloads": "workload"}


def make_plan(
    design: Design, hypervisors: Sequence[str], run_id: str, forecasts: Sequence[NamedForecast] = ()
) -> PlanRecord:
    """The plan of a run on these hypervisors; the seed of its order is drawn where the design has none.

    ``forecasts``: those that the run is to prove (see :mod:`analysis.plan.proof`).

    Raises DesignError when there is no hypervisor, or one whose name cannot be a directory.
    """
    if not hypervisors:
        raise DesignError("hypervisors is empty: the inventory group hypervisors needs at least one host.")
    check_hypervisors(hypervisors)
    seed = secrets.randbelow(SEEDS) if design.cell_order_seed is None else design.cell_order_seed
    content = {
        "schema_version": SCHEMA_VERSION,
        "kind": "plan",
        "run_id": check_run_id(run_id),
        "created_at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}",
        "cell_order_seed": seed,
        "design": design.to_json(),
        "design_digest": design.digest,
        "policies": design.policies_json(),
        "workloads": design.workloads_json(),
        "forecasts": [one.to_json() for one in forecasts],
        "cells": [asdict(cell) for cell in design.cells(hypervisors, seed)],
    }
    return PlanRecord.model_validate_json(json.dumps(content))


def read_plan(run_directory: Path) -> PlanRecord:
    """Read plan.json of a run.

    Raises RecordError when it is absent or is no such plan.
    """
    path = run_directory / PLAN_FILE
    if not path.exists():
        raise RecordError(f"{path} is missing: {run_directory} is not a run.")
    try:
        return read_record(path, PlanRecord)
    except RecordError as error:
        raise RecordError(f"{run_directory}: {error}.") from None


def open_run(results: Path, plan: PlanRecord, *, write: bool = True) -> PlanRecord:
    """Start the run of a plan under results, or go on with the one that is there.

    Writes plan.json (0600, directories 0700) only when there is none and ``write`` is true. A run that is
    there keeps its own order of cells, and its own forecasts where the plan names none.
    Raises DesignError when the run exists and its design, hypervisors or forecasts differ, saying in what.
    """
    run_directory = results / plan.run_id
    path = run_directory / PLAN_FILE
    if path.exists():
        former = read_plan(run_directory)
        differences = design_differences(former, plan)
        if differences:
            raise DesignError(
                f"run_id {plan.run_id} exists with another design ({'; '.join(differences)}): "
                "give the same values to go on with it, or another run_id."
            )
        return former
    if write:
        write_record(path, plan.to_json(), PlanRecord)
    return plan


def design_differences(former: PlanRecord, new: PlanRecord) -> list[str]:
    """What the new plan would measure otherwise, as "name: former value, now new value"."""
    before, now = former.to_json(), new.to_json()
    pairs = {
        name: ((_SINCE | before["design"]).get(name), value)
        for name, value in now["design"].items()
        if name not in HANDLING | LOADS | {SEED}
    }
    pairs["workloads"] = (former.loads, new.loads)
    pairs["hypervisors"] = (former.hypervisors, new.hypervisors)
    if new.design.cell_order_seed != "":
        pairs[SEED] = (former.cell_order_seed, new.cell_order_seed)
    if new.forecasts:
        pairs["forecast"] = (_named(former), _named(new))
    differences = [
        f"{name}: {_listed(was)}, now {_listed(asked)}"
        for name, (was, asked) in pairs.items()
        if was != asked
    ]
    # Other variables make other policies, too; where there are none it is the files that changed.
    return differences or [
        f"{_ONE_OF[what]} {name} is not what it was: its file has changed"
        for what in ("policies", "workloads")
        for name in now[what]
        if before[what].get(name) != now[what][name]
    ]


def is_complete(directory: Path) -> bool:
    """Whether a cell's directory has all of its records, each of which can be read, and no failure."""
    if (directory / "failed.json").exists():
        return False
    try:
        for kind in RECORD_KINDS:
            read_record(directory / f"{kind}.json", PHASES[kind])
    except RecordError:
        return False
    return True


def pending_cells(plan: PlanRecord, run_directory: Path) -> list[Cell]:
    """The planned cells of a run that are not complete, in the order of the plan."""
    return [cell for cell in plan.cells if not is_complete(cell_directory(run_directory, cell))]


def set_aside_attempt(directory: Path) -> Path | None:
    """Move what an unfinished attempt at a cell left to ``<cell>.attempt<n>``: nothing is overwritten.

    Returns the new place, or None when there was nothing.
    """
    if not directory.is_dir() or not any(directory.iterdir()):
        return None
    number = 1
    while (place := directory.with_name(f"{directory.name}.attempt{number}")).exists():
        number += 1
    return directory.rename(place)


def _named(plan: PlanRecord) -> list[str]:
    """The forecasts of a plan; digits enough of the digest tell two of one name apart."""
    return [f"{one.forecast_id} ({one.digest[:19]}...)" for one in plan.forecasts or ()] or ["none"]


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else json.dumps(value)

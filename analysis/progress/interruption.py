"""What a run that was interrupted, or lost a host, leaves in its records: the cell that it hit says so."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from analysis.plan.design import SCHEMA_VERSION, Cell, DesignError, cell_directory
from analysis.plan.runs import is_complete, read_plan
from analysis.records.models import FailedRecord, PartialProvenance, PlanRecord
from analysis.records.writing import write_record

MESSAGE = "interrupted by the user"


def record_interruption(
    run_directory: Path, hypervisor_cells: Mapping[str, tuple[str, str, str]], message: str = MESSAGE
) -> list[Path]:
    """Write failed.json in the cell that each hypervisor was measuring.

    Args:
        run_directory: of the run, with its plan.
        hypervisor_cells: hypervisor -> cell_id, the phase (restore, load, survey, off, merge, on, census,
            verify) and the task that ran. Nothing is written for a hypervisor that is not in it, nor in a
            cell that has all of its records or has failed already.
        message: why.

    Returns the files written. Raises UserError when the directory is not a run or the run has no such cell.
    """
    plan = read_plan(run_directory)
    cells = {(cell.hypervisor, cell.cell_id): cell for cell in plan.cells}
    written = []
    for hypervisor, (cell_id, phase, task) in hypervisor_cells.items():
        cell = cells.get((hypervisor, cell_id))
        if cell is None:
            raise DesignError(f"{run_directory} has no cell {cell_id} on {hypervisor}.")
        place = cell_directory(run_directory, cell)
        path = place / "failed.json"
        if is_complete(place) or path.exists():
            continue
        write_record(path, _record(plan, cell, (phase, task, message)), FailedRecord)
        written.append(path)
    return written


def _record(plan: PlanRecord, cell: Cell, observed: tuple[str, str, str]) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "failed",
        "run_id": plan.run_id,
        "recorded_at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}",
        "monotonic_seconds": None,
        "cell": asdict(cell),
        "requested": plan.policies[cell.policy].requested.to_json(),
        # Nothing of the host, nor of how the guests came to be, is known here.
        "provenance": {
            **dict.fromkeys(PartialProvenance.model_fields),
            "design_digest": plan.design_digest,
            "guest_memory_bytes": cell.guest_memory_bytes,
        },
        "observed": dict(zip(("phase", "task", "message"), observed, strict=True)),
    }

"""What a run that was interrupted leaves in its records: the cell that it hit says so."""

import json
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from analysis.design import (
    RECORD_KINDS,
    SCHEMA_VERSION,
    Cell,
    Design,
    Plan,
    cell_directory,
    is_complete,
    read_plan,
    write_private,
)

MERGED_FIRST = ("merge", "on", "verify", "off")


def record_interruption(run_directory: Path) -> list[Path]:
    """Write failed.json in the first cell of each hypervisor that has not all of its records.

    Returns the files written. Raises DesignError when the directory is not a run.
    """
    plan = read_plan(run_directory)
    hit: dict[str, Cell] = {}
    for cell in plan.cells:
        if not is_complete(cell_directory(run_directory, cell)):
            hit.setdefault(cell.hypervisor, cell)
    written = []
    for cell in hit.values():
        place = cell_directory(run_directory, cell)
        path = place / "failed.json"
        if not path.exists():
            for directory in (place.parent, place):
                directory.mkdir(mode=0o700, exist_ok=True)
            write_private(path, json.dumps(_record(plan, cell, place), indent=1) + "\n")
            written.append(path)
    return written


def _record(plan: Plan, cell: Cell, place: Path) -> dict[str, Any]:
    schema = json.loads(files("analysis").joinpath("schema/record.schema.json").read_text(encoding="utf-8"))
    order = RECORD_KINDS if cell.order == "off-on" else MERGED_FIRST
    variables = {name: value for name, value in plan.design.items() if name != "run_id"}
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "failed",
        "run_id": plan.run_id,
        "recorded_at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}",
        "monotonic_seconds": None,
        "cell": vars(cell),
        "requested": Design.from_variables(variables).requested,
        # Nothing of the host is known here.
        "provenance": {
            **dict.fromkeys(schema["properties"]["provenance"]["required"]),
            "design_digest": plan.design_digest,
            "guest_memory_bytes": cell.guest_memory_bytes,
        },
        "observed": {
            "phase": next((kind for kind in order if not (place / f"{kind}.json").exists()), order[-1]),
            "task": "",
            "message": "interrupted by the user",
        },
    }

"""Raw records from results/: found, read, checked against the JSON Schema, never changed."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema.exceptions import best_match
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for

from analysis.errors import UserError
from analysis.plan.design import (
    PLAN_FILE,
    RECORD_KINDS,
    REFERENCE,
    RESULTS,
    Cell,
    Plan,
    cell_directory,
    read_plan,
)
from analysis.records.migration import migrate_record

SCHEMA = Path(__file__).resolve().parent / "schema" / "record.schema.json"

COMPLETE, FAILED, INVALID, MISSING = "complete", "failed", "invalid", "missing"

# What a service that tunes KSM, such as ksmtuned, sets by itself.
_SERVICE_KNOBS = frozenset({"run", "pages_to_scan", "sleep_millisecs"})

# Constant from one arm to the other. Not so the knobs: with KSM off they say nothing.
_SAME_IN_BOTH_ARMS = (
    "kernel_release",
    "page_size_bytes",
    "qemu_version",
    "accelerator",
    "image_digest",
    "guest_memory_bytes",
    "thp",
)


class RecordError(UserError):
    """Results that cannot be used."""


@dataclass(frozen=True)
class CellRecords:
    """What is stored for one planned cell.

    ``status`` is complete, failed (a failed.json), invalid (a record that cannot be used) or missing;
    ``problem`` says why in one sentence when it is not complete.
    """

    cell: Cell
    directory: Path
    status: str
    problem: str
    records: dict[str, dict[str, Any]]

    def observed(self, kind: str) -> dict[str, Any]:
        """What a record of this cell observed."""
        observed: dict[str, Any] = self.records[kind]["observed"]
        return observed

    @property
    def provenance(self) -> dict[str, Any]:
        """Host, kernel, image and knobs as the on arm was measured with them."""
        provenance: dict[str, Any] = self.records["on"]["provenance"]
        return provenance

    @property
    def start(self) -> dict[str, Any] | None:
        """What the cell's guests began from; None while no record says it."""
        starts = (record["provenance"]["start"] for record in self.records.values())
        return next((start for start in starts if start is not None), None)

    @property
    def boot_key(self) -> str:
        """Of which physical boot its guests are: cells of a host with the same text are of one replicate.

        The time of the boot, which each checkpoint of it has; where it is not known, the boot by its number
        in its run. Needs a complete cell.
        """
        booted_at = self.provenance["start"]["booted_at"]
        if booted_at is None:
            return f"{self.records['on']['run_id']} boot {self.cell.boot}"
        return str(booted_at)

    @property
    def page_size_bytes(self) -> int:
        """Page size of the host."""
        return int(self.provenance["page_size_bytes"])


@dataclass(frozen=True)
class Run:
    """A run: its plan, and each planned cell with what is stored for it."""

    directory: Path
    plan: Plan
    cells: tuple[CellRecords, ...]


def load_run(directory: Path) -> Run:
    """Read a run. Raises DesignError when its plan cannot be read."""
    plan = read_plan(directory)
    return Run(directory, plan, tuple(_load_cell(plan, directory, cell) for cell in plan.cells))


def find_runs(results: Path) -> list[Path]:
    """Directories of the runs under ``results``, oldest first.

    ``results`` may be a run itself. The published reference is never taken for the user's own results.
    Raises RecordError when there is none, saying what to run.
    """
    found = list(_run_directories(results))
    if not found:
        raise RecordError(
            f"{results} holds no results: run `make experiment FOCUS=3`, or "
            "`ansible-playbook playbooks/experiment.yml -e focus=3`; the published reference campaign "
            f"is shown with `--results {RESULTS.name}/{REFERENCE}`."
        )
    return sorted(found, key=lambda directory: (read_plan(directory).created_at, directory.name))


def find_run(results: Path, run_id: str) -> Path:
    """Directory of one run by its id. Raises RecordError naming the runs that exist."""
    candidates = [*_run_directories(results), *_run_directories(results / REFERENCE)]
    for directory in candidates:
        if run_id in (directory.name, read_plan(directory).run_id):
            return directory
    known = ", ".join(read_plan(directory).run_id for directory in candidates) or "none"
    raise RecordError(f"run {run_id!r} is not under {results}: there are {known}.")


def flat(mapping: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping with dotted names."""
    items: dict[str, Any] = {}
    for name, value in mapping.items():
        if isinstance(value, dict):
            items.update(flat(value, f"{prefix}{name}."))
        else:
            items[f"{prefix}{name}"] = value
    return items


def self_tuned(knobs: Mapping[str, Any], service: str) -> frozenset[str]:
    """The knobs that KSM or a tuner sets by itself, so that their values are no condition of a measurement.

    run is the protocol's own; the advisor sets pages_to_scan anew at each scan.
    """
    if service:
        return _SERVICE_KNOBS
    adaptive = str(knobs.get("advisor_mode", "none")).strip() not in ("none", "")
    return frozenset({"run", "pages_to_scan"} if adaptive else {"run"})


def _run_directories(results: Path) -> Iterator[Path]:
    if (results / PLAN_FILE).is_file():
        yield results
    elif results.is_dir():
        for directory in sorted(results.iterdir()):
            if directory.name != REFERENCE and (directory / PLAN_FILE).is_file():
                yield directory


def _load_cell(plan: Plan, run_directory: Path, cell: Cell) -> CellRecords:
    directory = cell_directory(run_directory, cell)
    records: dict[str, dict[str, Any]] = {}
    problem = ""
    for kind in (*RECORD_KINDS, "failed"):
        path = directory / f"{kind}.json"
        if not path.exists():
            continue
        try:
            records[kind] = _read_record(path, kind, plan.run_id, cell)
        except RecordError as error:
            problem = problem or str(error)
    missing = [kind for kind in RECORD_KINDS if kind not in records]
    if "failed" in records:
        failure = records["failed"]["observed"]
        status = FAILED
        problem = f"failed in {failure['phase']}, task {failure['task']!r}: {failure['message']}"
    elif problem:
        status = INVALID
    elif missing:
        status = MISSING
        problem = f"not measured: no {', '.join(missing)} record" + ("s" if len(missing) > 1 else "")
    else:
        problem = _inconsistency(cell, records)
        status = INVALID if problem else COMPLETE
    return CellRecords(cell, directory, status, problem, records)


def _read_record(path: Path, kind: str, run_id: str, cell: Cell) -> dict[str, Any]:
    try:
        record = migrate_record(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise RecordError(f"{path.name} cannot be read: {error}") from None
    breach = best_match(_validator().iter_errors(record))
    if breach is not None:
        raise RecordError(
            f"{path.name} breaks the schema at {breach.json_path}: {_first_line(breach.message)}"
        )
    if record["kind"] != kind:
        raise RecordError(f"{path.name} holds a record of kind {record['kind']}")
    if record["run_id"] != run_id or record["cell"] != asdict(cell):
        raise RecordError(f"{path.name} is the record of another cell or run")
    return dict(record)


def _first_line(message: str) -> str:
    line = message.splitlines()[0]
    return line if len(line) <= 160 else f"{line[:80]} ... {line[-76:]}"


@cache
def _validator() -> Validator:
    try:
        schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"the record schema cannot be read: {error}") from None
    return validator_for(schema)(schema)


def _inconsistency(cell: Cell, records: dict[str, dict[str, Any]]) -> str:
    """Why the records of a cell do not belong together, "" when they do."""
    checks = (_guests_differ, _conditions_differ, _treatments_differ)
    found = next((problem for check in checks if (problem := check(cell, records))), "")
    samples = records["merge"]["observed"]["samples"]
    if not found and (len({len(column) for column in samples.values()}) != 1 or not samples["seconds"]):
        return "the columns of the merge samples are empty or of different lengths"
    return found


def _guests_differ(cell: Cell, records: dict[str, dict[str, Any]]) -> str:
    guests = {kind: records[kind]["observed"]["guests"] for kind in ("off", "on")}
    for kind, seen in guests.items():
        if len(seen) != cell.guests:
            return f"{kind} saw {len(seen)} guests of {cell.guests}"
        apart = sorted(n for n, guest in seen.items() if guest["mergeable_bytes"] < cell.guest_memory_bytes)
        if apart:
            return f"KSM could not merge all memory of {', '.join(apart)}: it is not private, or not advised"
    changed = sorted(
        name for name, seen in guests["off"].items() if guests["on"].get(name, {}).get("pid") != seen["pid"]
    )
    return f"off and on saw different processes for {', '.join(changed)}" if changed else ""


def _conditions_differ(_cell: Cell, records: dict[str, dict[str, Any]]) -> str:
    off, merge, on = (records[kind]["provenance"] for kind in ("off", "merge", "on"))
    differing = [name for name in _SAME_IN_BOTH_ARMS if off.get(name) != on.get(name)]
    if differing:
        return f"off and on were measured with different {', '.join(differing)}"
    knobs = [seen["ksm_knobs"] for seen in (merge, on)]
    tuned = self_tuned(knobs[1], records["on"]["requested"]["service"])
    differing = [
        f"ksm_knobs.{name}"
        for name in sorted(knobs[0].keys() | knobs[1].keys())
        if name not in tuned and knobs[0].get(name) != knobs[1].get(name)
    ]
    return f"merge and on were measured with different {', '.join(differing)}" if differing else ""


def _treatments_differ(cell: Cell, records: dict[str, dict[str, Any]]) -> str:
    asked = [records[kind]["requested"] for kind in RECORD_KINDS]
    if any(one != asked[0] for one in asked):
        return "its records were asked for with different values"
    if asked[0]["policy"] != cell.policy:
        return f"its records are of the policy {asked[0]['policy']}"
    starts = [records[kind]["provenance"]["start"] for kind in RECORD_KINDS]
    return "its records began from different starts" if any(one != starts[0] for one in starts) else ""

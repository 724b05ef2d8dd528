"""The tidy table: one row for each planned cell, measures in bytes, provenance beside them."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.measure.burndown import burndown
from analysis.measure.others import marks
from analysis.measure.saving import OF_HOST, PER_VM, Unknown, parted, saving
from analysis.plan.design import MIB
from analysis.plan.policies import OFF
from analysis.records.checks import conditions, flat, swap_used_bytes
from analysis.records.loading import COMPLETE, CellRecords, Run

KEY = ["run_id", "hypervisor", "cell_id"]
PROVENANCE = "provenance."
REQUESTED = "requested."
# When a saving counted as settled, and what a rule has that watched the guests' memory, too
RULE, GUESTS_MEMORY_TOO = "convergence_rule", ", guests' memory too"

# What is done to the guests: cells that differ in one of these are never pooled.
TREATMENT = (
    "workload",
    "policy",
    "guests",
    "guest_memory_bytes",
    "start_from",
    "loaded",
)

UNCONVERGED, DAMAGED = "unconverged", "damaged"

# What is averaged; the registry of quantities says what each is.
QUANTITIES = (*PER_VM, *OF_HOST, "converged_after_seconds", "ksmd_cpu_seconds")


def tidy(runs: list[Run]) -> pd.DataFrame:
    """One row for each planned cell of the runs, in the order of their plans.

    Columns: the cell's identity; what its guests began from: ``start_from`` (checkpoint or boot; "" while no
    cell of the run tells), ``checkpoint``, ``booted_at``, ``boot_seconds``, ``restore_seconds``, ``loaded``;
    ``boot_key``, the physical boot, which is the replicate; ``status`` (complete, unconverged,
    damaged, failed, invalid, missing) and ``problem``; the QUANTITIES, in MiB for each guest or of
    the whole host, or seconds; ``unknown``, why some of them are not known; ``parted_mib``, by how much the
    host's memory freed parts from the guests' (see :func:`analysis.measure.saving.parted`); ``converged`` as
    recorded, and ``settled`` when the samples judged again say so too; ``swap_used_bytes``, the host's swap
    in use when the cell began; ``provenance.*`` and ``requested.*``, the conditions.
    What was not measured is NaN or None, never 0. Only a row of status complete may be averaged.
    Cells under the policy off, in which nothing was to be saved, have no row.
    """
    cells = [
        (run.plan.run_id, records) for run in runs for records in run.cells if records.cell.policy != OFF
    ]
    measured = [(run_id, records) for run_id, records in cells if records.status == COMPLETE]
    table = _frame(
        [
            {**_identity(run_id, records), **_planned(records), **_start(run_id, records, cells)}
            for run_id, records in cells
        ]
    )
    for part in (_saving, _merging, _verification, _conditions):
        rows = [{**_identity(run_id, records), **part(records)} for run_id, records in measured]
        table = table.merge(_frame(rows), how="left", on=KEY, validate="one_to_one")
    for name in (*QUANTITIES, "parted_mib"):
        if name not in table:
            table[name] = float("nan")
    for name in ("boot_key", "unknown"):
        if name not in table:
            table[name] = None
    finished = table.to_dict("records")
    return table.assign(status=list(map(_status, finished)), problem=list(map(_problem, finished)))


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=None if rows else KEY)


def _identity(run_id: str, records: CellRecords) -> dict[str, Any]:
    return {"run_id": run_id, "hypervisor": records.cell.hypervisor, "cell_id": records.cell.cell_id}


def _planned(records: CellRecords) -> dict[str, Any]:
    cell = records.cell
    return {
        "workload": cell.workload,
        "policy": cell.policy,
        "guests": cell.guests,
        "guest_memory_bytes": cell.guest_memory_bytes,
        "boot": cell.boot,
        "repetition": cell.repetition,
        "status": records.status,
        "problem": records.problem,
    }


def _start(run_id: str, records: CellRecords, cells: Sequence[tuple[str, CellRecords]]) -> dict[str, Any]:
    """The start of a cell; where no record of its own tells, in which way cells like it began."""
    start = records.start
    if start is None:
        return {
            **dict.fromkeys(("checkpoint", "booted_at"), None),
            **dict.fromkeys(("boot_seconds", "restore_seconds"), float("nan")),
            **_start_of_the_like(run_id, records, cells),
        }
    return {
        "start_from": start.origin,
        **{name: getattr(start, name) for name in ("checkpoint", "booted_at", "loaded")},
        **{name: _number(getattr(start, name)) for name in ("boot_seconds", "restore_seconds")},
    }


def _start_of_the_like(
    run_id: str, records: CellRecords, cells: Sequence[tuple[str, CellRecords]]
) -> dict[str, Any]:
    """For a cell that was not measured: so it stands in the row in which it is missing."""
    cell = records.cell
    like = [
        (other.cell.workload == cell.workload, start)
        for run, other in cells
        if (run, other.cell.hypervisor) == (run_id, cell.hypervisor) and (start := other.start) is not None
    ]
    if not like:
        return {"start_from": "", "loaded": False}
    same_workload, start = max(like, key=lambda found: found[0])
    return {"start_from": start.origin, "loaded": start.loaded and same_workload}


def _saving(records: CellRecords) -> dict[str, Any]:
    seen = saving(records)
    values = seen.quantities()
    reasons: dict[str, list[str]] = {}
    for name, value in values.items():
        if isinstance(value, Unknown):
            reasons.setdefault(value.reason, []).append(name)
    apart = parted(seen)
    return {
        **{n: float("nan") if isinstance(value, Unknown) else value for n, value in values.items()},
        "unknown": "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items()),
        "parted_mib": float("nan") if apart is None else apart / MIB,
    }


def _merging(records: CellRecords) -> dict[str, Any]:
    merge = records.merge.observed
    cpu_seconds = merge.samples.ksmd_cpu_seconds
    judged = burndown(records)
    return {
        RULE: _rule(records),
        "converged": merge.converged,
        "settled": judged.settled,
        "convergence_reason": judged.reason if merge.converged else merge.reason,
        "converged_after_seconds": _number(merge.converged_after_seconds),
        "ksmd_cpu_seconds": cpu_seconds[-1] - cpu_seconds[0],
    }


def _rule(records: CellRecords) -> str:
    """When a saving counted as settled; a longer wait for it is the same rule."""
    rule = records.merge.requested.convergence
    words = f"{rule.threshold_percent:g} % over {rule.window_scans} of at least {rule.min_full_scans} scans"
    watched = records.merge.observed.samples.guests_anon_pages is not None
    return words + GUESTS_MEMORY_TOO if watched else words


def _verification(records: CellRecords) -> dict[str, Any]:
    guests = records.verify.observed.guests
    damaged = sorted(name for name, guest in guests.items() if not guest.intact)
    return {"digests_intact": not damaged, "damaged_guests": ", ".join(damaged)}


def _conditions(records: CellRecords) -> dict[str, Any]:
    """The physical boot, and what two measurements must have in common to be of one treatment."""
    asked, found = records.on.requested, records.provenance
    # Named where it is: guests that are probed hold more, and were asked something between the two arms.
    probes = {} if asked.probes is None else {"probes": asked.probes, "rehearsed": asked.rehearsed}
    reserve = {"guest_reserve_bytes": asked.guest_reserve_bytes, **probes}
    given = {**conditions(found, reserve, service=asked.service), **marks(records)}
    wanted = asked.model_dump(include={"ksm_knobs", "service", "thp_enabled"})
    return {
        "boot_key": records.boot_key,
        "swap_used_bytes": _number(swap_used_bytes(records.off)),
        **{f"{PROVENANCE}{name}": value for name, value in given.items()},
        **{f"{REQUESTED}{name}": value for name, value in flat(wanted).items()},
    }


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _status(row: Mapping[Hashable, Any]) -> str:
    if row["status"] != COMPLETE:
        return str(row["status"])
    if not row["digests_intact"]:
        return DAMAGED
    return COMPLETE if row["settled"] else UNCONVERGED


def _problem(row: Mapping[Hashable, Any]) -> str:
    status = _status(row)
    if status == DAMAGED:
        return f"the content of {row['damaged_guests']} changed while it was merged"
    return f"not converged: {row['convergence_reason']}" if status == UNCONVERGED else str(row["problem"])

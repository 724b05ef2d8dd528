"""The tidy table: one row for each planned cell, measures in bytes, provenance beside them."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.measure.burndown import burndown
from analysis.plan.design import MIB
from analysis.records.loading import COMPLETE, CellRecords, Run, flat, self_tuned

KEY = ["run_id", "hypervisor", "cell_id"]
MEASURES = ("mem_available", "gross", "general_profit", "pss")
PROVENANCE = "provenance."
REQUESTED = "requested."

# What is done to the guests: cells that differ in one of these are never pooled.
TREATMENT = (
    "workload",
    "policy",
    "guests",
    "guest_memory_bytes",
    "start_from",
    "loaded",
    "arm_order",
)

UNCONVERGED, DAMAGED = "unconverged", "damaged"

_NUMBERS = (
    "host_used_off_bytes",
    "host_used_on_bytes",
    *(f"saved_{name}_bytes" for name in MEASURES),
    "converged_after_seconds",
    "ksmd_cpu_seconds",
)

# Neither is a difference between two measurements; of the start, only from what is one.
_NOT_PROVENANCE = frozenset({"design_digest", "start"})


def tidy(runs: list[Run]) -> pd.DataFrame:
    """One row for each planned cell of the runs, in the order of their plans.

    Columns: the cell's identity; what its guests began from: ``start_from`` (checkpoint or boot; "" while no
    cell of the run tells), ``checkpoint``, ``booted_at``, ``boot_seconds``, ``restore_seconds``, ``loaded``,
    ``arm_order``; ``boot_key``, the physical boot, which is the replicate; ``status`` (complete, unconverged,
    damaged, failed, invalid, missing) and ``problem``; host memory used off and on and
    ``saved_<measure>_bytes`` for the four measures, in bytes of the whole host, and
    ``saved_<measure>_mib_per_vm``; ``converged`` as recorded, and ``settled`` when the samples judged again
    say so too; ksmd's CPU time while merging; ``provenance.*`` and ``requested.*``, the conditions.
    What was not measured is NaN or None, never 0. Only a row of status complete may be averaged.
    """
    cells = [(run.plan.run_id, records) for run in runs for records in run.cells]
    measured = [(run_id, records) for run_id, records in cells if records.status == COMPLETE]
    table = _frame(
        [
            {**_identity(run_id, records), **_planned(records), **_start(run_id, records, cells)}
            for run_id, records in cells
        ]
    )
    for part in (_measures, _merging, _verification, _conditions):
        rows = [{**_identity(run_id, records), **part(records)} for run_id, records in measured]
        table = table.merge(_frame(rows), how="left", on=KEY, validate="one_to_one")
    for name in _NUMBERS:
        if name not in table:
            table[name] = float("nan")
    if "boot_key" not in table:
        table["boot_key"] = None
    per_vm = {
        f"saved_{name}_mib_per_vm": table[f"saved_{name}_bytes"] / table["guests"] / MIB for name in MEASURES
    }
    return table.assign(
        **per_vm,
        status=[_status(row) for row in table.to_dict("records")],
        problem=[_problem(row) for row in table.to_dict("records")],
    )


def gross_bytes(arm: dict[str, Any], knobs: dict[str, Any], page_size_bytes: int) -> float | None:
    """(pages_sharing + ksm_zero_pages) x page size of an off or on record; None when it cannot be known.

    Source: Documentation/admin-guide/mm/ksm.rst. A kernel without the ksm_zero_pages counter still maps
    to its zero page when use_zero_pages is 1, uncounted: then the sum is not known.
    """
    ksm = arm["host"]["ksm"]
    zero_pages = ksm.get("ksm_zero_pages")
    if zero_pages is None:
        if str(knobs.get("use_zero_pages", 0)) == "1":
            return None
        zero_pages = 0
    return float((ksm["pages_sharing"] + zero_pages) * page_size_bytes)


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
    numbers = {name: start[name] for name in ("boot_seconds", "restore_seconds")}
    return {
        "start_from": start["from"],
        **{name: start[name] for name in ("checkpoint", "booted_at", "loaded", "arm_order")},
        **{name: float("nan") if value is None else float(value) for name, value in numbers.items()},
    }


def _start_of_the_like(
    run_id: str, records: CellRecords, cells: Sequence[tuple[str, CellRecords]]
) -> dict[str, Any]:
    """For a cell that was not measured: so it stands in the row in which it is missing."""
    cell = records.cell
    like = [
        (other.cell.workload == cell.workload, start["arm_order"] == "off-on", start)
        for run, other in cells
        if (run, other.cell.hypervisor) == (run_id, cell.hypervisor) and (start := other.start) is not None
    ]
    if not like:
        return {"start_from": "", "loaded": False, "arm_order": "off-on"}
    same_workload, _first, start = max(like, key=lambda found: found[:2])
    return {
        "start_from": start["from"],
        "loaded": start["loaded"] and same_workload,
        "arm_order": start["arm_order"],
    }


def _measures(records: CellRecords) -> dict[str, Any]:
    off, on = records.observed("off"), records.observed("on")
    knobs, page_size = records.provenance["ksm_knobs"], records.page_size_bytes
    memory = {kind: arm["host"]["meminfo"] for kind, arm in (("off", off), ("on", on))}
    gross = [gross_bytes(arm, knobs, page_size) for arm in (off, on)]
    pss = [sum(g["smaps_rollup"]["Pss_bytes"] for g in arm["guests"].values()) for arm in (off, on)]
    used = {kind: m["MemTotal_bytes"] - m["MemAvailable_bytes"] for kind, m in memory.items()}
    profit = on["host"]["ksm"].get("general_profit")
    return {
        "host_used_off_bytes": float(used["off"]),
        "host_used_on_bytes": float(used["on"]),
        "saved_mem_available_bytes": float(
            memory["on"]["MemAvailable_bytes"] - memory["off"]["MemAvailable_bytes"]
        ),
        "saved_gross_bytes": float("nan") if None in gross else float(gross[1] or 0) - float(gross[0] or 0),
        "saved_general_profit_bytes": float("nan") if profit is None else float(profit),
        "saved_pss_bytes": float(pss[0] - pss[1]),
    }


def _merging(records: CellRecords) -> dict[str, Any]:
    merge = records.observed("merge")
    samples = merge["samples"]
    after = merge["converged_after_seconds"]
    judged = burndown(records)
    return {
        "convergence_rule": _rule(records),
        "converged": bool(merge["converged"]),
        "settled": judged.settled,
        "convergence_reason": judged.reason if merge["converged"] else merge["reason"],
        "converged_after_seconds": float("nan") if after is None else float(after),
        "ksmd_cpu_seconds": float(samples["ksmd_cpu_seconds"][-1] - samples["ksmd_cpu_seconds"][0]),
        "swapped_pages": int(sum(samples[name][-1] - samples[name][0] for name in ("pswpin", "pswpout"))),
    }


def _rule(records: CellRecords) -> str:
    """When a saving counted as settled; a longer wait for it is the same rule."""
    rule = records.records["merge"]["requested"]["convergence"]
    threshold, window, least = (
        rule[name] for name in ("threshold_percent", "window_scans", "min_full_scans")
    )
    return f"{threshold:g} % over {window} of at least {least} scans"


def _verification(records: CellRecords) -> dict[str, Any]:
    guests = records.observed("verify")["guests"]
    damaged = sorted(name for name, guest in guests.items() if not guest["intact"])
    return {"digests_intact": not damaged, "damaged_guests": ", ".join(damaged)}


def _conditions(records: CellRecords) -> dict[str, Any]:
    """The physical boot, and what two measurements must have in common to be of one treatment."""
    asked, found = records.records["on"]["requested"], records.provenance
    tuned = self_tuned(found["ksm_knobs"], asked["service"])
    given = {
        **{name: value for name, value in found.items() if name not in _NOT_PROVENANCE},
        "ksm_knobs": {name: value for name, value in found["ksm_knobs"].items() if name not in tuned},
        "start": {"from": found["start"]["from"]},
        "requested": {"guest_reserve_bytes": asked["guest_reserve_bytes"]},
    }
    wanted = {name: asked[name] for name in ("ksm_knobs", "service", "thp_enabled")}
    return {
        "boot_key": records.boot_key,
        **{f"{PROVENANCE}{name}": value for name, value in flat(given).items()},
        **{f"{REQUESTED}{name}": value for name, value in flat(wanted).items()},
    }


def _status(row: Mapping[Hashable, Any]) -> str:
    if row["status"] != COMPLETE:
        return str(row["status"])
    if not row["digests_intact"]:
        return DAMAGED
    return COMPLETE if row["settled"] else UNCONVERGED


def _problem(row: Mapping[Hashable, Any]) -> str:
    if row["status"] != COMPLETE:
        return str(row["problem"])
    if not row["digests_intact"]:
        return f"the content of {row['damaged_guests']} changed while it was merged"
    return "" if row["settled"] else f"not converged: {row['convergence_reason']}"

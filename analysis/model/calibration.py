"""The measured cells that a forecast rests on."""

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from analysis.errors import UserError
from analysis.measure.cell_census import cell_census
from analysis.measure.census import Census
from analysis.measure.statistics import OFF_ON, pooling_conflicts
from analysis.measure.table import PROVENANCE, tidy
from analysis.model.capacity import base_steps, conditions, host_used_bytes, in_use_bytes, text
from analysis.model.sharing import (
    CENSUS,
    ENVELOPE,
    HOST,
    SHARING,
    Sample,
)
from analysis.plan.policies import policy_order
from analysis.records.capacity import (
    load_capacity,
)
from analysis.records.loading import COMPLETE, CellRecords, Run


class ForecastError(UserError):
    """A forecast that cannot be made or stored."""


@dataclass(frozen=True)
class Calibration:
    """The measured cells of one host under one policy and set of conditions that a forecast rests on.

    ``samples``: one for each workload, number of guests and physical boot, of the host and of the guests
    alone (None: their kernel does not tell). ``bases``: path under results, SHA-256 and use of each record
    with no guest. ``censuses``: by workload, that of its cell with the most guests, and the cell's directory.
    ``left_out``: cells that are not used, with the reason.
    """

    hypervisor: str
    policy: str
    guest_memory_bytes: int
    page_size_bytes: int
    max_page_sharing: int
    memory_total_bytes: int
    conditions: dict[str, str]
    cells: tuple[CellRecords, ...]
    run_ids: tuple[str, ...]
    samples: dict[str, tuple[Sample, ...] | None]
    bases: tuple[tuple[str, str, int], ...]
    censuses: dict[str, tuple[Path, Census]]
    left_out: tuple[str, ...]


def calibration(
    runs: Sequence[Run],
    *,
    predicted: Collection[tuple[str | None, int]] = (),
    asked: Collection[str] = (),
    model: str = SHARING,
    hypervisor: str | None = None,
    policy: str | None = None,
    bases_in: Path | None = None,
) -> Calibration:
    """The complete cells of the runs that a forecast may use.

    Args:
        runs: the runs chosen.
        predicted: workload (None: every one) and guests of what is predicted: never read.
        asked: the workloads asked for; of others, those that the model cannot be fitted to are left out.
        model: SHARING or CENSUS.
        hypervisor: this one only; needed when there are several.
        policy: this one only; needed when there are several.
        bases_in: results whose capacity runs may hold the host's use with no guest.

    Raises ForecastError when nothing is left, or cells were measured under different conditions.
    """
    table = tidy(list(runs))
    if hypervisor is not None:
        table = table[table["hypervisor"] == hypervisor]
    if policy is not None:
        measured = sorted(set(table["policy"]), key=policy_order)
        if policy not in measured:
            raise ForecastError(
                f"--policy is {policy!r}: measured, and so allowed, is {', '.join(measured) or 'none'}."
            )
        table = table[table["policy"] == policy]
    stored = {
        (run.plan.run_id, cell.cell.hypervisor, cell.cell.cell_id): cell for run in runs for cell in run.cells
    }
    left_out, used = [], []
    for row in table.to_dict("records"):
        key = (str(row["run_id"]), str(row["hypervisor"]), str(row["cell_id"]))
        reason = _left_out(row, predicted)
        if reason:
            left_out.append(f"run {key[0]}, {key[2]}: {reason.rstrip('.')}")
        else:
            used.append((key, float(row["saved_gross_bytes"])))
    kept = _fitting({key: stored[key] for key, _gross in used}, asked, model)
    left_out += [f"run {key[0]}, {key[2]}: {kept[key]}" for key, _gross in used if kept[key]]
    used = [(key, gross) for key, gross in used if not kept[key]]
    if not used:
        raise ForecastError(
            "there is no complete cell to forecast from"
            + (f" ({left_out[0]})" if left_out else "")
            + ": measure some small numbers of guests first."
        )
    keys = [key for key, _gross in used]
    rows = table[
        [(r["run_id"], r["hypervisor"], r["cell_id"]) in set(keys) for r in table.to_dict("records")]
    ]
    _check_alike(rows)
    cells = [stored[key] for key in keys]
    first = cells[0]
    names = [name for name in rows.columns if name.startswith(PROVENANCE)]
    shared = {name.removeprefix(PROVENANCE): text(rows.iloc[0][name]) for name in names}
    return Calibration(
        hypervisor=first.cell.hypervisor,
        policy=first.cell.policy,
        guest_memory_bytes=first.cell.guest_memory_bytes,
        page_size_bytes=first.page_size_bytes,
        # The kernel's own default (mm/ksm.c), where the file is absent.
        max_page_sharing=int(first.provenance["ksm_knobs"].get("max_page_sharing", 256)),
        memory_total_bytes=int(first.provenance["memory_total_bytes"]),
        conditions=shared,
        cells=tuple(cells),
        run_ids=tuple(key[0] for key in keys),
        samples={
            scope: _samples(cells, [gross for _key, gross in used], scope) for scope in (HOST, ENVELOPE)
        },
        censuses=_censuses(cells) if model == CENSUS else {},
        bases=() if bases_in is None else _bases(bases_in, first.cell.hypervisor, shared),
        left_out=tuple(left_out),
    )


def scope_used_bytes(cell: CellRecords, kind: str, scope: str) -> float | None:
    """What an off or on record uses: of the host, or of the guests' own anonymous memory and page tables.

    None when the guests' part is asked for and the kernel does not tell it.
    """
    arm = cell.observed(kind)
    if scope == HOST:
        return float(in_use_bytes(arm["host"], cell.page_size_bytes))
    guests = arm["guests"].values()
    if any("Pss_Anon_bytes" not in guest["smaps_rollup"] for guest in guests):
        return None
    return float(sum(g["smaps_rollup"]["Pss_Anon_bytes"] + g["page_tables_bytes"] for g in guests))


def _left_out(row: Mapping[Hashable, Any], predicted: Collection[tuple[str | None, int]]) -> str:
    """Why a forecast does not use a cell, "" when it may."""
    workload, guests = str(row["workload"]), int(row["guests"])
    if row["status"] != COMPLETE:
        return f"{row['status']}: {row['problem']}"
    problems = (
        ((workload, guests) in predicted or (None, guests) in predicted, "it is what is predicted"),
        ("=" in workload, "it is a mix"),
        (row["arm_order"] != OFF_ON, "KSM was on first, and what it split and freed stays so with KSM off"),
        (math.isnan(row["saved_gross_bytes"]), "its kernel uses zero pages without counting them"),
    )
    return next((reason for wrong, reason in problems if wrong), "")


def _check_alike(rows: pd.DataFrame) -> None:
    """ForecastError where cells differ in more than workload and number of guests."""
    hosts, policies = sorted(set(rows["hypervisor"])), sorted(set(rows["policy"]), key=policy_order)
    if len(hosts) > 1:
        raise ForecastError(
            f"several hosts were measured: choose one of {', '.join(hosts)} with --hypervisor."
        )
    if len(policies) > 1:
        raise ForecastError(
            f"several policies were measured: choose one of {', '.join(policies)} with --policy."
        )
    conflicts = list(pooling_conflicts(rows))
    conflicts += [
        f"{workload} loaded before and after the checkpoint"
        for workload, mine in rows.groupby("workload")
        if mine["loaded"].nunique() > 1
    ]
    if conflicts:
        raise ForecastError(
            f"the cells were measured under different conditions ({'; '.join(conflicts)}): "
            "choose runs that match with --run."
        )


def _fitting(
    cells: Mapping[tuple[str, str, str], CellRecords], asked: Collection[str], model: str
) -> dict[tuple[str, str, str], str]:
    """By cell, why its workload cannot be fitted; "" when it can, was asked for, or none can."""
    numbers: dict[str, set[int]] = {}
    for cell in cells.values():
        numbers.setdefault(cell.cell.workload, set()).add(cell.cell.guests)
    if model == CENSUS:
        fits = set(_censuses(list(cells.values())))
        reason = "its workload has no page census"
    else:
        fits = {workload for workload, seen in numbers.items() if len(seen) > 1}
        reason = "its workload was measured at one number of guests only"
    return {
        key: reason if fits and cell.cell.workload not in {*fits, *asked} else ""
        for key, cell in cells.items()
    }


def _samples(
    cells: Sequence[CellRecords], gross_bytes: Sequence[float], scope: str
) -> tuple[Sample, ...] | None:
    """One sample for each workload, number of guests and boot: the mean of the boot's repetitions."""
    boots: dict[tuple[str, int, str], list[Sample]] = {}
    for cell, gross in zip(cells, gross_bytes, strict=True):
        used = [scope_used_bytes(cell, kind, scope) for kind in ("off", "on")]
        if used[0] is None or used[1] is None:
            return None
        profit = cell.observed("on")["host"]["ksm"]["general_profit"]
        sample = Sample(cell.cell.workload, cell.cell.guests, used[0], used[1], gross, None)
        boots.setdefault((sample.workload, sample.guests, cell.boot_key), []).append(
            # general_profit is gross less the rmap_items (Documentation/admin-guide/mm/ksm.rst).
            sample if profit is None else replace(sample, rmap_bytes=gross - profit)
        )
    return tuple(_mean_sample(repetitions) for repetitions in boots.values())


def _mean_sample(repetitions: Sequence[Sample]) -> Sample:
    rmap = [sample.rmap_bytes for sample in repetitions if sample.rmap_bytes is not None]
    return replace(
        repetitions[0],
        off_bytes=fmean(sample.off_bytes for sample in repetitions),
        on_bytes=fmean(sample.on_bytes for sample in repetitions),
        gross_bytes=fmean(sample.gross_bytes for sample in repetitions),
        rmap_bytes=fmean(rmap) if len(rmap) == len(repetitions) else None,
    )


def _censuses(cells: Sequence[CellRecords]) -> dict[str, tuple[Path, Census]]:
    """By workload, the census of its cell with the most guests, the last of these."""
    found: dict[str, tuple[Path, Census]] = {}
    for cell in sorted(cells, key=lambda cell: (cell.cell.guests, cell.records["on"]["recorded_at"])):
        counted = cell_census(cell)
        if counted is not None:
            found[cell.cell.workload] = (cell.directory, counted)
    return found


def _bases(results: Path, hypervisor: str, wanted: Mapping[str, str]) -> tuple[tuple[str, str, int], ...]:
    """Use with no guest, where it was measured under these conditions."""
    steps = base_steps(load_capacity(results)[0], hypervisor)
    return tuple(
        (str(step.path.relative_to(results)), step.sha256, host_used_bytes(step.content))
        for step in steps
        if all(wanted.get(name) == value for name, value in conditions(step.content).items())
    )

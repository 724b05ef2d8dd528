"""Means and intervals by repetition, never across different provenance; the paper's figures beside them."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import pandas as pd
from scipy.stats import t  # type: ignore[import-untyped]

from analysis.design import MIB
from analysis.mix import MIX
from analysis.records import COMPLETE, CellRecords, Run
from analysis.table import MEASURES, PROVENANCE

CONFIDENCE = 0.95

# Figure 2 of the paper, host memory by focus, in MB/VM (taken as MiB).
PAPER_MIB_PER_VM = {1: 50.6, 2: 440.3, 3: 31.6}

QUANTITIES = {
    "host_used_off_mib": ("host_used_off_bytes", MIB),
    "host_used_on_mib": ("host_used_on_bytes", MIB),
    **{f"saved_{name}_mib_per_vm": (f"saved_{name}_mib_per_vm", 1) for name in MEASURES},
    "converged_after_seconds": ("converged_after_seconds", 1),
    "ksmd_cpu_seconds": ("ksmd_cpu_seconds", 1),
}


@dataclass(frozen=True)
class Estimate:
    """Mean of n repetitions with its 95 % t interval; from one repetition there is no interval and no CoV.

    ``half_width`` is half of the interval; ``cov`` is the standard deviation over the absolute mean.
    """

    n: int
    mean: float
    half_width: float | None
    cov: float | None


@dataclass(frozen=True)
class Comparison:
    """Ours less the paper's, MB/VM by MemAvailable, with the half width of ours."""

    paper: float
    difference: float
    half_width: float | None


@dataclass(frozen=True)
class Repetition:
    """One planned cell as the summary shows it."""

    run_id: str
    cell_id: str
    repetition: int
    order: str
    status: str
    problem: str
    saved_mem_available_mib_per_vm: float | None


@dataclass(frozen=True)
class FocusSummary:
    """One line of the answer: a focus or a mix on a hypervisor; a mix has no figure of the paper.

    ``estimates`` is keyed by QUANTITIES, None where nothing was measured or pooling was refused;
    ``not_pooled`` says in what the repetitions differ.
    """

    hypervisor: str
    focus: int
    workload: str
    guests: int
    guest_memory_bytes: int
    planned: int
    measured: int
    not_pooled: tuple[str, ...]
    estimates: dict[str, Estimate | None]
    paper: Comparison | None
    repetitions: tuple[Repetition, ...]


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean, t interval and coefficient of variation of one value a repetition.

    None when there is no value, or one is unknown (NaN): a mean of the rest would pass for all.
    """
    if not values or any(pd.isna(value) for value in values):
        return None
    n, mean = len(values), fmean(values)
    if n == 1:
        return Estimate(1, mean, None, None)
    deviation = stdev(values)
    half_width = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * deviation / n**0.5
    return Estimate(n, mean, half_width, deviation / abs(mean) if mean else None)


def pooling_conflicts(rows: pd.DataFrame) -> tuple[str, ...]:
    """In what the provenance of these rows differs, as "name: one value / other value"."""
    conflicts = []
    conditions = [name for name in rows.columns if name.startswith(PROVENANCE) or name == "convergence_rule"]
    for column in sorted(conditions):
        values = sorted({"absent" if pd.isna(value) else str(value) for value in rows[column]})
        if len(values) > 1:
            conflicts.append(f"{column.removeprefix(PROVENANCE)}: {' / '.join(values)}")
    return tuple(conflicts)


def summarise(table: pd.DataFrame) -> list[FocusSummary]:
    """One summary for each hypervisor, size of guests, and focus or mix in a tidy table."""
    groups = table.groupby(["hypervisor", "guests", "guest_memory_bytes", "focus", "workload"], sort=True)
    # Foci first, as the paper has them.
    return [
        _summary(rows) for key, rows in sorted(groups, key=lambda group: (*group[0][:3], group[0][3] == MIX))
    ]


def averaged(summary: FocusSummary, runs: Sequence[Run]) -> tuple[CellRecords, ...]:
    """The cells behind a summary's means, in the order of their runs; none where pooling was refused."""
    if summary.not_pooled:
        return ()
    wanted = {(one.run_id, one.cell_id) for one in summary.repetitions if one.status == COMPLETE}
    return tuple(
        records
        for run in runs
        for records in run.cells
        if records.cell.hypervisor == summary.hypervisor
        and (run.plan.run_id, records.cell.cell_id) in wanted
    )


def _summary(rows: pd.DataFrame) -> FocusSummary:
    first = rows.iloc[0]
    focus = int(first["focus"])
    usable = rows[rows["status"] == COMPLETE]
    conflicts = pooling_conflicts(usable)
    estimates = {
        name: None if conflicts else estimate([float(value) / unit for value in usable[column]])
        for name, (column, unit) in QUANTITIES.items()
    }
    return FocusSummary(
        hypervisor=str(first["hypervisor"]),
        focus=focus,
        workload=str(first["workload"]),
        guests=int(first["guests"]),
        guest_memory_bytes=int(first["guest_memory_bytes"]),
        planned=len(rows),
        measured=len(usable),
        not_pooled=conflicts,
        estimates=estimates,
        paper=_compare(estimates["saved_mem_available_mib_per_vm"], PAPER_MIB_PER_VM.get(focus)),
        repetitions=tuple(_repetition(row) for row in rows.to_dict("records")),
    )


def _compare(ours: Estimate | None, paper: float | None) -> Comparison | None:
    return None if ours is None or paper is None else Comparison(paper, ours.mean - paper, ours.half_width)


def _repetition(row: Mapping[Hashable, Any]) -> Repetition:
    saved = float(row["saved_mem_available_mib_per_vm"])
    return Repetition(
        run_id=str(row["run_id"]),
        cell_id=str(row["cell_id"]),
        repetition=int(row["repetition"]),
        order=str(row["order"]),
        status=str(row["status"]),
        problem=str(row["problem"]),
        saved_mem_available_mib_per_vm=None if pd.isna(saved) else saved,
    )

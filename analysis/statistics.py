"""Means and intervals over boots, never across different treatments; the paper's figures beside them.

A boot is the replicate: an independent set of booted guests. Repetitions within a boot start from the same
checkpoint, so they say how well one boot can be measured and nothing about another.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev
from typing import Any

import pandas as pd
from scipy.stats import t  # type: ignore[import-untyped]

from analysis.design import MIB
from analysis.records import COMPLETE, CellRecords, Run
from analysis.table import MEASURES, PROVENANCE, REQUESTED, TREATMENT
from analysis.workloads import focus_of, in_order

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
# What two policies are compared by.
COMPARED = tuple(f"saved_{name}_mib_per_vm" for name in MEASURES)

# The policy that others are compared with, where it was measured.
DEFAULT_POLICY = "ksm"
OFF_ON = "off-on"
CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class Estimate:
    """Mean over boots of each boot's mean, with its 95 % t interval over boots.

    ``repetitions``: of all boots together. ``half_width``: half of the interval, and ``cov``: standard
    deviation between the boots' means over the absolute mean; both None with one boot. ``within_boot_sd``:
    standard deviation of repetitions within a boot, pooled over the boots that have two or more; None where
    none has.
    """

    n_boots: int
    repetitions: int
    mean: float
    half_width: float | None
    within_boot_sd: float | None
    cov: float | None


@dataclass(frozen=True)
class Comparison:
    """Ours less the paper's, MB/VM by MemAvailable, with the half width of ours."""

    paper: float
    difference: float
    half_width: float | None


@dataclass(frozen=True)
class Measured:
    """One planned cell as the summary shows it."""

    run_id: str
    cell_id: str
    boot: int
    repetition: int
    status: str
    problem: str
    saved_mem_available_mib_per_vm: float | None


@dataclass(frozen=True)
class Summary:
    """One line of the answer: a treatment on a hypervisor (see TREATMENT).

    ``boots``: the complete repetitions of each physical boot. ``estimates`` is keyed by QUANTITIES, None
    where nothing was measured or pooling was refused; ``not_pooled`` says in what the cells differ.
    ``paper``: None where the paper has no figure, as for a mix.
    """

    hypervisor: str
    workload: str
    policy: str
    guests: int
    guest_memory_bytes: int
    start_from: str
    loaded: bool
    arm_order: str
    planned: int
    measured: int
    boots: tuple[int, ...]
    not_pooled: tuple[str, ...]
    estimates: dict[str, Estimate | None]
    paper: Comparison | None
    cells: tuple[Measured, ...]

    @property
    def variant(self) -> str:
        """What was done to the guests' pages: the policy, and what else tells this line from another."""
        if self.arm_order != OFF_ON:
            return "KSM on first" if self.policy == DEFAULT_POLICY else f"{self.policy}, on first"
        return f"{self.policy}, loaded" if self.loaded else self.policy


@dataclass(frozen=True)
class Difference:
    """Mean over boots of policy less baseline in the same boot, MB/VM; no interval from one boot."""

    mean: float
    half_width: float | None


@dataclass(frozen=True)
class PolicyDifference:
    """What a policy saves more (or less: negative) than the baseline, where both began from one checkpoint.

    Paired by boot: in each boot that has both, the mean of the policy's repetitions less that of the
    baseline's. ``differences`` is keyed by COMPARED; None where a value is not known, or where
    ``not_compared`` says in what else the cells differ.
    """

    hypervisor: str
    workload: str
    guests: int
    guest_memory_bytes: int
    policy: str
    baseline: str
    n_boots: int
    not_compared: tuple[str, ...]
    differences: dict[str, Difference | None]


def estimate(boots: Sequence[Sequence[float]]) -> Estimate | None:
    """Mean, interval and spreads of the repetitions of each boot, which has at least one.

    None when there is no boot, or a value is unknown (NaN): a mean of the rest would pass for all.
    """
    values = [value for boot in boots for value in boot]
    if not values or any(pd.isna(value) for value in values):
        return None
    means = [fmean(boot) for boot in boots]
    n, mean = len(means), fmean(means)
    within = _within_boot_sd(boots)
    if n == 1:
        return Estimate(1, len(values), mean, None, within, None)
    deviation = stdev(means)
    half_width = _quantile(n) * deviation / sqrt(n)
    return Estimate(n, len(values), mean, half_width, within, deviation / abs(mean) if mean else None)


def exact(value: float | None) -> Estimate | None:
    """A value that was not measured by us, such as the paper's, in the form of an estimate."""
    return None if value is None else Estimate(1, 1, value, None, None, None)


def boot_mean(values: Iterable[float | None], boots: Iterable[str]) -> float | None:
    """Mean over boots of each boot's mean; ``boots`` says of which boot each value is. None for unknown."""
    groups: dict[str, list[float]] = {}
    for value, boot in zip(values, boots, strict=True):
        if value is None:
            return None
        groups.setdefault(boot, []).append(value)
    return fmean(fmean(group) for group in groups.values())


def pooling_conflicts(rows: pd.DataFrame) -> tuple[str, ...]:
    """In what the conditions of these rows differ, as "name: one value / other value"."""
    conflicts = []
    for column in sorted(_condition_columns(rows)):
        values = sorted({"absent" if pd.isna(value) else str(value) for value in rows[column]})
        if len(values) > 1:
            conflicts.append(f"{column.removeprefix(PROVENANCE)}: {' / '.join(values)}")
    # What was asked for and is so on the host need not be said twice.
    return tuple(conflict for conflict in conflicts if conflict.removeprefix(REQUESTED) not in conflicts[:]
                 or not conflict.startswith(REQUESTED))


def summarise(table: pd.DataFrame) -> list[Summary]:
    """One summary for each treatment on each hypervisor in a tidy table.

    By hypervisor, guests and their start; within them workloads in the paper's order, then policies.
    """
    groups = [rows for _key, rows in table.groupby(["hypervisor", *TREATMENT], sort=True)]
    return sorted((_summary(rows) for rows in groups), key=_order(set(table["workload"])))


def averaged(summary: Summary, runs: Sequence[Run]) -> tuple[CellRecords, ...]:
    """The cells behind a summary's means, in the order of their runs; none where pooling was refused."""
    if summary.not_pooled:
        return ()
    wanted = {(one.run_id, one.cell_id) for one in summary.cells if one.status == COMPLETE}
    return tuple(
        records
        for run in runs
        for records in run.cells
        if records.cell.hypervisor == summary.hypervisor
        and (run.plan.run_id, records.cell.cell_id) in wanted
    )


def policy_differences(table: pd.DataFrame) -> list[PolicyDifference]:
    """Each policy against the baseline, wherever both were measured from the same checkpoint.

    The baseline is ksm, or where that was not measured the first by the alphabet.
    """
    usable = table[(table["status"] == COMPLETE) & (table["start_from"] == CHECKPOINT)]
    names = ["hypervisor", *(name for name in TREATMENT if name != "policy")]
    found = []
    for _key, rows in usable.groupby(names, sort=True):
        policies = sorted(set(rows["policy"]), key=_policy_order)
        found += [
            _difference(rows, policy, policies[0]) for policy in policies[1:] if _shared(rows, policy, policies[0])
        ]
    place = {load: number for number, load in enumerate(in_order(table["workload"]))}
    return sorted(found, key=lambda one: (one.hypervisor, one.guests, one.guest_memory_bytes, place[one.workload]))


def _condition_columns(rows: pd.DataFrame) -> list[str]:
    return [
        name
        for name in rows.columns
        if name.startswith((PROVENANCE, REQUESTED)) or name == "convergence_rule"
    ]

"""Means and intervals over boots, never across different treatments; the paper's figures beside them.

A boot is the replicate: an independent set of booted guests. Repetitions within a boot start from the same
checkpoint, so they say how well one boot can be measured and nothing about another.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist, fmean, stdev, variance
from typing import Any

import pandas as pd
from scipy.stats import t  # type: ignore[import-untyped]

from analysis.measure.pooling import Row, pooling_conflicts
from analysis.measure.saving import PER_VM
from analysis.measure.table import PROVENANCE, QUANTITIES, REQUESTED, TREATMENT
from analysis.plan.design import MIB
from analysis.plan.policies import policy_order
from analysis.plan.workloads import focus_of, in_order
from analysis.records.loading import COMPLETE, CellRecords, Run

CONFIDENCE = 0.95
# Of fewer boots an interval is shown for what it is, and nothing is concluded from it.
LEAST_BOOTS = 3

# Figure 2 of the paper, host memory by focus, in MB/VM (taken as MiB); of so many guests of this size.
PAPER_MIB_PER_VM = {1: 50.6, 2: 440.3, 3: 31.6}
PAPER_GUESTS, PAPER_GUEST_BYTES = 15, 512 * MIB

# What two policies are compared by.
COMPARED = PER_VM

_MEASURED = ("run_id", "cell_id", "boot", "repetition", "status", "problem", "freed_mib_per_vm")

CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class Estimate:
    """Mean over boots of each boot's mean, with its 95 % t interval over boots.

    ``repetitions``: of all boots together. ``half_width``: half of the interval; ``between_boot_sd``:
    standard deviation of the boots' means, what repetitions scatter included; both None with one boot.
    ``within_boot_sd``: standard deviation of repetitions within a boot, pooled over the boots that have two
    or more; None where none has.
    """

    n_boots: int
    repetitions: int
    mean: float
    half_width: float | None
    between_boot_sd: float | None
    within_boot_sd: float | None

    @property
    def conclusive(self) -> bool:
        """Whether there are boots enough to conclude something from the interval."""
        return self.n_boots >= LEAST_BOOTS


@dataclass(frozen=True)
class Comparison:
    """Ours less the paper's, MB/VM by MemAvailable as it measured, with the half width of ours."""

    paper: float
    difference: float
    half_width: float | None
    conclusive: bool

    @property
    def apart(self) -> bool | None:
        """Whether the paper's figure lies outside our interval; None where nothing can be concluded."""
        if self.half_width is None or not self.conclusive:
            return None
        return abs(self.difference) > self.half_width


@dataclass(frozen=True)
class Measured:
    """One planned cell as the summary shows it."""

    run_id: str
    cell_id: str
    boot: int
    repetition: int
    status: str
    problem: str
    freed_mib_per_vm: float | None


@dataclass(frozen=True)
class Summary:
    """One line of the answer: a treatment on a hypervisor (see TREATMENT).

    ``boots``: the complete repetitions of each physical boot. ``estimates`` is keyed by QUANTITIES, None
    where nothing was measured, a value of a cell is unknown, which ``unknown`` gives the reasons of, or
    pooling was refused; ``not_pooled`` says in what the cells differ. ``parted``: averaged cells in which the
    host's memory freed parts from the guests'. ``paper``: None where the paper has no figure: for a mix, and
    for other guests than its 15 of 512 MB.
    """

    hypervisor: str
    workload: str
    policy: str
    guests: int
    guest_memory_bytes: int
    start_from: str
    loaded: bool
    planned: int
    measured: int
    boots: tuple[int, ...]
    not_pooled: tuple[str, ...]
    unknown: tuple[str, ...]
    parted: int
    estimates: dict[str, Estimate | None]
    paper: Comparison | None
    cells: tuple[Measured, ...]

    @property
    def variant(self) -> str:
        """What was done to the guests' pages: the policy, and what else tells this line from another."""
        return f"{self.policy}, loaded" if self.loaded else self.policy


@dataclass(frozen=True)
class Difference:
    """One mean over boots less another, with half of the 95 % t interval; None from one boot."""

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

    @property
    def conclusive(self) -> bool:
        """Whether there are boots enough to conclude something from the intervals."""
        return self.n_boots >= LEAST_BOOTS


def estimate(boots: Sequence[Sequence[float]]) -> Estimate | None:
    """Mean, interval and spreads of the repetitions of each boot, which has at least one.

    None when there is no boot, or a value is unknown (NaN): a mean of the rest would pass for all.
    """
    values = [value for boot in boots for value in boot]
    if not values or any(pd.isna(value) for value in values):
        return None
    means = [fmean(boot) for boot in boots]
    return Estimate(
        n_boots=len(means),
        repetitions=len(values),
        mean=fmean(means),
        half_width=_half_width(means),
        between_boot_sd=stdev(means) if len(means) > 1 else None,
        within_boot_sd=_within_boot_sd(boots),
    )


def paired(differences: Sequence[float]) -> Difference:
    """The mean of what each boot shows by itself: one difference a boot."""
    return Difference(fmean(differences), _half_width(differences))


def welch(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Theirs less ours, one mean a boot, of boots that have nothing in common (Welch 1947, Biometrika 34)."""
    difference = fmean(theirs) - fmean(ours)
    if min(len(ours), len(theirs)) < 2:
        return Difference(difference, None)
    squares = [variance(means) / len(means) for means in (ours, theirs)]
    square = sum(squares)
    if not square:
        return Difference(difference, 0.0)
    parts = zip(squares, (ours, theirs), strict=True)
    freedom = 1 / sum((part / square) ** 2 / (len(means) - 1) for part, means in parts)
    return Difference(difference, float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * sqrt(square))


def wilson(hits: int, of: int) -> tuple[float | None, float | None]:
    """Wilson's 95 % interval of a share, as fractions; of nothing None (E. B. Wilson 1927, JASA 22)."""
    if not of:
        return None, None
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    share, weight = hits / of, z * z / of
    middle = (share + weight / 2) / (1 + weight)
    half = sqrt(share * (1 - share) * weight + weight * weight / 4) / (1 + weight)
    return max(0.0, middle - half), min(1.0, middle + half)


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
        if records.cell.hypervisor == summary.hypervisor and (run.plan.run_id, records.cell.cell_id) in wanted
    )


def policy_differences(table: pd.DataFrame) -> list[PolicyDifference]:
    """Each policy against the baseline, wherever both were measured from the same checkpoint.

    The baseline is the default policy, or where that was not measured the first by the alphabet.
    """
    usable = table[(table["status"] == COMPLETE) & (table["start_from"] == CHECKPOINT)]
    # Two checkpoints of one boot would not be the same start.
    usable = usable.assign(boot_key=usable["boot_key"] + " " + usable["checkpoint"])
    names = ["hypervisor", *(name for name in TREATMENT if name != "policy")]
    found = []
    for _key, rows in usable.groupby(names, sort=True):
        baseline, *others = sorted(set(rows["policy"]), key=policy_order)
        found += [one for policy in others if (one := _difference(rows, policy, baseline)) is not None]
    place = {load: number for number, load in enumerate(in_order(table["workload"]))}
    return sorted(
        found, key=lambda one: (one.hypervisor, one.guests, one.guest_memory_bytes, place[one.workload])
    )


def _half_width(means: Sequence[float]) -> float | None:
    """Half of the t interval of one mean a boot."""
    n = len(means)
    return float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * stdev(means) / sqrt(n) if n > 1 else None


def _within_boot_sd(boots: Sequence[Sequence[float]]) -> float | None:
    repeated = [boot for boot in boots if len(boot) > 1]
    if not repeated:
        return None
    squares = sum((value - fmean(boot)) ** 2 for boot in repeated for value in boot)
    return sqrt(squares / sum(len(boot) - 1 for boot in repeated))


def _order(loads: Iterable[str]) -> Callable[[Summary], Any]:
    place = {load: number for number, load in enumerate(in_order(loads))}
    return lambda one: (
        one.hypervisor,
        one.guests,
        one.guest_memory_bytes,
        one.start_from,
        place[one.workload],
        policy_order(one.policy),
        one.loaded,
    )


def _summary(rows: pd.DataFrame) -> Summary:
    first = rows.iloc[0]
    workload = str(first["workload"])
    usable = rows[rows["status"] == COMPLETE]
    conflicts = pooling_conflicts(usable)
    boots: dict[str, list[int]] = {}
    for place, boot in enumerate(usable["boot_key"]):
        boots.setdefault(str(boot), []).append(place)
    values = {name: [float(value) for value in usable[name]] for name in QUANTITIES}
    estimates = {
        name: None if conflicts else estimate([[mine[at] for at in places] for places in boots.values()])
        for name, mine in values.items()
    }
    guests, guest_memory_bytes = int(first["guests"]), int(first["guest_memory_bytes"])
    like_the_paper = (guests, guest_memory_bytes) == (PAPER_GUESTS, PAPER_GUEST_BYTES)
    paper = PAPER_MIB_PER_VM.get(focus_of(workload) or 0) if like_the_paper else None
    return Summary(
        hypervisor=str(first["hypervisor"]),
        workload=workload,
        policy=str(first["policy"]),
        guests=guests,
        guest_memory_bytes=guest_memory_bytes,
        start_from=str(first["start_from"]),
        loaded=bool(first["loaded"]),
        planned=len(rows),
        measured=len(usable),
        boots=tuple(map(len, boots.values())),
        not_pooled=conflicts,
        unknown=tuple(sorted({str(reason) for reason in usable["unknown"] if reason})),
        parted=int(usable["parted_mib"].notna().sum()),
        estimates=estimates,
        paper=_compare(estimates["mem_available_mib_per_vm"], paper),
        cells=tuple(_measured(row) for row in rows[list(_MEASURED)].to_dict("records")),
    )


def _compare(ours: Estimate | None, paper: float | None) -> Comparison | None:
    if ours is None or paper is None:
        return None
    return Comparison(paper, ours.mean - paper, ours.half_width, ours.conclusive)


def _measured(row: Row) -> Measured:
    freed = float(row["freed_mib_per_vm"])
    return Measured(
        run_id=str(row["run_id"]),
        cell_id=str(row["cell_id"]),
        boot=int(row["boot"]),
        repetition=int(row["repetition"]),
        status=str(row["status"]),
        problem=str(row["problem"]),
        freed_mib_per_vm=None if pd.isna(freed) else freed,
    )


def _difference(rows: pd.DataFrame, policy: str, baseline: str) -> PolicyDifference | None:
    """Of one treatment but for the policy; None where no boot has both."""
    by_policy = {name: rows[rows["policy"] == name] for name in (policy, baseline)}
    shared = set.intersection(*(set(mine["boot_key"]) for mine in by_policy.values()))
    if not shared:
        return None
    mine = {name: found[found["boot_key"].isin(shared)] for name, found in by_policy.items()}
    conflicts = {conflict for found in mine.values() for conflict in pooling_conflicts(found)}
    conflicts |= set(beside_the_policy(pd.concat(list(mine.values()))))
    means = {name: found.groupby("boot_key")[list(COMPARED)].mean() for name, found in mine.items()}
    # A mean of the known repetitions would pass for all.
    unknown = {
        column: any(bool(found[column].isna().any()) for found in mine.values()) for column in COMPARED
    }
    first = rows.iloc[0]
    return PolicyDifference(
        hypervisor=str(first["hypervisor"]),
        workload=str(first["workload"]),
        guests=int(first["guests"]),
        guest_memory_bytes=int(first["guest_memory_bytes"]),
        policy=policy,
        baseline=baseline,
        n_boots=len(shared),
        not_compared=tuple(sorted(conflicts)),
        differences={
            column: None
            if conflicts or unknown[column]
            else paired(list(means[policy][column] - means[baseline][column]))
            for column in COMPARED
        },
    )


def beside_the_policy(rows: pd.DataFrame) -> list[str]:
    """Conflicts between two policies that are not what the policies themselves ask for."""
    own = {f"{PROVENANCE}ksm_knobs.", REQUESTED}
    if rows[f"{REQUESTED}thp_enabled"].nunique() > 1:
        own.add(f"{PROVENANCE}thp.enabled")
    kept = [name for name in map(str, rows.columns) if not name.startswith(tuple(own))]
    return list(pooling_conflicts(rows[kept]))

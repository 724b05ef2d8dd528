"""Policies side by side: what each saved from the same checkpoints, how soon, and what ksmd took for it."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from statistics import fmean
from typing import Any

import pandas as pd

from analysis.measure.burndown import PERCENT, Burndown, burndown, first_at, lost_byte_seconds
from analysis.measure.churn import ARRIVED, ARRIVED_LOST, CHURNED, churned
from analysis.measure.performance import LOSSES, beyond, boot_of, controls_of, lost_in
from analysis.measure.pooling import pooling_conflicts
from analysis.measure.probes import KSMD, probed_ksmd_percent
from analysis.measure.saving import Unknown, saving
from analysis.measure.statistics import (
    CHECKPOINT,
    LEAST_BOOTS,
    Difference,
    Estimate,
    beside_the_policy,
    estimate,
    paired,
)
from analysis.measure.steady import OF_BEST, STEADY, STEADY_GROSS, followed_seconds, steady
from analysis.measure.table import KEY, TREATMENT, UNCONVERGED
from analysis.plan.design import MIB
from analysis.plan.policies import OFF, policy_order
from analysis.plan.workloads import in_order
from analysis.records.loading import COMPLETE, CellRecords, Run

# What a policy is compared by; the registry of quantities says what each is.
USE, CPU = "guests_use_mib_per_vm", "ksmd_cpu_seconds"
GROSS, TO_BEST, LOST = "gross_mib_per_vm", "best_90_percent_seconds", "lost_mib_per_vm_seconds"
OF_TABLE = ("freed_mib_per_vm", GROSS, CPU)
COURSE = (
    *OF_TABLE,
    USE,
    "seconds_to_90_percent",
    TO_BEST,
    LOST,
    *STEADY,
    *OF_BEST.values(),
    *LOSSES,
    KSMD,
    *CHURNED,
)

_PLACE = ("hypervisor", *(name for name in TREATMENT if name != "policy"))


@dataclass(frozen=True)
class Against:
    """One policy less another, paired by boot: the mean of its repetitions less that of the other's."""

    difference: Difference
    n_boots: int

    @property
    def apart(self) -> bool:
        """Whether the two can be told apart: boots enough, and 0 outside of the 95 % interval."""
        half = self.difference.half_width
        return self.n_boots >= LEAST_BOOTS and half is not None and abs(self.difference.mean) > half


@dataclass(frozen=True)
class Line:
    """One policy in one place.

    ``boots``: cells of each boot. ``unsettled``: cells whose saving had not settled when they ended.
    ``unreached``: cells in which 90 % of the best policy's saving was never there. ``values``: quantity of
    COURSE -> boot -> mean of its repetitions, NaN where a cell does not tell, without boots that the best
    policy lacks where the quantity is held against that. ``settings``: what the policy
    set, as asked for and as far as the kernel has it: knobs, thp_enabled and service.
    """

    policy: str
    boots: tuple[int, ...]
    unsettled: int
    unreached: int
    values: Mapping[str, Mapping[str, float]]
    estimates: Mapping[str, Estimate | None]
    settings: Mapping[str, Any]

    @property
    def cells(self) -> int:
        """How many cells of it were measured."""
        return sum(self.boots)

    def less(self, other: "Line", name: str) -> Against | None:
        """A quantity less the other's, over the boots that both have; None where one is not known."""
        return against(self.values[name], other.values[name])


@dataclass(frozen=True)
class Place:
    """Policies that were measured from the same checkpoints.

    ``horizon_seconds``: the longest series of all its cells, over which what is lost is counted. ``most``:
    the policy with the greatest mean gross saving, ``steadiest``: the same of the series after the on
    records, ``least``: that under which the guests use least; None where no policy tells.
    ``followed_seconds``: of the shortest and longest of those series, empty without one. ``left_out``: a
    sentence for each policy that cannot be compared, ``lines`` the others, maybe none. ``control``: by LOSSES
    what order and chance alone did in cells under off, over the boots, and was taken off what each policy
    costs; empty where not every boot has such a cell.
    """

    hypervisor: str
    workload: str
    guests: int
    guest_memory_bytes: int
    horizon_seconds: float
    most: str | None
    steadiest: str | None
    followed_seconds: tuple[float, ...]
    least: str | None
    lines: tuple[Line, ...]
    left_out: tuple[str, ...]
    control: Mapping[str, Estimate | None]

    def line(self, policy: str) -> Line:
        """The line of a policy that is here."""
        return next(line for line in self.lines if line.policy == policy)

    def front(self, cost: str) -> frozenset[str]:
        """Policies that no other one beats in both memory used and this cost, by their means."""
        known = {
            line.policy: (use.mean, spent.mean)
            for line in self.lines
            if (use := line.estimates[USE]) is not None and (spent := line.estimates[cost]) is not None
        }
        return frozenset(
            policy
            for policy, mine in known.items()
            if not any(
                other != mine and other[0] <= mine[0] and other[1] <= mine[1] for other in known.values()
            )
        )


@dataclass(frozen=True)
class _Cell:
    """A measured cell: its row of the tidy table, its records, how its saving grew, and how it went on."""

    row: Mapping[Hashable, Any]
    records: CellRecords
    growth: Burndown
    went_on: Mapping[str, float]

    @property
    def boot(self) -> str:
        return boot_of(self.records)


@dataclass(frozen=True)
class _Bests:
    """What the cells of a place are held against.

    ``saved_bytes``: boot -> what the best policy saved in the end. ``steady``: quantity of OF_BEST -> boot ->
    what the best one has after the on record. ``horizon_seconds``: over which what is lost is counted.
    ``chance``: boot -> what cells under off lost, by LOSSES.
    """

    saved_bytes: Mapping[str, float]
    steady: Mapping[str, Mapping[str, float]]
    horizon_seconds: float
    chance: Mapping[str, Mapping[str, float]]

    def tells(self, name: str, boot: str) -> bool:
        """Whether a quantity of COURSE can be told of a boot, which the best policy may lack."""
        if name in (TO_BEST, LOST, ARRIVED, ARRIVED_LOST):
            return boot in self.saved_bytes
        return all(boot in self.steady[of] for of, share in OF_BEST.items() if share == name)


def against(mine: Mapping[str, float], theirs: Mapping[str, float]) -> Against | None:
    """The differences by boot of what both have; None where there is none, or a value is not known."""
    differences = [mine[boot] - theirs[boot] for boot in mine if boot in theirs]
    if not differences or any(map(isnan, differences)):
        return None
    return Against(paired(differences), len(differences))


def side_by_side(table: pd.DataFrame, runs: Sequence[Run]) -> list[Place]:
    """Each place in which cells were restored from checkpoints, settled or not, by host and workload.

    Args:
        table: a tidy table of cells that belong together, see :func:`analysis.measure.pooling.largest_set`.
        runs: those of the table.

    Raises RecordError where a series after the on record cannot be used.
    """
    usable = table[table["status"].isin((COMPLETE, UNCONVERGED)) & (table["start_from"] == CHECKPOINT)]
    records = {
        (run.plan.run_id, cell.cell.hypervisor, cell.cell.cell_id): cell for run in runs for cell in run.cells
    }
    loads = in_order(usable["workload"])
    controls = [one for one in records.values() if one.cell.policy == OFF and one.status == COMPLETE]
    places = [_place(rows, records, controls) for _key, rows in usable.groupby(list(_PLACE), sort=True)]
    return sorted(places, key=lambda one: (one.hypervisor, one.guests, loads.index(one.workload)))


def _place(
    rows: pd.DataFrame,
    records: Mapping[tuple[str, str, str], CellRecords],
    controls: Sequence[CellRecords],
) -> Place:
    kept, left_out = _comparable(rows)
    cells: dict[str, list[_Cell]] = {policy: [] for policy in kept}
    rows_of = rows[rows["policy"].isin(kept)].to_dict("records")
    mine = [(row, records[str(row[KEY[0]]), str(row[KEY[1]]), str(row[KEY[2]])]) for row in rows_of]
    followed = followed_seconds(found for _row, found in mine)
    for row, found in mine:
        went_on = steady(found, min(followed, default=0.0))
        cells[str(row["policy"])].append(_Cell(row, found, burndown(found), went_on))
    horizon = max((cell.growth.seconds[-1] for mine in cells.values() for cell in mine), default=0.0)
    most = _greatest(
        {policy: [(c.boot, float(c.row[GROSS])) for c in mine] for policy, mine in cells.items()}
    )
    best = {} if most is None else _by_boot([(c.boot, float(c.growth.final_bytes)) for c in cells[most]])
    steadiest = _greatest(
        {policy: [(c.boot, c.went_on[STEADY_GROSS]) for c in mine] for policy, mine in cells.items()}
    )
    best_after = {
        name: {} if steadiest is None else _by_boot([(c.boot, c.went_on[name]) for c in cells[steadiest]])
        for name in OF_BEST
    }
    control = controls_of([cell.records for mine in cells.values() for cell in mine], controls)
    chance = {
        boot: {name: fmean(one[name] for one in mine) for name in LOSSES} for boot, mine in control.items()
    }
    bests = _Bests(best, best_after, horizon, chance)
    lines = tuple(_line(policy, mine, bests) for policy, mine in cells.items())
    uses = {line.policy: seen.mean for line in lines if (seen := line.estimates[USE]) is not None}
    first = rows.iloc[0]
    return Place(
        hypervisor=str(first["hypervisor"]),
        workload=str(first["workload"]),
        guests=int(first["guests"]),
        guest_memory_bytes=int(first["guest_memory_bytes"]),
        horizon_seconds=horizon,
        most=most,
        steadiest=steadiest,
        followed_seconds=(followed[0], followed[-1]) if followed else (),
        least=min(uses, key=uses.__getitem__, default=None),
        lines=lines,
        left_out=tuple(left_out),
        control={
            name: estimate([[one[name] for one in mine] for mine in control.values()])
            for name in (LOSSES if control else ())
        },
    )


def _comparable(rows: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Policies that may stand side by side, and a sentence for each that may not.

    The first one that can be pooled is what the others must be like, but for what they ask for themselves.
    """
    kept: list[str] = []
    left_out = []
    for policy in sorted(set(rows["policy"]), key=policy_order):
        mine = rows[rows["policy"] == policy]
        like = rows[rows["policy"].isin((policy, *kept[:1]))]
        conflicts = pooling_conflicts(mine) or tuple(beside_the_policy(like))
        if conflicts:
            left_out.append(
                f"{policy} is left out, for its cells were measured under different conditions: "
                f"{'; '.join(conflicts)}."
            )
        else:
            kept.append(policy)
    return kept, left_out


def _line(policy: str, cells: Sequence[_Cell], bests: _Bests) -> Line:
    measured = [(cell.boot, _values(cell, bests)) for cell in cells]
    boots: dict[str, list[dict[str, float]]] = {}
    for boot, values in measured:
        boots.setdefault(boot, []).append(values)
    told = {
        name: {boot: [one[name] for one in mine] for boot, mine in boots.items() if bests.tells(name, boot)}
        for name in COURSE
    }
    requested, read_back = cells[0].records.on.requested, cells[0].records.provenance.ksm_knobs
    return Line(
        policy=policy,
        boots=tuple(map(len, boots.values())),
        unsettled=sum(not cell.growth.settled for cell in cells),
        unreached=sum(boot in bests.saved_bytes and isnan(values[TO_BEST]) for boot, values in measured),
        values={name: {boot: fmean(mine) for boot, mine in seen.items()} for name, seen in told.items()},
        estimates={name: estimate(list(seen.values())) for name, seen in told.items()},
        settings={
            "knobs": {name: value for name, value in requested.ksm_knobs.items() if name in read_back},
            "thp_enabled": requested.thp_enabled,
            "service": requested.service,
        },
    )


def _values(cell: _Cell, bests: _Bests) -> dict[str, float]:
    """What one cell says, by COURSE; NaN for what it does not tell."""
    growth, unit = cell.growth, cell.records.cell.guests * MIB
    best = bests.saved_bytes.get(cell.boot)
    own = growth.seconds_to[PERCENT]
    to_best = None if best is None else first_at(growth.seconds, growth.saved_bytes, best * PERCENT / 100)
    lost = nan
    if best is not None:
        lost = lost_byte_seconds(growth.seconds, growth.saved_bytes, best, bests.horizon_seconds) / unit
    used = saving(cell.records).guests_use
    return {
        **{name: float(cell.row[name]) for name in OF_TABLE},
        USE: nan if isinstance(used, Unknown) else used / unit,
        "seconds_to_90_percent": nan if own is None else own,
        TO_BEST: nan if to_best is None else to_best,
        LOST: lost,
        **cell.went_on,
        **{
            share: 100 * cell.went_on[name] / (bests.steady[name].get(cell.boot) or nan)
            for name, share in OF_BEST.items()
        },
        **churned(cell.records, best),
        **beyond(lost_in(cell.records), bests.chance.get(cell.boot, {})),
        KSMD: probed_ksmd_percent(cell.records.on.observed.window),
    }


def _by_boot(values: Sequence[tuple[str, float]]) -> dict[str, float]:
    boots: dict[str, list[float]] = {}
    for boot, value in values:
        boots.setdefault(boot, []).append(value)
    return {boot: fmean(mine) for boot, mine in boots.items()}


def _greatest(values: Mapping[str, Sequence[tuple[str, float]]]) -> str | None:
    """The policy with the greatest mean over the boots that all of them have; None where none is known.

    Where they have no boot in common, over those that each one has.
    """
    by_boot = {policy: _by_boot(mine) for policy, mine in values.items()}
    known = {policy: mine for policy, mine in by_boot.items() if not any(map(isnan, mine.values()))}
    common = set.intersection(*(set(mine) for mine in known.values())) if known else set()
    means = {
        policy: fmean(value for boot, value in mine.items() if boot in (common or mine))
        for policy, mine in known.items()
    }
    return max(means, key=means.__getitem__, default=None)

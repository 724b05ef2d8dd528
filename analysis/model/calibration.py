"""What a forecast rests on: the largest set of cells that belong together, and what it leaves out."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from analysis.errors import UserError
from analysis.measure.efficiency import cell_census
from analysis.measure.page_contents import Census
from analysis.measure.pooling import Conditions, Row, condition_columns, condition_text, differing
from analysis.measure.saving import (
    Unknown,
    Value,
    anonymous_bytes,
    known,
    less,
    others_bytes,
    saving,
    used_bytes,
    withheld_bytes,
)
from analysis.measure.table import PROVENANCE, RULE, tidy
from analysis.model.capacity import conditions
from analysis.model.sharing import CENSUS, ENVELOPE, HOST, SHARING, Sample, fitting, mean_of_known
from analysis.plan.policies import DEFAULT, OFF, policy_order
from analysis.records.capacity import load_capacity
from analysis.records.loading import COMPLETE, CellRecords, Run
from analysis.records.models import SnapshotRecord

Key = tuple[str, str, str]


class ForecastError(UserError):
    """A forecast that cannot be made or stored."""


@dataclass(frozen=True)
class Calibration:
    """The measured cells of one host under one policy and set of conditions that a forecast rests on.

    ``samples``: one for each workload, number of guests and physical boot, of the scope. ``bases``: path
    under results, SHA-256 and use of each record with no guest. ``counted``: the directories of the cells
    whose census is used. ``others_bytes``: what other programs held, the mean over the cells' records, and
    ``withheld_bytes``: what was free or cache and not available; samples and bases are as if both had been
    that all the time. ``left_out``: what is not used, with the
    reason, a sentence for each run and reason; ``cells_left_out``: how many cells that is. ``fills``: by
    workload, the part of the available memory that it fills with each content.
    """

    model: str

    hypervisor: str
    policy: str
    scope: str
    guest_memory_bytes: int
    page_size_bytes: int
    max_page_sharing: int
    memory_total_bytes: int
    conditions: dict[str, str]
    cells: tuple[CellRecords, ...]
    run_ids: tuple[str, ...]
    samples: tuple[Sample, ...]
    bases: tuple[tuple[str, str, int], ...]
    counted: frozenset[Path]
    others_bytes: float
    withheld_bytes: float
    left_out: tuple[str, ...]
    cells_left_out: int
    fills: dict[str, dict[str, float]]


@dataclass(frozen=True)
class _Found:
    """A cell that may be used: what it is a sample of, and what it was measured under."""

    key: Key
    records: CellRecords
    sample: Sample
    loaded: bool
    conditions: Conditions

    @property
    def others_bytes(self) -> float:
        """What other programs held, the mean of both arms."""
        return self._mean(lambda arm: others_bytes(arm.observed.host, arm.observed.guests))

    @property
    def withheld_bytes(self) -> float:
        """What was free or cache and not available, the mean of both arms."""
        return self._mean(lambda arm: withheld_bytes(arm.observed.host))

    def _mean(self, read: Callable[[SnapshotRecord], Value]) -> float:
        found = known(read(arm) for arm in (self.records.off, self.records.on))
        # _sample has seen that they are known.
        return 0.0 if isinstance(found, Unknown) else fmean(found)

    @property
    def workload(self) -> str:
        return self.records.cell.workload


def calibration(
    runs: Sequence[Run],
    *,
    scope: str = HOST,
    predicted: Collection[tuple[str | None, int]] = (),
    guest_memory_bytes: int | None = None,
    asked: Collection[str] = (),
    model: str | None = None,
    policy: str | None = None,
    bases_in: Path | None = None,
    unread: Sequence[str] = (),
) -> Calibration:
    """The largest set of cells of the runs that were measured under the same conditions.

    Of the sets that the usable cells fall into: one to which the model can be fitted for each workload asked
    for, then the one with the most samples that it can be fitted to, then the default policy's, the latest.

    Args:
        runs: the runs chosen.
        scope: HOST, or ENVELOPE: of what the use is.
        predicted: workload (None: every one) and guests of what is predicted: never read.
        guest_memory_bytes: the memory of the guests predicted; None: as measured.
        asked: the workloads asked for; of others, those that the model cannot be fitted to are left out.
        model: SHARING or CENSUS; None: CENSUS where it tells of as many workloads.
        policy: this one only.
        bases_in: results whose capacity runs may hold the host's use with no guest, for one number of guests.
        unread: a sentence for each run that could not be read, for those left out.

    Raises ForecastError when nothing is left, or the policy was not measured.
    """
    stored = {
        (run.plan.run_id, cell.cell.hypervisor, cell.cell.cell_id): cell for run in runs for cell in run.cells
    }
    table = tidy(list(runs))
    columns = condition_columns(table)
    rows = table.to_dict("records")
    if policy is not None:
        policies = sorted({str(row["policy"]) for row in rows}, key=policy_order)
        if policy not in policies:
            raise ForecastError(
                f"--policy is {policy!r}: measured, and so allowed, is {', '.join(policies) or 'none'}."
            )
        rows = [row for row in rows if row["policy"] == policy]
    reasons: dict[Key, str] = {}
    usable = []
    for row in rows:
        key = (str(row["run_id"]), str(row["hypervisor"]), str(row["cell_id"]))
        of_this_size = guest_memory_bytes in (None, stored[key].cell.guest_memory_bytes)
        found = _sample(row, stored[key], predicted if of_this_size else ())
        if isinstance(found, str):
            reasons[key] = found.rstrip(".")
        else:
            conditions = tuple((name, condition_text(row[name])) for name in columns)
            usable.append(_Found(key, stored[key], found, bool(row["loaded"]), conditions))
    found_censuses, damaged = ({}, []) if model == SHARING else _censuses(usable)
    usable = [replace(one, sample=replace(one.sample, census=found_censuses.get(one.key))) for one in usable]
    model = model or _telling(usable, asked)
    chosen, others = _largest(usable, asked, model)
    reasons |= others
    if not chosen:
        left_out = _sentences(reasons)
        raise ForecastError(
            "there is no complete cell to forecast from"
            + (f" ({left_out[0]})" if left_out else "")
            + ": measure some small numbers of guests first."
        )
    first = chosen[0].records
    others_held = fmean(one.others_bytes for one in chosen)
    withheld = fmean(one.withheld_bytes for one in chosen)
    shared = {
        name.removeprefix(PROVENANCE): value
        for name, value in chosen[0].conditions
        if name.startswith(PROVENANCE) or name == RULE
    }
    return Calibration(
        model=model,
        hypervisor=first.cell.hypervisor,
        policy=first.cell.policy,
        scope=scope,
        guest_memory_bytes=first.cell.guest_memory_bytes,
        page_size_bytes=first.page_size_bytes,
        # The kernel's own default (mm/ksm.c), where the file is absent.
        max_page_sharing=int(first.provenance.ksm_knobs.get("max_page_sharing", 256)),
        memory_total_bytes=first.provenance.memory_total_bytes,
        conditions=shared,
        cells=tuple(one.records for one in chosen),
        run_ids=tuple(one.key[0] for one in chosen),
        samples=tuple(_beside(sample, others_held + withheld) for sample in _samples(chosen)),
        others_bytes=others_held,
        withheld_bytes=withheld,
        counted=frozenset(
            one.records.directory for one in chosen if model == CENSUS and one.sample.census is not None
        ),
        # Another run's, at another state of the host: 67 MiB beside the line through 2 to 20 guests.
        bases=()
        if bases_in is None or len({one.sample.guests for one in chosen}) > 1
        else _bases(bases_in, first.cell.hypervisor, shared, others_held + withheld),
        left_out=(*_sentences(reasons), *damaged, *(problem.rstrip(".") for problem in unread)),
        cells_left_out=len(reasons),
        fills=_fills(runs, chosen),
    )


def scope_used_bytes(cell: CellRecords, arm: SnapshotRecord, scope: str) -> Value:
    """What an off or on record uses: of the host, or of the guests' own anonymous memory and page tables.

    Of the host without what other programs hold and what is withheld, which move from one record to the next
    with their work.
    """
    if scope != HOST:
        return _guests_bytes(arm)
    host, guests = arm.observed.host, arm.observed.guests
    used = less(used_bytes(host, cell.page_size_bytes), others_bytes(host, guests))
    return less(used, withheld_bytes(host))


def _guests_bytes(arm: SnapshotRecord) -> Value:
    guests = arm.observed.guests
    own = anonymous_bytes(guests)
    if isinstance(own, Unknown):
        return own
    return own + sum(guest.page_tables_bytes for guest in guests.values())


def _sample(row: Row, records: CellRecords, predicted: Collection[tuple[str | None, int]]) -> Sample | str:
    """A cell as a forecast may use it, or why it does not."""
    workload, guests = records.cell.workload, records.cell.guests
    if row["status"] != COMPLETE:
        return f"{row['status']}: {row['problem']}"
    problems = (
        ((workload, guests) in predicted or (None, guests) in predicted, "it is what is predicted"),
        ("=" in workload, "it is a mix"),
    )
    reason = next((reason for wrong, reason in problems if wrong), "")
    if reason:
        return reason
    saved = saving(records)
    arms = (records.off, records.on)
    values = known(
        [*(scope_used_bytes(records, arm, scope) for scope in (HOST, ENVELOPE) for arm in arms), saved.gross]
    )
    if isinstance(values, Unknown):
        return values.reason
    own = None if isinstance(saved.ksm_own, Unknown) else saved.ksm_own
    off, on, guests_off, guests_on, gross = values
    filled = [guest.filled_bytes for guest in records.off.observed.workload.values()]
    return Sample(
        workload,
        guests,
        records.boot_key,
        off,
        on,
        guests_off,
        guests_on,
        gross,
        own,
        filled_bytes=fmean(filled) if filled else 0.0,
    )


def _fills(runs: Sequence[Run], chosen: Sequence[_Found]) -> dict[str, dict[str, float]]:
    """By workload, the part of the available memory that it fills with each content."""
    plans = {run.plan.run_id: run.plan for run in runs}
    found = {}
    for one in chosen:
        fill: Counter[str] = Counter()
        for segment in plans[one.key[0]].workloads[one.workload].segments:
            fill[segment.content] += segment.percent
        found[one.workload] = {content: percent / 100 for content, percent in fill.items()}
    return found


def _telling(usable: Sequence[_Found], asked: Collection[str]) -> str:
    """CENSUS where it can be fitted to every workload asked for, or of all, that SHARING can."""
    told = {name: _fitting(_largest(usable, asked, name)[0], name) for name in (SHARING, CENSUS)}
    wanted = told[SHARING] & set(asked) if asked else told[SHARING]
    return CENSUS if told[CENSUS] and wanted <= told[CENSUS] else SHARING


def _largest(
    usable: Sequence[_Found], asked: Collection[str], model: str
) -> tuple[list[_Found], dict[Key, str]]:
    """The set to forecast from, and why each other cell is not in it."""
    sets: dict[tuple[Any, ...], list[_Found]] = {}
    for one in usable:
        sets.setdefault((one.key[1], one.records.cell.policy, one.conditions), []).append(one)
    if not sets:
        return [], {}
    alike = [_alike_loaded(mine) for mine in sets.values()]

    def worth(cells: Sequence[_Found]) -> tuple[Any, ...]:
        fits = _fitting(cells, model)
        present = {one.workload for one in cells}
        name = cells[0].records.cell.policy
        boots = {(one.workload, one.sample.guests, one.records.boot_key) for one in cells}
        return (
            len(fits & set(asked)),
            len(present & set(asked)),
            name != OFF,
            # The host's use with no guest is told by several numbers of guests.
            len({one.sample.guests for one in cells}) > 1,
            len({boot for boot in boots if boot[0] in fits}),
            len(cells),
            name == DEFAULT,
            max(one.records.on.recorded_at for one in cells),
        )

    best = max(alike, key=worth)
    fits = _fitting(best, model)
    lacking = (
        "its workload was measured at one number of guests only"
        if model == SHARING
        else "its workload has no page census"
    )
    reasons = {}
    inside = {one.key for one in best}
    for one in usable:
        if one.key not in inside:
            reasons[one.key] = _apart(one, best)
        elif fits and one.workload not in {*fits, *asked}:
            reasons[one.key] = lacking
    return [one for one in best if one.key not in reasons], reasons


def _alike_loaded(cells: Sequence[_Found]) -> list[_Found]:
    """Of each workload those loaded before the checkpoint, or those after it: where there are more."""
    sides = Counter((one.workload, one.loaded) for one in cells)
    return [
        one
        for one in cells
        if (sides[one.workload, one.loaded], not one.loaded)
        > (sides[one.workload, not one.loaded], one.loaded)
    ]


def _apart(one: _Found, chosen: Sequence[_Found]) -> str:
    """In what a cell differs from those chosen."""
    if one.key[1] != chosen[0].key[1]:
        return f"it is of the host {one.key[1]}, which --hypervisor would choose"
    policy = one.records.cell.policy
    if policy != chosen[0].records.cell.policy:
        return f"it is under the policy {policy}, which --policy would choose"
    apart = differing(one.conditions, chosen[0].conditions)
    if not apart:
        return "its workload was loaded on the other side of the checkpoint than in most of its cells"
    return f"it was measured under other conditions than those chosen ({'; '.join(apart)})"


def _fitting(cells: Sequence[_Found], model: str) -> set[str]:
    """The workloads that the model can be fitted to."""
    return fitting(((one.workload, one.sample.guests, one.sample.census is not None) for one in cells), model)


def _sentences(reasons: Mapping[Key, str]) -> list[str]:
    """A sentence for each run and reason."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for (run_id, _hypervisor, cell_id), reason in reasons.items():
        grouped.setdefault((run_id, reason), []).append(cell_id)
    return [
        f"run {run_id}, {cells[0] if len(cells) == 1 else f'{len(cells)} cells'}: {reason}"
        for (run_id, reason), cells in grouped.items()
    ]


def _beside(sample: Sample, held: float) -> Sample:
    """A sample of the host as if so much had been used beside what its parts use."""
    return replace(sample, off_bytes=sample.off_bytes + held, on_bytes=sample.on_bytes + held)


def _samples(cells: Sequence[_Found]) -> tuple[Sample, ...]:
    """One for each workload, number of guests and boot: the mean of its repetitions, and its last census."""
    boots: dict[tuple[str, int, str], list[Sample]] = {}
    for one in cells:
        key = (one.workload, one.sample.guests, one.records.boot_key)
        boots.setdefault(key, []).append(one.sample)
    means = []
    for repetitions in boots.values():
        counted = [sample.census for sample in repetitions if sample.census is not None]
        means.append(
            Sample(
                repetitions[0].workload,
                repetitions[0].guests,
                repetitions[0].boot,
                off_bytes=fmean(sample.off_bytes for sample in repetitions),
                on_bytes=fmean(sample.on_bytes for sample in repetitions),
                guests_off_bytes=fmean(sample.guests_off_bytes for sample in repetitions),
                guests_on_bytes=fmean(sample.guests_on_bytes for sample in repetitions),
                gross_bytes=fmean(sample.gross_bytes for sample in repetitions),
                ksm_bytes=mean_of_known(sample.ksm_bytes for sample in repetitions),
                census=counted[-1] if counted else None,
                filled_bytes=fmean(sample.filled_bytes for sample in repetitions),
            )
        )
    return tuple(means)


def _censuses(cells: Sequence[_Found]) -> tuple[dict[Key, Census], list[str]]:
    """The census of each cell that has one, and a sentence for each that cannot be used."""
    found, problems = {}, []
    for one in cells:
        try:
            counted = cell_census(one.records)
        except UserError as error:
            problems.append(str(error).rstrip("."))
            continue
        if counted is not None:
            found[one.key] = counted
    return found, problems


def _bases(
    results: Path, hypervisor: str, wanted: Mapping[str, str], held: float
) -> tuple[tuple[str, str, int], ...]:
    """Use with no guest, the rest as in the cells, where it was measured under these conditions."""
    found = []
    for base in (base for run in load_capacity(results)[0] for base in run.bases):
        step = base.step
        host = step.observed.host
        used = less(used_bytes(host, step.provenance.page_size_bytes), withheld_bytes(host))
        alike = step.hypervisor == hypervisor and all(
            wanted.get(name, "absent") == value for name, value in conditions(step).items()
        )
        if alike and not isinstance(used, Unknown):
            # No guest: all anonymous memory is other programs'.
            apart = used - host.meminfo["AnonPages_bytes"]
            found.append((str(base.path.relative_to(results)), base.sha256, int(apart + held)))
    return tuple(found)

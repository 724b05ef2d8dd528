"""Surveys that were taken in cells before KSM was on, beside what KSM then saved."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from analysis.measure.saving import Unknown, Value, saving
from analysis.measure.statistics import Estimate, estimate
from analysis.measure.survey import Total, surveyed_pages
from analysis.plan.design import MIB
from analysis.records.loading import COMPLETE, CellRecords, Run
from analysis.records.reading import RecordError


class Treatment(NamedTuple):
    """What cells have in common that stand in one line; ``sampled_one_in``: 1 where all was counted."""

    hypervisor: str
    workload: str
    guests: int
    guest_memory_mib: int
    policy: str
    thp_enabled: str
    sampled_one_in: int


@dataclass(frozen=True)
class Foretold:
    """A cell that was surveyed, in MB/VM (MiB).

    ``counted`` is to be compared with ``gross``, KSM's counters; ``ideal`` with ``pss``, the fall of the
    guests' PSS, which has what no counter has. ``one_in``: of the survey's sample.
    """

    records: CellRecords
    thp_enabled: str
    one_in: int
    counted: Total
    ideal: Total
    gross: float
    pss: float

    @property
    def treatment(self) -> Treatment:
        """The line that it belongs to."""
        cell = self.records.cell
        return Treatment(
            cell.hypervisor,
            cell.workload,
            cell.guests,
            cell.guest_memory_bytes // MIB,
            cell.policy,
            self.thp_enabled,
            self.one_in,
        )

    @property
    def gross_error_percent(self) -> float:
        """Foretold less saved, over saved, by KSM's counters."""
        return 100 * (self.counted.pages - self.gross) / self.gross

    @property
    def pss_error_percent(self) -> float:
        """The same by the fall of PSS."""
        return 100 * (self.ideal.pages - self.pss) / self.pss


@dataclass(frozen=True)
class Line:
    """Cells of one treatment; estimates over their boots."""

    treatment: Treatment
    cells: tuple[Foretold, ...]

    def of(self, name: str) -> Estimate:
        """Mean of an attribute over the boots with its interval; of a total, of what it is."""
        boots: dict[str, list[float]] = {}
        for one in self.cells:
            value = getattr(one, name)
            boots.setdefault(one.records.boot_key, []).append(
                value.pages if isinstance(value, Total) else value
            )
        found = estimate(list(boots.values()))
        assert found is not None  # noqa: S101 -- there is a cell, and it knows all
        return found


def foretold(runs: Sequence[Run]) -> tuple[list[Line], list[str]]:
    """Lines of surveyed cells by treatment, and a sentence for each surveyed cell that is not used."""
    lines: dict[Treatment, list[Foretold]] = {}
    problems = []
    for run in runs:
        for records in run.cells:
            try:
                one = _foretold(records)
            except RecordError as error:
                problems.append(f"{records.run_id}, {records.cell.cell_id}: {error}")
                continue
            if one is not None:
                lines.setdefault(one.treatment, []).append(one)
    return [Line(key, tuple(lines[key])) for key in sorted(lines)], problems


def _foretold(records: CellRecords) -> Foretold | None:
    """One cell; None where it has no survey. Raises RecordError where it cannot be used."""
    survey = records.survey
    if survey is None:
        return None
    if records.status != COMPLETE:
        raise RecordError(records.problem)
    if not records.merge.observed.converged:
        raise RecordError("it had not settled")
    pages = surveyed_pages(survey)
    counted = 0 if pages is None else len(pages.census.machines)
    guests = records.cell.guests
    if pages is None or counted != guests:
        raise RecordError(f"its survey counted the pages of {counted} machines, and it has {guests} guests")
    seen, unit = saving(records), survey.provenance.page_size_bytes / MIB / guests
    gross = _known(seen.per_vm_mib("gross"))
    if gross <= 0:
        raise RecordError(f"KSM saved nothing under the policy {records.cell.policy}")
    told = pages.saving()
    return Foretold(
        records=records,
        thp_enabled=survey.provenance.thp.get("enabled", "none"),
        one_in=pages.census.one_in,
        counted=told.counted.scaled(unit),
        ideal=told.ideal.scaled(unit),
        gross=gross,
        pss=_known(seen.per_vm_mib("pss")),
    )


def _known(value: Value) -> float:
    if isinstance(value, Unknown):
        raise RecordError(value.reason)
    return value

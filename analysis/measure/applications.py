"""What applications in the guests did before KSM merged and after, by their own figure and by CPU time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from analysis.measure.statistics import Difference, Estimate, estimate, paired
from analysis.plan.mix import guest_workloads
from analysis.records.loading import CellRecords
from analysis.records.models import PerformedTwice
from analysis.records.reading import RecordError


@dataclass(frozen=True)
class ApplicationCost:
    """One application of a treatment, over boots; each boot is the mean of its cells and of their guests.

    ``figure_off``, ``figure_on``: what its performance command gave, in ``unit``. ``cpu_off_seconds``,
    ``cpu_on_seconds``: how long the guests' virtual CPUs ran for that command, by the host's clock. The
    changes are in percent of KSM off, one difference a boot; nothing is taken off for the order, off first.
    None where a value is not known. ``boots``: how many.
    """

    workload: str
    unit: str
    boots: int
    figure_off: Estimate | None
    figure_on: Estimate | None
    figure_change: Difference | None
    cpu_off_seconds: Estimate | None
    cpu_on_seconds: Estimate | None
    cpu_change: Difference | None


def application_costs(cells: Iterable[CellRecords]) -> tuple[list[ApplicationCost], list[str]]:
    """The applications of cells that may be averaged, by workload and unit.

    Returns them, and a sentence for each cell whose record cannot be used.
    """
    found: dict[tuple[str, str], dict[str, list[PerformedTwice]]] = {}
    problems = []
    for cell in cells:
        try:
            record = cell.performance
        except RecordError as error:
            problems.append(str(error))
            continue
        if record is None:
            continue
        # Some of the guests are measured: what each does is told by all of their names.
        does = guest_workloads(cell.cell.workload, cell.on.observed.guests)
        for guest, both in record.observed.guests.items():
            boots = found.setdefault((does[guest], both.off.unit), {})
            boots.setdefault(cell.boot_key, []).append(both)
    costs = [_cost(*kind, list(boots.values())) for kind, boots in sorted(found.items())]
    return costs, problems


def _cost(workload: str, unit: str, boots: Sequence[Sequence[PerformedTwice]]) -> ApplicationCost:
    figures = [[(both.off.figure, both.on.figure) for both in boot] for boot in boots]
    seconds = [[(both.off.took.run_seconds, both.on.took.run_seconds) for both in boot] for boot in boots]
    return ApplicationCost(workload, unit, len(boots), *_of_arms(figures), *_of_arms(seconds))


def _of_arms(
    boots: Sequence[Sequence[tuple[float | None, float | None]]],
) -> tuple[Estimate | None, Estimate | None, Difference | None]:
    """Off, on and the change in percent of values off and on of each boot's guests; None where unknown."""
    pairs = [tuple(_mean(values) for values in zip(*boot, strict=True)) for boot in boots]
    offs, ons = ([value for value in arm if value is not None] for arm in zip(*pairs, strict=True))
    if len(offs) < len(pairs) or len(ons) < len(pairs):
        return None, None, None
    changes = [100 * (on / off - 1) for off, on in zip(offs, ons, strict=True) if off]
    return (
        estimate([[off] for off in offs]),
        estimate([[on] for on in ons]),
        paired(changes) if len(changes) == len(pairs) else None,
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if None in known else fmean(value for value in known if value is not None)

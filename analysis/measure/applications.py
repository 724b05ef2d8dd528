"""What applications in the guests did before KSM merged and after, by their own figure and by CPU time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from analysis.measure.statistics import Difference, Estimate, estimate, paired
from analysis.plan.design import MIB
from analysis.plan.mix import guest_workloads
from analysis.records.loading import CellRecords
from analysis.records.models import Performed, PerformedTwice
from analysis.records.reading import RecordError


@dataclass(frozen=True)
class ApplicationCost:
    """One application of a treatment, over boots; each boot is the mean of its cells and of their guests.

    ``figure_off``, ``figure_on``: what its performance command gave, in ``unit``. ``cpu_off_seconds``,
    ``cpu_on_seconds``: how long the guests' virtual CPUs ran for that command, by the host's clock. The
    changes are in percent of KSM off, one difference a boot; nothing is taken off for the order, off first.
    ``written_mib_per_second``: merged pages that were written to while the command ran in one guest, less
    the rate in the quiet seconds before it; ``quiet_mib_per_second``, that rate. ``saved_change_mib``: what
    the whole host's saving grew by meanwhile, with the policy on. ``command_seconds``: what the command took
    then. None where a value is not known. ``boots``: how many.
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
    written_mib_per_second: Estimate | None
    quiet_mib_per_second: Estimate | None
    saved_change_mib: Estimate | None
    command_seconds: Estimate | None


def application_costs(cells: Iterable[CellRecords]) -> tuple[list[ApplicationCost], list[str]]:
    """The applications of cells that may be averaged, by workload and unit.

    Returns them, and a sentence for each cell whose record cannot be used.
    """
    found: dict[tuple[str, str], dict[str, list[tuple[PerformedTwice, int]]]] = {}
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
            boots.setdefault(cell.boot_key, []).append((both, cell.page_size_bytes))
    costs = [_cost(*kind, list(boots.values())) for kind, boots in sorted(found.items())]
    return costs, problems


def _cost(workload: str, unit: str, boots: Sequence[Sequence[tuple[PerformedTwice, int]]]) -> ApplicationCost:
    figures = [[(both.off.figure, both.on.figure) for both, _size in boot] for boot in boots]
    seconds = [
        [(both.off.took.run_seconds, both.on.took.run_seconds) for both, _size in boot] for boot in boots
    ]
    decays = [[_decay(both.on, size / MIB) for both, size in boot] for boot in boots]
    written, quiet, change = (
        _estimate([_mean(one[part] for one in boot) for boot in decays]) for part in range(3)
    )
    took = _estimate([_mean(both.on.took.seconds for both, _size in boot) for boot in boots])
    costs = (*_of_arms(figures), *_of_arms(seconds))
    return ApplicationCost(workload, unit, len(boots), *costs, written, quiet, change, took)


def _decay(on: Performed, page_mib: float) -> tuple[float | None, float | None, float | None]:
    """Merged pages written to beyond the quiet and in the quiet, MiB/s, and growth of the saving, MiB."""
    decay = on.decay
    if decay is None:
        return None, None, None
    change = (decay.saved_pages_after - decay.saved_pages_before) * page_mib
    if decay.cow_ksm is None or decay.quiet_cow_ksm is None:
        return None, None, change
    quiet = decay.quiet_cow_ksm / decay.quiet_seconds * page_mib
    return decay.cow_ksm / on.took.seconds * page_mib - quiet, quiet, change


def _estimate(means: Sequence[float | None]) -> Estimate | None:
    """Over the boots; None where one of them does not tell."""
    known = [[mean] for mean in means if mean is not None]
    return estimate(known) if len(known) == len(means) else None


def _of_arms(
    boots: Sequence[Sequence[tuple[float | None, float | None]]],
) -> tuple[Estimate | None, Estimate | None, Difference | None]:
    """Off, on and the change in percent of values off and on of each boot's guests; None where unknown."""
    pairs = [tuple(_mean(values) for values in zip(*boot, strict=True)) for boot in boots]
    off, on = (_estimate(arm) for arm in zip(*pairs, strict=True))
    if off is None or on is None:
        return None, None, None
    changes = [100 * (b / a - 1) for a, b in pairs if a and b is not None]
    return off, on, paired(changes) if len(changes) == len(pairs) else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if None in known else fmean(value for value in known if value is not None)

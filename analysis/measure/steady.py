"""What policies keep, and what it takes, in the time that they are followed for once settled."""

from collections.abc import Mapping
from math import isnan, nan

from analysis.measure.burndown import gross_series, ksmd_percent
from analysis.plan.design import MIB
from analysis.records.loading import CellRecords

CPU_SETTLED = "settled_ksmd_percent"
STEADY_GROSS, STEADY_LEAST = "steady_gross_mib_per_vm", "steady_least_mib_per_vm"
SAVED_OF_BEST, CPU_OF_BEST = "steady_gross_percent", "steady_ksmd_of_best_percent"
# The registry of quantities says what each is.
STEADY = (STEADY_GROSS, STEADY_LEAST, CPU_SETTLED)
OF_BEST = (SAVED_OF_BEST, CPU_OF_BEST)


def steady(records: CellRecords) -> dict[str, float]:
    """What one cell says by STEADY; NaN where it was not followed.

    The mean is over time: between two samples the saving is a straight line. Raises RecordError for a series
    that cannot be used.
    """
    if records.after is None:
        return dict.fromkeys(STEADY, nan)
    samples = records.after.observed.samples
    unit = records.cell.guests * MIB
    saved = [value / unit for value in gross_series(samples, records.page_size_bytes)]
    times = samples.seconds
    took = times[-1] - times[0]
    area = sum((saved[at] + saved[at + 1]) / 2 * (times[at + 1] - times[at]) for at in range(len(times) - 1))
    return {
        STEADY_GROSS: area / took if took else nan,
        STEADY_LEAST: min(saved),
        CPU_SETTLED: ksmd_percent(samples),
    }


def of_best(mine: Mapping[str, float], best: Mapping[str, float] | None) -> dict[str, float]:
    """A cell's saving and ksmd's CPU in percent of those of the best policy of its boot, by OF_BEST.

    ``best``: by STEADY, None where that boot has none. NaN where one is not known, or the best has none.
    """
    parts = ((SAVED_OF_BEST, STEADY_GROSS), (CPU_OF_BEST, CPU_SETTLED))
    if best is None:
        return dict.fromkeys(OF_BEST, nan)
    return {
        name: 100 * mine[part] / best[part] if best[part] and not isnan(best[part]) else nan
        for name, part in parts
    }

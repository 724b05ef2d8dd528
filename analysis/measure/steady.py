"""What policies keep, and what it takes, in the series after the record under the policy (follow_seconds)."""

from bisect import bisect_right
from collections.abc import Iterable
from math import inf, nan

from analysis.measure.burndown import area, guests_gross_series, ksmd_percent
from analysis.plan.design import MIB
from analysis.records.loading import CellRecords

STEADY_GROSS, STEADY_LEAST = "steady_gross_mib_per_vm", "steady_least_mib_per_vm"
CPU_SETTLED, STEADY_COW = "settled_ksmd_percent", "steady_cow_ksm_per_second"
# The registry of quantities says what each is; of a place as far as each of its cells was followed.
STEADY = (STEADY_GROSS, STEADY_LEAST, CPU_SETTLED, STEADY_COW)
# In percent of what the policy with the greatest mean saving has, in the same boot
OF_BEST = {STEADY_GROSS: "steady_gross_of_best_percent", CPU_SETTLED: "settled_ksmd_of_best_percent"}


def followed_seconds(cells: Iterable[CellRecords]) -> list[float]:
    """For how many seconds each of the cells was followed that was, shortest first."""
    return sorted(one.after.observed.samples.seconds[-1] for one in cells if one.after is not None)


def steady(records: CellRecords, seconds: float = inf) -> dict[str, float]:
    """What one cell says by STEADY; NaN where it was not followed.

    The mean is over time: between two samples the saving is a straight line. Raises RecordError for a series
    that cannot be used.

    Args:
        records: the cell.
        seconds: of the series only so much, to half a sample, for what is beside others.
    """
    if records.after is None:
        return dict.fromkeys(STEADY, nan)
    samples = records.after.observed.samples
    count = bisect_right(samples.seconds, seconds + records.after.requested.sample_interval_seconds / 2)
    times = samples.seconds[:count]
    unit = records.cell.guests * MIB
    saved = [value / unit for value in guests_gross_series(records, samples)[:count]]
    took = times[-1] - times[0]
    first, last = (samples.cow_ksm[0], samples.cow_ksm[count - 1]) if samples.cow_ksm else (None, None)
    return {
        STEADY_GROSS: area(times, saved) / took if took else nan,
        STEADY_LEAST: min(saved),
        CPU_SETTLED: ksmd_percent(samples, count),
        STEADY_COW: nan if first is None or last is None or not took else (last - first) / took,
    }

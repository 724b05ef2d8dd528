"""What policies keep, and what it takes, in the series after the record under the policy (follow_seconds)."""

from math import nan

from analysis.measure.burndown import area, gross_series, ksmd_percent
from analysis.plan.design import MIB
from analysis.records.loading import CellRecords

CPU_SETTLED = "settled_ksmd_percent"
STEADY_GROSS, STEADY_LEAST = "steady_gross_mib_per_vm", "steady_least_mib_per_vm"
SAVED_OF_BEST = "steady_gross_percent"
# The registry of quantities says what each is.
STEADY = (STEADY_GROSS, STEADY_LEAST, CPU_SETTLED)


def steady(records: CellRecords) -> dict[str, float]:
    """What one cell says by STEADY, settled before or not; NaN where it was not followed.

    The mean is over time: between two samples the saving is a straight line. Raises RecordError for a series
    that cannot be used.
    """
    if records.after is None:
        return dict.fromkeys(STEADY, nan)
    samples = records.after.observed.samples
    unit = records.cell.guests * MIB
    saved = [value / unit for value in gross_series(samples, records.page_size_bytes)]
    took = samples.seconds[-1] - samples.seconds[0]
    return {
        STEADY_GROSS: area(samples.seconds, saved) / took if took else nan,
        STEADY_LEAST: min(saved),
        CPU_SETTLED: ksmd_percent(samples),
    }

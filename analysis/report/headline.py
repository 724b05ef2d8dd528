"""The answer of a report in some sentences: what was freed, how many more fit, what hosts would save."""

from collections.abc import Sequence

from analysis.measure.statistics import Summary
from analysis.plan.design import MIB
from analysis.records.models import ForecastRecord
from analysis.report.forecast import count
from analysis.report.summary import FREED, by_place, row_name
from analysis.report.survey import Survey, answer_words

# Of more, the least and the most are named.
_NAMED = 4


def headline(
    summaries: Sequence[Summary], forecasts: Sequence[ForecastRecord], surveys: Sequence[Survey]
) -> list[str]:
    """The sentences; ``summaries``: of one number of guests. Hosts have one each, the first of many alone."""
    places = by_place(summaries)
    lines = [_freed(where, mine) for where, mine in places[:_NAMED]]
    lines += [_fit(record) for record in forecasts]
    lines += [f"{seen.record.hypervisor}: {answer_words(seen)}" for seen in surveys[:_NAMED]]
    more = max(0, len(places) - _NAMED) + max(0, len(surveys) - _NAMED)
    if more:
        lines.append(f"{more} more below.")
    return lines


def _freed(where: str, summaries: Sequence[Summary]) -> str:
    known = [(one, seen) for one in summaries if (seen := one.estimates[FREED.name]) is not None]
    if not known:
        return f"{where}: nothing could be averaged; why is said below."
    shown = known
    several = ""
    if len(known) > _NAMED:
        by_mean = sorted(known, key=lambda one: one[1].mean)
        shown = [by_mean[0], by_mean[-1]]
        several = f", of {len(known)} workloads and policies the least and the most"
    freed = "; ".join(f"{FREED.words(seen)} of {row_name(one)}" for one, seen in shown)
    return f"{where}. KSM freed{several}: {freed}."


def _fit(record: ForecastRecord) -> str:
    fits = []
    for load in record.loads[:_NAMED]:
        limits = load.limits
        interval = (
            f" ({count(limits.on_low)} to {count(limits.on_high)})"
            if load.curve.on_low_bytes[0] is not None
            else ""
        )
        fits.append(f"{count(limits.on)}{interval} of {load.workload} where {count(limits.off)} fit without")
    more = len(record.loads) - len(fits)
    return (
        f"Forecast for {record.hypervisor} with {record.capacity_bytes / MIB:.0f} MiB and {record.policy}: "
        f"{'; '.join(fits)}{f'; {more} more loads below' if more else ''}."
    )

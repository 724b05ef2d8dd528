"""How the saving grew while KSM merged: saved(t), by scan, and convergence judged again on the samples."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

from analysis.records.loading import CellRecords
from analysis.records.models import Samples
from plugins.module_utils.ksm_convergence import ConvergenceRule, judge, saved_pages

PERCENTS = (50, 90, 99)
# What of the best policy's saving is waited for
PERCENT = 90


@dataclass(frozen=True)
class Burndown:
    """The merge of one cell.

    Attributes:
        seconds: time since run=1 was written, shape (n,).
        scans: complete scans since then, shape (n,).
        saved_bytes: gross saving at each sample, shape (n,).
        by_scan: for each scan, its number, the seconds when it was first seen complete, and the saving then.
        seconds_to: first time at which 50, 90, 99 % of the final saving was there; None without one.
        near_final_seconds: time from which the saving stays within 1 % of its final value.
        near_final_scans: complete scans at that time.
        settled_seconds: first sample at which the rule holds, judged again; None when it never does.
        reason: the rule's last word, one sentence without a full stop.
        recorded_settled: what the record says.
    """

    seconds: tuple[float, ...]
    scans: tuple[int, ...]
    saved_bytes: tuple[int, ...]
    by_scan: tuple[tuple[int, float, int], ...]
    seconds_to: dict[int, float | None]
    near_final_seconds: float
    near_final_scans: int
    settled_seconds: float | None
    reason: str
    recorded_settled: bool

    @property
    def final_bytes(self) -> int:
        """Gross saving at the last sample."""
        return self.saved_bytes[-1]

    @property
    def settled(self) -> bool:
        """Whether both the record and its samples say so."""
        return self.recorded_settled and self.settled_seconds is not None


def burndown(records: CellRecords) -> Burndown:
    """The burndown of a cell that has a merge record, in bytes and seconds."""
    merge, limits = records.merge.observed, records.merge.requested.convergence
    samples = merge.samples
    rule = ConvergenceRule(limits.min_full_scans, limits.window_scans, limits.threshold_percent)
    pages = _guests_pages(records, samples)
    settled_at, reason = first_settled(
        samples.full_scans,
        pages,
        rule,
        smart_scan=str(records.merge.provenance.ksm_knobs.get("smart_scan", 0)) == "1",
        guests_anon=samples.guests_anon_pages,
        volatile=_known(samples.pages_volatile),
    )
    seconds = samples.seconds
    scans = tuple(count - samples.full_scans[0] for count in samples.full_scans)
    saved = tuple(count * records.page_size_bytes for count in pages)
    near = near_final(saved)
    return Burndown(
        seconds=seconds,
        scans=scans,
        saved_bytes=saved,
        by_scan=by_scan(seconds, scans, saved),
        seconds_to={percent: seconds_to(seconds, saved, percent) for percent in PERCENTS},
        near_final_seconds=seconds[near],
        near_final_scans=scans[near],
        settled_seconds=None if settled_at is None else seconds[settled_at],
        reason=reason,
        recorded_settled=merge.converged,
    )


def first_settled(
    full_scans: Sequence[int],
    saved: Sequence[int],
    rule: ConvergenceRule,
    *,
    smart_scan: bool,
    guests_anon: Sequence[int] | None = None,
    volatile: Sequence[int] | None = None,
) -> tuple[int | None, str]:
    """Index of the first sample at which the rule holds, or None; the rule's reason there or at the end."""
    reason = ""
    # Before so many scans no sample can settle, which is asked of each with all before it.
    begin = bisect_left(full_scans, full_scans[0] + rule.min_full_scans)
    for end in range(min(begin + 1, len(saved)), len(saved) + 1):
        verdict = judge(
            full_scans[:end],
            saved[:end],
            rule,
            smart_scan=smart_scan,
            guests_anon=guests_anon and guests_anon[:end],
            volatile=volatile and volatile[:end],
        )
        reason = verdict.reason
        if verdict.settled:
            return end - 1, reason
    return None, reason


def seconds_to(seconds: Sequence[float], saved: Sequence[int], percent: float) -> float | None:
    """First time at which ``percent`` of the last value was there; None when that is not above 0."""
    return first_at(seconds, saved, saved[-1] * percent / 100)


def first_at(seconds: Sequence[float], saved: Sequence[int], goal: float) -> float | None:
    """First time at which the saving was ``goal``; None where it never was, or that is not above 0."""
    if goal <= 0:
        return None
    return next((second for second, value in zip(seconds, saved, strict=True) if value >= goal), None)


def lost_byte_seconds(seconds: Sequence[float], saved: Sequence[float], best: float, until: float) -> float:
    """The area between the best saving and this one from 0 to ``until``, in bytes x seconds.

    Between two samples the saving is taken as a straight line, before the first and after the last one as it
    is there.
    """
    return best * until - area([0.0, *seconds, until], [saved[0], *saved, saved[-1]])


def area(seconds: Sequence[float], values: Sequence[float]) -> float:
    """The integral of values over time, a straight line from each to the next."""
    return sum(
        (values[at] + values[at + 1]) / 2 * (seconds[at + 1] - seconds[at]) for at in range(len(seconds) - 1)
    )


def gross_series(samples: Samples, page_size_bytes: int) -> list[int]:
    """Gross saved bytes of each sample."""
    return [pages * page_size_bytes for pages in _gross_pages(samples)]


def guests_gross_series(records: CellRecords, samples: Samples) -> list[int]:
    """The same of a cell's guests: less what others had merged when its off record was taken."""
    return [pages * records.page_size_bytes for pages in _guests_pages(records, samples)]


def _guests_pages(records: CellRecords, samples: Samples) -> list[int]:
    before = records.off.observed.host.ksm.saved_pages
    return [pages - before for pages in _gross_pages(samples)]


def _gross_pages(samples: Samples) -> list[int]:
    return [
        saved_pages(sharing, zero)
        for sharing, zero in zip(samples.pages_sharing, samples.ksm_zero_pages, strict=True)
    ]


def _known(column: Sequence[int | None]) -> tuple[int, ...] | None:
    """A column of a counter; None where the kernel did not have it."""
    values = tuple(value for value in column if value is not None)
    return values if len(values) == len(column) else None


def ksmd_percent(samples: Samples, count: int | None = None) -> float:
    """ksmd's share of one CPU over a series, or its first ``count`` samples; NaN where it has no length."""
    seconds, spent = samples.seconds[:count], samples.ksmd_cpu_seconds[:count]
    took = seconds[-1] - seconds[0]
    return 100 * (spent[-1] - spent[0]) / took if took else nan


def near_final(saved: Sequence[int], percent: float = 1) -> int:
    """Index of the first sample from which all stay within ``percent`` of the last."""
    limit = abs(saved[-1]) * percent / 100
    outside = [index for index, value in enumerate(saved) if abs(value - saved[-1]) > limit]
    return outside[-1] + 1 if outside else 0


def by_scan(
    seconds: Sequence[float], scans: Sequence[int], saved: Sequence[int]
) -> tuple[tuple[int, float, int], ...]:
    """Scan, seconds and saving at the first sample that shows the scan complete."""
    return tuple(
        (scan, seconds[index], saved[index])
        for index, scan in enumerate(scans)
        if index == 0 or scan != scans[index - 1]
    )

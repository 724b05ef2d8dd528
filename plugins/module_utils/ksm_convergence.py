"""When has KSM settled? The one rule, used while sampling on the host and again when a record is judged.

Source: Documentation/admin-guide/mm/ksm.rst (full_scans, smart_scan): a page merges only after its checksum
was the same in two scans, and with smart_scan a page may be skipped for up to eight scans, so a few flat
scans prove nothing then. Where ksmd finds a page to merge in a huge page it splits that, and the kernel frees
the pages of it that are zero (mm/huge_memory.c, since 6.12), which no counter of KSM says and which may go on
when they keep still. So what the guests have is watched, too, and, since a guest that takes memory hides what
another one gives back, the volatile pages, among which such zeros are until their huge page is split.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

SMART_SCAN_MIN_FULL_SCANS = 10
# A MiB that guests give back or that is volatile no more is not KSM's work, however little there is to save;
# a huge page that it splits is two.
LEAST_FREED_PAGES = 256


@dataclass(frozen=True)
class ConvergenceRule:
    """How still the saving must be, and for how long.

    Attributes:
        min_full_scans: complete scans since the start below which nothing is called settled, at least 1.
        window_scans: the last complete scans over which the saving is watched, at least 1.
        threshold_percent: largest spread (max - min) of the saving in the window, and by how much the guests'
            anonymous memory may have fallen in it, in percent of the saving now.

    Raises:
        ValueError: a value out of range, named in the message.
    """

    min_full_scans: int = 3
    window_scans: int = 2
    threshold_percent: float = 0.5

    def __post_init__(self) -> None:
        """Refuse values with which the rule would always or never hold."""
        if self.min_full_scans < 1:
            raise ValueError(f"min_full_scans is {self.min_full_scans}; it must be 1 or more")
        if self.window_scans < 1:
            raise ValueError(f"window_scans is {self.window_scans}; it must be 1 or more")
        if not 0 <= self.threshold_percent <= 100:
            raise ValueError(f"threshold_percent is {self.threshold_percent}; it must be from 0 to 100")


class Verdict(NamedTuple):
    """Whether the saving has settled at the last sample, and why (one sentence without a full stop)."""

    settled: bool
    reason: str


def saved_pages(pages_sharing: int, ksm_zero_pages: int | None) -> int:
    """Pages saved in gross: extra mappings of merged pages, and pages mapped to the kernel's zero page."""
    return pages_sharing + (ksm_zero_pages or 0)


def judge(
    full_scans: Sequence[int],
    saved: Sequence[int],
    rule: ConvergenceRule,
    *,
    smart_scan: bool,
    guests_anon: Sequence[int] | None = None,
    volatile: Sequence[int] | None = None,
) -> Verdict:
    """Judge the last sample of a series.

    Args:
        full_scans: the kernel's counter at each sample, shape (n,), n >= 1; never falls.
        saved: saved pages (see :func:`saved_pages`) at each sample, shape (n,).
        rule: the limits.
        smart_scan: whether the kernel's smart_scan was on.
        guests_anon: anonymous pages of the guests' processes, merged ones included, at each sample, shape
            (n,); None in series that do not have them. That they grow is no work of KSM and delays nothing; a
            fall of less than a MiB is none.
        volatile: the kernel's pages_volatile at each sample, shape (n,); None on kernels without it. Where
            they are more than the saved pages they must not have fallen by more than a MiB either from the
            window's begin to its end: a scan splits as little as one huge page, however much is saved. Not
            looked at with smart_scan, whose skipped pages are among them.

    Returns:
        The verdict. The window reaches back to the end of the scan that lies `window_scans` before the last
        complete one; where no sample fell on that scan, to the sample before, so it never covers too little.

    Raises:
        ValueError: the series differ in length or are empty, or full_scans falls.
    """
    optional = {"guests_anon": guests_anon, "volatile": volatile}
    given = {name: len(series) for name, series in optional.items() if series is not None}
    if {len(full_scans), *given.values()} != {len(saved)} or not full_scans:
        raise ValueError(
            f"{len(full_scans)} values of full_scans, {len(saved)} of saved pages"
            f"{''.join(f', {count} of {name}' for name, count in given.items())}; give 1 or more of each"
        )
    if len(full_scans) > 1 and full_scans[-1] < full_scans[-2]:
        raise ValueError(
            f"full_scans fell from {full_scans[-2]} to {full_scans[-1]}; the series has another start"
        )
    complete = full_scans[-1] - full_scans[0]
    needed = max(rule.min_full_scans, rule.window_scans, SMART_SCAN_MIN_FULL_SCANS if smart_scan else 0)
    if complete < needed:
        note = " that smart_scan asks for" if smart_scan and needed == SMART_SCAN_MIN_FULL_SCANS else ""
        return Verdict(False, f"only {complete} of the {needed} full scans{note} are complete")
    boundary = full_scans[-1] - rule.window_scans
    start = bisect_left(full_scans, boundary)
    if full_scans[start] > boundary:
        start -= 1
    window = saved[start:]
    spread = max(window) - min(window)
    base = max(saved[-1], 1)
    seen = (
        f"the saved pages moved by {100 * spread / base:.2f} % (limit {rule.threshold_percent:g} %) "
        f"over the last {rule.window_scans} of {complete} full scans"
    )
    limit = rule.threshold_percent / 100 * base
    if spread > limit:
        return Verdict(False, seen)
    if guests_anon is not None:
        freed = max(guests_anon[start:]) - guests_anon[-1]
        seen += f", and what the guests have fell by {100 * freed / base:.2f} % of them"
        if freed > max(limit, LEAST_FREED_PAGES):
            return Verdict(False, seen)
    if volatile is not None and not smart_scan and volatile[-1] > base:
        fall = volatile[start] - volatile[-1]
        seen += f", and the volatile pages, which are more, by {fall} pages"
        if fall > LEAST_FREED_PAGES:
            return Verdict(False, seen)
    return Verdict(True, seen)

"""Whether what is measured now saves less than a baseline did, by more than is tolerated."""

from dataclasses import dataclass
from math import copysign

from analysis.measure.comparing import Comparison, Contrast, Line

# What the guests gave back, and what KSM's counters say: other programs on the host move neither, and every
# kernel tells both.
SAVINGS = ("freed_mib_per_vm", "gross_mib_per_vm")

WORSE, NO_WORSE, UNTOLD = "worse", "no worse", "cannot be told"


@dataclass(frozen=True)
class CheckedSaving:
    """One saving of one line, the baseline's as A: ``name`` of SAVINGS, ``verdict`` as :func:`judged`.

    ``shown_at_percent``: the least whole tolerance with which it would be no worse; None where it is no worse
    already, is worse, or no tolerance would do.
    """

    line: Line
    name: str
    verdict: str
    shown_at_percent: int | None


@dataclass(frozen=True)
class Check:
    """Every saving of the baseline that was measured now, too.

    ``verdict``: WORSE where a saving is; NO_WORSE where each saving of the baseline was measured again and is
    shown to be no worse; else UNTOLD.
    """

    comparison: Comparison
    tolerance_percent: float
    savings: tuple[CheckedSaving, ...]

    @property
    def verdict(self) -> str:
        """The worst that was found."""
        found = {one.verdict for one in self.savings}
        if WORSE in found:
            return WORSE
        return NO_WORSE if found == {NO_WORSE} and not self.comparison.only_a else UNTOLD


def check(comparison: Comparison, tolerance_percent: float) -> Check:
    """Judge every saving; A is the baseline."""
    return Check(
        comparison,
        tolerance_percent,
        tuple(_saving(line, name, tolerance_percent) for line in comparison.lines for name in SAVINGS),
    )


def judged(contrast: Contrast | None, tolerance_percent: float) -> str:
    """WORSE or NO_WORSE where the interval lies wholly on that side of what is tolerated, else UNTOLD.

    The interval is that of B less what A leaves after the tolerance, so that A's own scatter is in both.
    """
    if contrast is None or not contrast.conclusive:
        return UNTOLD
    over = contrast.beyond(1 - copysign(tolerance_percent / 100, contrast.a.mean))
    if over.half_width is None:
        return UNTOLD
    if over.mean + over.half_width < 0:
        return WORSE
    return NO_WORSE if over.mean - over.half_width >= 0 else UNTOLD


def _saving(line: Line, name: str, tolerance_percent: float) -> CheckedSaving:
    contrast = line.contrasts[name]
    verdict = judged(contrast, tolerance_percent)
    wider = range(int(tolerance_percent) + 1, 100) if verdict == UNTOLD else ()
    shown_at = next((percent for percent in wider if judged(contrast, percent) == NO_WORSE), None)
    return CheckedSaving(line, name, verdict, shown_at)

"""What a survey's census tells: the ideal saving of a host as it is, with the interval of a sample.

A sample has one in m of all contents, drawn by a secret hash, each with all of its copies (Bernoulli sampling
of clusters; Särndal, Swensson and Wretman, Model Assisted Survey Sampling, 1992). How many pages there are is
known whatever was drawn, so totals are regression estimates: a sample in which contents with many copies are
too frequent has too many pages by the same chance, and is corrected for it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2, norm  # type: ignore[import-untyped]

from analysis.records.survey import Stratum, SurveyCensus, SurveyRecord

CONFIDENCE = 0.95
# The kernel's own where its knob is not there to be read
_MAX_PAGE_SHARING = 256
# Kernels that have it map the zero pages of a huge page that is split to the kernel's own (mm/huge_memory.c;
# Documentation/admin-guide/mm/transhuge.rst).
_FREES_ZEROS = "shrink_underused"
_Z = float(norm.ppf((1 + CONFIDENCE) / 2))

Numbers = npt.NDArray[np.float64]
# What a content of so many copies in so many machines adds to a total
Of = Callable[[Numbers, Numbers], Numbers]


@dataclass(frozen=True)
class Total:
    """Pages with half of their 95 % interval, 0 where all contents were counted."""

    pages: float
    half_width_pages: float

    @property
    def low_pages(self) -> float:
        """The lower end."""
        return self.pages - self.half_width_pages

    @property
    def high_pages(self) -> float:
        """The upper end."""
        return self.pages + self.half_width_pages

    def scaled(self, unit: float) -> "Total":
        """The same in another unit, of which a page has so many."""
        return Total(self.pages * unit, self.half_width_pages * abs(unit))


@dataclass(frozen=True)
class Saving:
    """Where resident pages go under a perfect KSM, as in analysis.measure.page_contents.IdealSaving.

    ``counted``: of the ideal what KSM's counters will show: zero pages of huge pages, which the kernel frees
    when KSM splits these, are in none.
    """

    zero: Total
    within: Total
    between: Total
    limited: Total
    ideal: Total
    counted: Total


@dataclass(frozen=True)
class SurveyedPages:
    """The census of a survey.

    ``max_page_sharing``: of the host; ``use_zero_pages``: whether KSM keeps no zero page of its own;
    ``frees_zeros``: whether a huge page that is split gives its zero pages back.
    """

    census: SurveyCensus
    max_page_sharing: int
    use_zero_pages: bool
    frees_zeros: bool = False

    @cached_property
    def resident_pages(self) -> int:
        """Of all machines, zero pages among them."""
        return sum(machine.resident_pages for machine in self.census.machines)

    @cached_property
    def zero_pages(self) -> int:
        """Zero pages of all machines, all of which were counted."""
        return sum(machine.zero_pages for machine in self.census.machines)

    @cached_property
    def zero_huge_pages(self) -> int:
        """Those of them that are parts of transparent huge pages."""
        return sum(machine.zero_huge_pages for machine in self.census.machines)

    def saving(self) -> Saving:
        """The ideal saving of the host as it is; one zero page is kept unless KSM uses the kernel's own."""
        kept_zeros = 1 if self.zero_pages and not self.use_zero_pages else 0
        further_zeros = float(self._further(np.array([self.zero_pages]))[0]) if kept_zeros else 0.0
        zero = Total(self.zero_pages - kept_zeros, 0.0)
        parts = self.total(lambda copies, held: copies - 1 - self._further(copies))
        limited = self.total(lambda copies, held: self._further(copies))
        ideal = Total(zero.pages - further_zeros + parts.pages, parts.half_width_pages)
        uncounted = self.zero_huge_pages if self.frees_zeros else 0
        return Saving(
            zero=zero,
            within=self.total(lambda copies, held: copies - held),
            between=self.total(lambda copies, held: held - 1),
            limited=Total(limited.pages + further_zeros, limited.half_width_pages),
            ideal=ideal,
            counted=Total(ideal.pages - uncounted, ideal.half_width_pages),
        )

    def total(self, of: Of) -> Total:
        """The sum of something over all contents but zero."""
        counted = [_table(stratum) for stratum in self.census.strata]
        # Of those that were counted in any case, exactly
        pages = self.resident_pages - self.zero_pages
        total, variance = 0.0, 0.0
        for stratum, (copies, held, number) in zip(self.census.strata, counted, strict=True):
            if stratum.one_in == 1:
                total += float(number @ of(copies, held))
                pages -= int(number @ copies)
        for stratum, (copies, held, number) in zip(self.census.strata, counted, strict=True):
            m = stratum.one_in
            if m == 1:
                continue
            values = of(copies, held)
            squares = float(number @ copies**2)
            slope = float(number @ (values * copies)) / squares if squares else 0.0
            rest = values - slope * copies
            total += m * float(number @ rest) + slope * pages
            variance += m * (m - 1) * float(number @ rest**2)
        return Total(total, _Z * math.sqrt(variance))

    def alone_pages(self) -> list[float]:
        """For each machine its contents that no other has, in the census' order."""
        return self._summed([stratum.alone_pages for stratum in self.census.strata])

    def distinct_pages(self) -> list[float]:
        """For each machine its different contents."""
        return [row[place] for place, row in enumerate(self.shared_pages())]

    def shared_pages(self) -> list[list[float]]:
        """Machine by machine the contents that both hold; the diagonal is what one holds."""
        return [
            self._summed([stratum.shared_contents[place] for stratum in self.census.strata])
            for place in range(len(self.census.machines))
        ]

    def moved(self) -> Total:
        """Pages that became others while all were read; a saving is right but for one page for each at most.

        The upper end is that of a Poisson mean (exact, chi-square); the lower is not asked for.
        """
        m, seen = self.census.look_one_in, self.census.changed_pages
        if self.census.paused:
            return Total(m * seen, 0.0)
        high = float(chi2.ppf(CONFIDENCE, 2 * (seen + 1))) / 2
        return Total(m * seen, m * (high - seen))

    def _further(self, copies: Numbers) -> Numbers:
        """Pages beyond the first that contents of so many copies need."""
        return np.ceil(copies / self.max_page_sharing) - 1

    def _summed(self, rows: list[tuple[int, ...]]) -> list[float]:
        weights = [stratum.one_in for stratum in self.census.strata]
        return [
            float(sum(weight * value for weight, value in zip(weights, values, strict=True)))
            for values in zip(*rows, strict=True)
        ]


def surveyed_pages(record: SurveyRecord) -> SurveyedPages | None:
    """What the census of a survey tells under the host's own settings; None without one."""
    census, host = record.observed.census, record.provenance
    if census is None:
        return None
    return SurveyedPages(
        census,
        max_page_sharing=int(host.ksm_knobs.get("max_page_sharing", _MAX_PAGE_SHARING)),
        use_zero_pages=host.ksm_knobs.get("use_zero_pages", 0) == 1,
        frees_zeros=_FREES_ZEROS in host.thp,
    )


def _table(stratum: Stratum) -> tuple[Numbers, Numbers, Numbers]:
    """Copies, machines that hold them, and the number of such contents; row by row."""
    table = stratum.contents
    copies, held, number = (
        np.array(column, dtype=float) for column in (table.copies, table.guests, table.contents)
    )
    return copies, held, number

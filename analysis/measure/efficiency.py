"""How near KSM came to a perfect KSM in the cells that have a page census, by treatment."""

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.measure.page_contents import Census, from_record
from analysis.measure.saving import Unknown, Value, saving
from analysis.measure.statistics import Summary, averaged, boot_mean
from analysis.plan.design import MIB
from analysis.records.loading import CellRecords, Run
from analysis.records.models import LargestContent
from analysis.records.reading import RecordError


@dataclass(frozen=True)
class CensusMeans:
    """Means over the boots of those cells of a treatment that have a census, in MB/VM (MiB).

    ``zero`` + ``within`` + ``between`` + ``limited`` = ``ideal``; ``limited`` is negative. ``saved``: of
    these very pages, by their frames; ``gross_then``: by KSM's counters at the same moment; ``gross`` and
    ``ksm_own``: of the cells' own on records. None where a cell does not tell; ``unknown`` says why the
    efficiency is not known, "" when it is. ``strangers``: in how many cells some content in many copies is
    neither zero nor the workload's, and the largest of these.
    """

    counted: int
    cells: int
    max_page_sharing: int
    unknown: str
    strangers: tuple[int, LargestContent] | None
    resident: float
    zero: float
    within: float
    between: float
    limited: float
    ideal: float
    saved: float | None
    gross: float | None
    gross_then: float | None
    ksm_own: float | None
    efficiency_percent: float | None

    def words(self) -> str:
        """The census in some sentences."""
        some = "" if self.counted == self.cells else f" ({self.counted} of {self.cells} cells)"
        sentence = (
            f"By the page census{some} a perfect KSM would save {self.ideal:.1f} of {self.resident:.1f} "
            f"MB/VM: {self.zero:.1f} in zero pages, {self.within:.1f} within a guest and "
            f"{self.between:.1f} between guests, less {-self.limited + 0.0:.1f} that max_page_sharing "
            f"{self.max_page_sharing} keeps."
        )
        if self.saved is None or self.efficiency_percent is None:
            sentence += f" How near KSM came is not known: {self.unknown}."
        else:
            own = "" if self.ksm_own is None else f", for which it took {self.ksm_own:.1f} itself"
            sentence += f" KSM had saved {self.saved:.1f} of it, {self.efficiency_percent:.1f} %{own}."
        if self.strangers:
            cells, largest = self.strangers
            sentence += (
                f" ! In {cells} of them a content that is neither zero nor filled by the workload stands in "
                f"{largest.copies} copies in {largest.guests} guests: an application's own, or left behind."
            )
        return sentence


def census_means(cells: Sequence[CellRecords]) -> tuple[CensusMeans | None, list[str]]:
    """The means, None where no cell has a census; and a sentence for each census that cannot be used."""
    problems: list[str] = []
    found: list[tuple[CellRecords, Census]] = []
    for records in cells:
        try:
            if (counted := cell_census(records)) is not None:
                found.append((records, counted))
        except RecordError as error:
            problems.append(str(error))
    if not found:
        return None, problems
    one = [_of_cell(records, counted) for records, counted in found]
    boots = [records.boot_key for records, _counted in found]
    means = {
        name: boot_mean([None if isinstance(v := parts[name], Unknown) else v for parts in one], boots)
        for name in one[0]
    }
    reasons = [parts["efficiency_percent"] for parts in one]
    strangers = [
        max(mine, key=lambda seen: seen.copies) for _r, census in found if (mine := census.strangers)
    ]
    return CensusMeans(
        counted=len(found),
        cells=len(cells),
        max_page_sharing=found[0][1].max_page_sharing,
        unknown=next((value.reason for value in reasons if isinstance(value, Unknown)), ""),
        strangers=(len(strangers), max(strangers, key=lambda seen: seen.copies)) if strangers else None,
        **means,  # type: ignore[arg-type]
    ), problems


def cell_census(records: CellRecords) -> Census | None:
    """The census of a cell, None where none was taken. Raises RecordError."""
    return None if records.census is None else from_record(records.census)


def censuses(summaries: Sequence[Summary], runs: Sequence[Run]) -> tuple[list[CensusMeans | None], list[str]]:
    """The means of each summary's averaged cells, and every problem."""
    found = [census_means(averaged(summary, runs)) for summary in summaries]
    return [means for means, _problems in found], [problem for _means, mine in found for problem in mine]


def _of_cell(records: CellRecords, counted: Census) -> dict[str, Value]:
    ideal, seen, guests = counted.saving(), saving(records), len(counted.guests)
    unit = counted.page_size_bytes / MIB / guests

    def mib(pages: int | Unknown) -> Value:
        return pages if isinstance(pages, Unknown) else pages * unit

    efficiency = counted.efficiency
    return {
        "resident": mib(counted.resident_pages),
        "zero": mib(ideal.zero_pages),
        "within": mib(ideal.within_pages),
        "between": mib(ideal.between_pages),
        "limited": mib(-ideal.limited_pages),
        "ideal": mib(ideal.ideal_pages),
        "saved": mib(counted.saved_pages),
        "gross": seen.per_vm_mib("gross"),
        "gross_then": mib(counted.gross_pages),
        "ksm_own": seen.per_vm_mib("ksm_own"),
        "efficiency_percent": efficiency if isinstance(efficiency, Unknown) else 100 * efficiency,
    }

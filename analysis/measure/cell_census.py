"""The page censuses of measured cells: what a perfect KSM would save, and how near KSM came, by treatment."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from analysis.measure.census import FILE, Census, CensusError, read_census
from analysis.measure.statistics import Summary, averaged, boot_mean
from analysis.measure.table import gross_bytes
from analysis.plan.design import MIB
from analysis.records.loading import CellRecords, Run

# Heading and attribute of CensusMeans, in the order of the arithmetic
ROWS = (
    ("zero pages that can go", "zero"),
    ("duplicates within a guest (I)", "within"),
    ("duplicates between guests (D)", "between"),
    ("kept by max_page_sharing", "limited"),
    ("ideal saving", "ideal"),
    ("KSM's efficiency: gross then / ideal, %", "efficiency_percent"),
)
# An efficiency so far above 1 is explained.
_NOTICEABLE = 0.01


@dataclass(frozen=True)
class CensusMeans:
    """Means over the boots of those cells of a treatment that have a census, in MB/VM (MiB).

    ``zero`` + ``within`` + ``between`` + ``limited`` = ``ideal``; ``limited`` is negative. ``gross``: of the
    cells' own on records; ``gross_then``: at the moment of the census, of which ``efficiency_percent`` is.
    None where the kernel does not tell.
    """

    counted: int
    cells: int
    max_page_sharing: int
    resident: float
    zero: float
    within: float
    between: float
    limited: float
    ideal: float
    gross: float | None
    gross_then: float | None
    efficiency_percent: float | None

    def words(self) -> str:
        """The census in a sentence or two."""
        some = "" if self.counted == self.cells else f" ({self.counted} of {self.cells} cells)"
        sentence = (
            f"By the page census{some} a perfect KSM would save {self.ideal:.1f} of {self.resident:.1f} "
            f"MB/VM: {self.zero:.1f} in zero pages, {self.within:.1f} within a guest and "
            f"{self.between:.1f} between guests, less {-self.limited + 0.0:.1f} that max_page_sharing "
            f"{self.max_page_sharing} keeps."
        )
        if self.gross_then is None or self.efficiency_percent is None:
            return f"{sentence} How near KSM came is not known."
        percent = self.efficiency_percent
        sentence += f" KSM's counters had {self.gross_then:.1f} at that moment, {percent:.1f} %"
        if percent > 100 * (1 + _NOTICEABLE):
            sentence += ": what a guest has written to since stays counted until ksmd comes by again"
        return f"{sentence}."


def census_means(cells: Sequence[CellRecords]) -> tuple[CensusMeans | None, list[str]]:
    """The means, None where no cell has a census; and a sentence for each census that cannot be used."""
    problems: list[str] = []
    found: list[tuple[CellRecords, Census]] = []
    for records in cells:
        try:
            if (counted := cell_census(records)) is not None:
                found.append((records, counted))
        except CensusError as error:
            problems.append(str(error))
    if not found:
        return None, problems
    one = [_of_cell(records, counted) for records, counted in found]
    boots = [records.boot_key for records, _counted in found]
    means = {name: boot_mean([parts[name] for parts in one], boots) for name in one[0]}
    sharing = found[0][1].max_page_sharing
    return CensusMeans(len(found), len(cells), sharing, **means), problems  # type: ignore[arg-type]


def cell_census(records: CellRecords) -> Census | None:
    """The census of a complete cell, None where none was taken. Raises CensusError."""
    path = records.directory / FILE
    if not path.exists():
        return None
    counted, record = read_census(path)
    if record["cell"] != asdict(records.cell) or record["run_id"] != records.records["on"]["run_id"]:
        raise CensusError(f"{path} is the census of another cell or run.")
    return counted


def censuses(summaries: Sequence[Summary], runs: Sequence[Run]) -> tuple[list[CensusMeans | None], list[str]]:
    """The means of each summary's averaged cells, and every problem."""
    found = [census_means(averaged(summary, runs)) for summary in summaries]
    return [means for means, _problems in found], [problem for _means, mine in found for problem in mine]


def _of_cell(records: CellRecords, counted: Census) -> dict[str, float | None]:
    saving, guests = counted.saving(), len(counted.guests)
    unit = counted.page_size_bytes / MIB / guests
    gross = gross_bytes(records.observed("on"), records.provenance["ksm_knobs"], records.page_size_bytes)
    ideal = saving.ideal_pages * unit
    then = None if counted.saved_pages is None else counted.saved_pages * unit
    measured = None if gross is None else gross / MIB / guests
    return {
        "resident": counted.resident_pages * unit,
        "zero": saving.zero_pages * unit,
        "within": saving.within_pages * unit,
        "between": saving.between_pages * unit,
        "limited": -saving.limited_pages * unit,
        "ideal": ideal,
        "gross": measured,
        "gross_then": then,
        "efficiency_percent": None if then is None or not ideal else 100 * then / ideal,
    }

"""What the settled saving became: the series after the on record beside the end of the merge."""

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.measure.burndown import guests_gross_series
from analysis.records.loading import CellRecords

HELD_PERCENT = 1.0


@dataclass(frozen=True)
class Followed:
    """How the gross saving of a cell went on for ``seconds`` after it was taken as settled, in bytes.

    ``settled_bytes``: at the end of the merge. ``final_bytes``, ``least_bytes``, ``most_bytes``: of the
    series after the on record.
    """

    seconds: float
    settled_bytes: int
    final_bytes: int
    least_bytes: int
    most_bytes: int

    @property
    def final_percent(self) -> float:
        """By how much the last saving differs from the settled one, in percent of the last."""
        return _percent(self.final_bytes - self.settled_bytes, self.final_bytes)

    @property
    def apart_percent(self) -> float:
        """The largest such difference at any time, without its sign."""
        return max(
            abs(_percent(value - self.settled_bytes, value)) for value in (self.least_bytes, self.most_bytes)
        )

    @property
    def held(self) -> bool:
        """Whether the settled saving is within HELD_PERCENT of what it was at any time after."""
        return self.apart_percent <= HELD_PERCENT


def followed(records: CellRecords) -> Followed | None:
    """How a cell's saving went on, None where it was not followed. Raises RecordError for a bad record."""
    if records.after is None:
        return None
    merge, after = (
        guests_gross_series(records, record.observed.samples) for record in (records.merge, records.after)
    )
    return Followed(
        seconds=records.after.observed.duration_seconds,
        settled_bytes=merge[-1],
        final_bytes=after[-1],
        least_bytes=min(after),
        most_bytes=max(after),
    )


def follow_words(cells: Sequence[CellRecords]) -> str:
    """Whether the settled saving held in those of the cells that were followed; "" where none was."""
    found = [one for records in cells if (one := followed(records)) is not None]
    if not found:
        return ""
    moved = [one for one in found if not one.held]
    worst = max(found, key=lambda one: one.apart_percent)
    cells_followed = "1 cell" if len(found) == 1 else f"{len(found)} cells"
    sentence = (
        f"Followed for {min(one.seconds for one in found):.0f} s after that ({cells_followed}), the gross "
        f"saving ended {worst.final_percent:+.2f} % from what was taken as settled and was at most "
        f"{worst.apart_percent:.2f} % away from it"
    )
    if moved:
        return f"! {sentence}: more than {HELD_PERCENT:g} % in {len(moved)} of them."
    return f"{sentence}."


def _percent(difference: int, of: int) -> float:
    return 100 * difference / of if of else (0.0 if difference == 0 else float("inf"))

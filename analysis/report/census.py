"""One page census: what could merge, what did, contents by their copies, more guests, and pairs of guests."""

import math
from collections.abc import Sequence
from typing import Any

from analysis.measure.page_contents import Census, from_record
from analysis.measure.saving import Unknown, Value
from analysis.plan.design import MIB
from analysis.records.models import CensusRecord
from analysis.report.quantities import CENSUS, QUANTITIES
from analysis.report.summary import census_part
from analysis.report.tables import Grid, Part, heading, notes, table

_MATRIX_GUESTS = 15
_COPIES = ((1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 64), (65, 256), (257, None))
_MORE = (1.5, 2)


def census_parts(record: CensusRecord) -> list[Part]:
    """A census as text."""
    counted = from_record(record)
    return [
        heading(_title(counted, record)),
        _circumstances(counted, record),
        _ledger(counted),
        notes(_judged(counted)),
        _by_copies(counted),
        _held(counted),
        _more_guests(counted),
        f"Up to {len(counted.guests)} guests the mean over all choices of them; beyond, the bounds for more "
        "guests of the same kind: from a closed pool of contents (Chao2) to no new sharing at all.",
        *_pairs(counted),
    ]


def census_content(record: CensusRecord) -> dict[str, Any]:
    """A census for JSON: of what, the quantities of the registry (null: not known), and the reasons."""
    counted = from_record(record)
    values = quantities(counted)
    return {
        "run_id": record.run_id,
        "cell": record.cell.cell_id if record.cell else None,
        "recorded_at": record.recorded_at,
        "guests": len(counted.guests),
        "values": {name: None if isinstance(value, Unknown) else value for name, value in values.items()},
        "unknown": {name: value.reason for name, value in values.items() if isinstance(value, Unknown)},
        "strangers": [one.to_json() for one in counted.strangers],
    }


def quantities(counted: Census) -> dict[str, Value]:
    """The census by the names of the registry, MB/VM."""
    ideal, efficiency = counted.saving(), counted.efficiency
    pages: dict[str, int | Unknown] = {
        "zero": ideal.zero_pages,
        "within": ideal.within_pages,
        "between": ideal.between_pages,
        "limited": -ideal.limited_pages,
        "ideal": ideal.ideal_pages,
        "saved": counted.saved_pages,
        "gross_then": counted.gross_pages,
    }
    unit = counted.page_size_bytes / MIB / len(counted.guests)
    values: dict[str, Value] = {
        name: value if isinstance(value, Unknown) else value * unit for name, value in pages.items()
    }
    values["efficiency_percent"] = efficiency if isinstance(efficiency, Unknown) else 100 * efficiency
    return {name: values[census_part(QUANTITIES[name])] for name in CENSUS}


def _title(counted: Census, record: CensusRecord) -> str:
    cell = f", {record.cell.cell_id}" if record.cell else ""
    return f"Census of {len(counted.guests)} guests, run {record.run_id}{cell}, {record.recorded_at}"


def _circumstances(counted: Census, record: CensusRecord) -> str:
    observed, found = record.observed, record.provenance
    gigabytes = observed.bytes_read / 1e9
    speed = gigabytes / observed.read_seconds if observed.read_seconds else 0.0
    paused = [name for name, seen in observed.guests.items() if seen.was_paused]
    return (
        f"Kernel {found.kernel_release}, KSM run {observed.ksm['run']}, max_page_sharing "
        f"{counted.max_page_sharing}, use_zero_pages {int(counted.use_zero_pages)}; {gigabytes:.2f} GB read "
        f"in {observed.read_seconds:.2f} s ({speed:.1f} GB/s, {observed.processes} processes), guests paused "
        f"for {observed.pause_seconds:.2f} s."
        + (f" Paused before, and left so: {', '.join(paused)}." if paused else "")
    )


def _ledger(counted: Census) -> Grid:
    ideal = counted.saving()
    rows = [
        _row(counted, "resident", counted.resident_pages),
        _row(counted, "  one page for each content", ideal.kept_pages),
        _row(counted, f"  {QUANTITIES['zero_mib_per_vm'].label} that can go", ideal.zero_pages),
        _row(counted, f"  {QUANTITIES['within_mib_per_vm'].label}", ideal.within_pages),
        _row(counted, f"  {QUANTITIES['between_mib_per_vm'].label}", ideal.between_pages),
        _row(counted, f"  of these stay, max_page_sharing {counted.max_page_sharing}", ideal.limited_pages),
        _row(counted, QUANTITIES["ideal_mib_per_vm"].label, ideal.ideal_pages),
        _row(counted, "saved by KSM, by the pages' frames", counted.saved_pages),
        _row(counted, "saved, by KSM's counters at that moment", counted.gross_pages),
    ]
    return table(("", "pages", "MiB", QUANTITIES["ideal_mib_per_vm"].unit, "share"), rows)


def _row(counted: Census, label: str, pages: int | Unknown) -> tuple[str, ...]:
    if isinstance(pages, Unknown):
        return (label, "-", "-", "-", "-")
    mib = pages * counted.page_size_bytes / MIB
    share = pages / counted.resident_pages if counted.resident_pages else 0.0
    return (label, str(pages), f"{mib:.1f}", f"{mib / len(counted.guests):.1f}", f"{share:.1%}")


def _judged(counted: Census) -> list[str]:
    quantity, efficiency = QUANTITIES["efficiency_percent"], counted.efficiency
    lines = [
        f"! KSM's efficiency is not known: {efficiency.reason}."
        if isinstance(efficiency, Unknown)
        else f"KSM's efficiency: {quantity.number(100 * efficiency)} % of the ideal saving."
    ]
    return lines + [
        f"! A content neither zero nor filled by the workload has {one.copies} copies in {one.guests} "
        "guests: an application's own, or left behind."
        for one in counted.strangers
    ]


def _by_copies(counted: Census) -> Grid:
    heads, contents, pages = ["copies of a content"], ["contents"], ["pages"]
    for low, high in _COPIES:
        mine = [kind for kind in counted.contents if low <= kind.copies <= (high or kind.copies)]
        heads.append(f">{low - 1}" if high is None else str(low) if low == high else f"{low}-{high}")
        contents.append(str(sum(kind.contents for kind in mine)))
        pages.append(str(sum(kind.contents * kind.copies for kind in mine)))
    return table(heads, [contents, pages])


def _held(counted: Census) -> str:
    held = [
        sum(kind.contents for kind in counted.contents if kind.guests == number)
        for number in range(1, len(counted.guests) + 1)
    ]
    shown = ", ".join(f"{number}: {contents}" for number, contents in enumerate(held, 1) if contents)
    return f"Contents held by exactly so many guests: {shown or 'none'}."


def _more_guests(counted: Census) -> Grid:
    n, mib = len(counted.guests), counted.page_size_bytes / MIB
    numbers = sorted({1, min(2, n), (n + 1) // 2, n} | {math.ceil(n * factor) for factor in _MORE})
    kept = [f"{counted.kept(guests) * mib:.0f}" for guests in numbers]
    return table(("guests", *map(str, numbers)), [("kept by an ideal KSM, MiB", *kept)])


def _pairs(counted: Census) -> list[Part]:
    names = [guest.name for guest in counted.guests]
    matrix, mib = counted.shared_contents, counted.page_size_bytes / MIB
    pairs = [
        (matrix[i][j] * mib, names[i], names[j]) for i in range(len(names)) for j in range(i + 1, len(names))
    ]
    if not pairs:
        return ["One guest: it shares with no other."]
    least, most = min(pairs), max(pairs)
    sentence = (
        f"Contents that two guests both hold: {least[0]:.1f} MiB ({least[1]}, {least[2]}) to {most[0]:.1f} "
        f"MiB ({most[1]}, {most[2]})."
    )
    if len(names) > _MATRIX_GUESTS:
        return [sentence]
    rows = [
        (name, *(f"{pages * mib:.0f}" for pages in row[: place + 1]), *[""] * (len(names) - place - 1))
        for place, (name, row) in enumerate(zip(names, matrix, strict=True))
    ]
    return [sentence, table(("MiB", *_distinguishing(names)), rows)]


def _distinguishing(names: Sequence[str]) -> list[str]:
    """The ends of names by which they differ: guest07 is 07 beside guest08."""
    shortest = next(n for n in range(1, 64) if len({name[-n:] for name in names}) == len(names))
    return [name[-max(2, shortest) :] for name in names]

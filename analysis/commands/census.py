"""`python -m analysis census`: count the pages of the running guests, or show a census; one screen."""

import math
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from analysis.commands.run import Campaign, Progress, play
from analysis.measure.page_contents import Census, from_record
from analysis.measure.saving import Unknown
from analysis.plan.design import MIB, PROJECT, new_run_id
from analysis.records.models import CensusRecord
from analysis.records.reading import RecordError, read_record
from analysis.report.summary import WIDTH, wrap

PLAYBOOK = Path("playbooks/census.yml")

_LABEL, _NUMBER = 44, 12
_LABEL_OF_COLUMNS = 28
_MATRIX_GUESTS = 15
_COPIES = ((1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 64), (65, 256), (257, None))
_MORE = (1.5, 2)


def census(arguments: Namespace) -> int:
    """Take a census, unless a file is given, and print it; the playbook's exit code when it failed."""
    if arguments.file:
        print(census_text(read_record(arguments.file, CensusRecord)), end="")
        return 0
    results = arguments.results.absolute()
    run_id = new_run_id()
    campaign = Campaign(PROJECT, results, None, {"results_directory": str(results)}, run_id)
    code = play(campaign, PLAYBOOK, Progress(sys.stdout))
    if code:
        return code
    paths = sorted((results / run_id).glob("*/census.json"))
    if not paths:
        raise RecordError("the inventory has no host in its group hypervisors, so nothing was counted.")
    for path in paths:
        print(f"\n{path}\n{census_text(read_record(path, CensusRecord))}", end="")
    return 0


def census_text(record: CensusRecord) -> str:
    """A census as text of at most 110 columns."""
    counted = from_record(record)
    parts = [
        _heading(counted, record),
        _ledger(counted),
        _contents(counted),
        _rarefaction(counted),
        _matrix(counted),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts) + "\n"


def _heading(counted: Census, record: CensusRecord) -> list[str]:
    observed, found = record.observed, record.provenance
    cell = f", {record.cell.cell_id}" if record.cell else ""
    gigabytes = observed.bytes_read / 1e9
    speed = gigabytes / observed.read_seconds if observed.read_seconds else 0.0
    paused = [name for name, seen in observed.guests.items() if seen.was_paused]
    lines = [
        f"Census of {len(counted.guests)} guests, run {record.run_id}{cell}, {record.recorded_at}",
        wrap(
            f"Kernel {found.kernel_release}, KSM run {observed.ksm['run']}, max_page_sharing "
            f"{counted.max_page_sharing}, use_zero_pages {int(counted.use_zero_pages)}; {gigabytes:.2f} GB "
            f"read in {observed.read_seconds:.2f} s ({speed:.1f} GB/s, "
            f"{observed.processes} processes), guests paused for {observed.pause_seconds:.2f} s"
        ),
    ]
    if paused:
        lines.append(wrap(f"Paused before, and left so: {', '.join(paused)}"))
    return lines


def _ledger(counted: Census) -> list[str]:
    saving = counted.saving()
    lines = [
        f"{'':{_LABEL}}{'pages':>{_NUMBER}}{'MiB':>{_NUMBER}}{'MiB/VM':>{_NUMBER}}{'share':>{_NUMBER}}",
        _row(counted, "resident", counted.resident_pages),
        _row(counted, "  one page for each content", saving.kept_pages),
        _row(counted, "  zero pages that can go", saving.zero_pages),
        _row(counted, "  duplicates within a guest (I)", saving.within_pages),
        _row(counted, "  duplicates between guests (D)", saving.between_pages),
        _row(counted, f"  of these stay, max_page_sharing {counted.max_page_sharing}", saving.limited_pages),
        _row(counted, "ideal saving", saving.ideal_pages),
    ]
    gross, saved, efficiency = counted.gross_pages, counted.saved_pages, counted.efficiency
    if not isinstance(gross, Unknown):
        lines.append(_row(counted, "saved, by KSM's counters at that moment", gross))
    if not isinstance(saved, Unknown):
        lines.append(_row(counted, "saved by KSM, by the pages' frames", saved))
    if isinstance(efficiency, Unknown):
        lines.append(f"KSM's efficiency is unknown: {efficiency.reason}.")
    else:
        lines.append(f"{'efficiency: saved / ideal':{_LABEL}}{efficiency:>{_NUMBER}.1%}")
    lines += [
        wrap(f"! A content neither zero nor the workload's has {one.copies} copies in {one.guests} guests.")
        for one in counted.strangers
    ]
    return lines


def _row(counted: Census, label: str, pages: int) -> str:
    mib = pages * counted.page_size_bytes / MIB
    share = pages / counted.resident_pages if counted.resident_pages else 0.0
    return (
        f"{label:{_LABEL}}{pages:>{_NUMBER}}{mib:>{_NUMBER}.1f}{mib / len(counted.guests):>{_NUMBER}.1f}"
        f"{share:>{_NUMBER}.1%}"
    )


def _contents(counted: Census) -> list[str]:
    by_copies = []
    for low, high in _COPIES:
        mine = [kind for kind in counted.contents if low <= kind.copies <= (high or kind.copies)]
        name = f">{low - 1}" if high is None else str(low) if low == high else f"{low}-{high}"
        by_copies.append(
            (name, sum(kind.contents for kind in mine), sum(k.contents * k.copies for k in mine))
        )
    held = [
        sum(kind.contents for kind in counted.contents if kind.guests == number)
        for number in range(1, len(counted.guests) + 1)
    ]
    return [
        _columns("copies of a content", [name for name, _, _ in by_copies]),
        _columns("  contents", [str(contents) for _, contents, _ in by_copies]),
        _columns("  pages", [str(pages) for _, _, pages in by_copies]),
        wrap(
            "contents held by exactly so many guests: "
            + ", ".join(f"{number}: {contents}" for number, contents in enumerate(held, 1) if contents)
        ),
    ]


def _rarefaction(counted: Census) -> list[str]:
    n = len(counted.guests)
    exact = sorted({1, min(2, n), (n + 1) // 2, n})
    further = sorted({math.ceil(n * factor) for factor in _MORE})
    bounds = [counted.kept(guests) for guests in (*exact, *further)]
    mib = counted.page_size_bytes / MIB
    shown = [
        f"{bound.low * mib:.0f}"
        if bound.low == bound.high
        else f"{bound.low * mib:.0f}-{bound.high * mib:.0f}"
        for bound in bounds
    ]
    return [
        _columns("guests", [str(guests) for guests in (*exact, *further)]),
        _columns("  kept by an ideal KSM, MiB", shown),
        wrap(
            f"Up to {n} guests the mean over all choices of them; beyond, the bounds for more guests of "
            "the same kind: from a closed pool of contents (Chao2) to no new sharing at all."
        ),
    ]


def _matrix(counted: Census) -> list[str]:
    names = [guest.name for guest in counted.guests]
    matrix = counted.shared_contents
    mib = counted.page_size_bytes / MIB
    pairs = [
        (matrix[i][j] * mib, names[i], names[j]) for i in range(len(names)) for j in range(i + 1, len(names))
    ]
    if not pairs:
        return ["One guest: it shares with no other."]
    least, most = min(pairs), max(pairs)
    lines = [
        wrap(
            f"Contents that two guests both hold: {least[0]:.1f} MiB ({least[1]}, {least[2]}) to "
            f"{most[0]:.1f} MiB ({most[1]}, {most[2]})"
        )
    ]
    if len(names) > _MATRIX_GUESTS:
        return lines
    tail = _distinguishing(names)
    lines.append(f"{'  MiB':10}" + "".join(f"{name:>6}" for name in tail))
    lines += [
        f"  {name[-8:]:8}" + "".join(f"{pages * mib:>6.0f}" for pages in row[: place + 1])
        for place, (name, row) in enumerate(zip(names, matrix, strict=True))
    ]
    return lines


def _distinguishing(names: Sequence[str]) -> list[str]:
    """Names of at most five characters: guest07 is 07 beside guest08."""
    shortest = next(n for n in range(1, 64) if len({name[-n:] for name in names}) == len(names))
    return [name[-max(2, shortest) :][-5:] for name in names]


def _columns(label: str, cells: Sequence[str]) -> str:
    width = min(13, (WIDTH - _LABEL_OF_COLUMNS) // len(cells))
    return f"{label:{_LABEL_OF_COLUMNS}}" + "".join(f"{cell:>{width}}" for cell in cells)

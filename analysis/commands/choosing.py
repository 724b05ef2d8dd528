"""Which runs a command speaks of: the newest, named ones, all, or two sides; of one host where asked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from analysis.measure.comparing import compare
from analysis.measure.pooling import Chosen, largest_set
from analysis.measure.statistics import summarise
from analysis.measure.table import tidy
from analysis.plan.design import Cell
from analysis.records.loading import Run, find_run, find_runs, load_runs
from analysis.records.reading import RecordError
from analysis.report.comparison import Compared, Side
from analysis.report.summary import Answer


@dataclass(frozen=True)
class Runs:
    """The runs that a command speaks of.

    ``others``: ids of those that were not asked for; ``problems``: a sentence for each that was left out.
    """

    runs: tuple[Run, ...]
    others: tuple[str, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Given:
    """One side of a comparison: what it is called, what the user gave for it, and its runs."""

    name: str
    given: str
    runs: Runs


def chosen_runs(
    results: Path,
    run_ids: Sequence[str] | None,
    *,
    everything: bool = False,
    hypervisor: str | None = None,
    guests: int | None = None,
) -> Runs:
    """The runs asked for; without ids the newest, or everything; with a number of guests its cells alone.

    Raises RecordError where there is none, a run does not exist, none can be read, or none of them has the
    hypervisor or the number of guests.
    """
    found = find_runs(results)
    if run_ids:
        chosen = tuple(find_run(results, run_id) for run_id in dict.fromkeys(run_ids))
    else:
        chosen = found.directories if everything else found.directories[-1:]
    loaded = load_runs(chosen)
    if not loaded.runs:
        raise RecordError(" ".join(loaded.problems))
    runs = loaded.runs if hypervisor is None else of_hypervisor(loaded.runs, hypervisor)
    runs = runs if guests is None else of_guests(runs, guests)
    others = tuple(directory.name for directory in found.directories if directory not in chosen)
    return Runs(runs, others, (*found.problems, *loaded.problems))


def given_runs(given: str, results: Path, hypervisor: str | None = None) -> Runs:
    """All runs of a directory that is given, or one run by its id. Raises as chosen_runs."""
    if Path(given).is_dir():
        return chosen_runs(Path(given), None, everything=True, hypervisor=hypervisor)
    return chosen_runs(results, [given], hypervisor=hypervisor)


def of_hypervisor(runs: Sequence[Run], hypervisor: str) -> tuple[Run, ...]:
    """The runs with the cells of this host alone. Raises RecordError naming the hosts where it has none."""
    hosts = sorted({cell.cell.hypervisor for run in runs for cell in run.cells})
    if hypervisor not in hosts:
        raise RecordError(f"--hypervisor is {hypervisor!r}: measured were {', '.join(hosts) or 'none'}.")
    return _with(runs, lambda cell: cell.hypervisor == hypervisor)


def of_guests(runs: Sequence[Run], guests: int) -> tuple[Run, ...]:
    """The runs with the cells of so many guests alone. Raises RecordError naming the numbers measured."""
    numbers = sorted({cell.cell.guests for run in runs for cell in run.cells})
    if guests not in numbers:
        raise RecordError(f"--guests is {guests}: measured were {', '.join(map(str, numbers)) or 'none'}.")
    return _with(runs, lambda cell: cell.guests == guests)


def _with(runs: Sequence[Run], wanted: Callable[[Cell], bool]) -> tuple[Run, ...]:
    """The runs with these cells alone, and without those that have none."""
    kept = [replace(run, cells=tuple(cell for cell in run.cells if wanted(cell.cell))) for run in runs]
    return tuple(run for run in kept if run.cells)


def chosen_table(runs: Sequence[Run]) -> Chosen:
    """The tidy table of a run; of several, of the most cells of them that belong together."""
    table = tidy(list(runs))
    return largest_set(table) if len(runs) > 1 else Chosen(table, ())


def compared(a: Given, b: Given) -> Compared:
    """B less A. Raises RecordError where both hold the same measurement."""
    _check_apart(a.runs, b.runs)
    chosen = [chosen_table(side.runs.runs) for side in (a, b)]
    ours, theirs = (
        Side(
            side.name,
            side.given,
            Answer(
                tuple(summarise(found.table)),
                side.runs.runs,
                left_out=found.left_out,
                problems=side.runs.problems,
            ),
        )
        for side, found in zip((a, b), chosen, strict=True)
    )
    return Compared(ours, theirs, compare(*(found.table for found in chosen)))


def _check_apart(a: Runs, b: Runs) -> None:
    held = {moment: run for run in a.runs for moment in run.moments}
    for run in b.runs:
        for moment in sorted(run.moments & held.keys()):
            first, second = held[moment].directory, run.directory
            same = f"{first} is" if first == second else f"{first} and {second}, one a copy of the other, are"
            raise RecordError(f"{same} on both sides of the comparison: give each run to one side.")

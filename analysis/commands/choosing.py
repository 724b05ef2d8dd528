"""Which runs a command speaks of: the newest, those that are named, or all; of one host where asked."""

from dataclasses import replace
from pathlib import Path

from analysis.measure.pooling import Chosen, largest_set
from analysis.measure.table import tidy
from analysis.records.loading import RecordError, Run, find_run, find_runs, load_run


def chosen_runs(
    results: Path, run_ids: list[str] | None, *, everything: bool = False, hypervisor: str | None = None
) -> tuple[list[Run], list[str]]:
    """The runs, and the ids of those that were not asked for; without ids the newest, or everything.

    Raises RecordError where there is none, a run does not exist, or the hypervisor is in none of them.
    """
    directories = find_runs(results)
    if run_ids:
        chosen = [find_run(results, run_id) for run_id in dict.fromkeys(run_ids)]
    else:
        chosen = directories if everything else directories[-1:]
    others = [directory.name for directory in directories if directory not in chosen]
    runs = [load_run(directory) for directory in chosen]
    return (runs if hypervisor is None else of_hypervisor(runs, hypervisor)), others


def of_hypervisor(runs: list[Run], hypervisor: str) -> list[Run]:
    """The runs with the cells of this host alone. Raises RecordError naming the hosts where it has none."""
    hosts = sorted({cell.cell.hypervisor for run in runs for cell in run.cells})
    if hypervisor not in hosts:
        raise RecordError(f"--hypervisor is {hypervisor!r}: measured were {', '.join(hosts) or 'none'}.")
    kept = [
        replace(run, cells=tuple(cell for cell in run.cells if cell.cell.hypervisor == hypervisor))
        for run in runs
    ]
    return [run for run in kept if run.cells]


def chosen_table(runs: list[Run]) -> Chosen:
    """The tidy table of a run; of several, of the most cells of them that belong together."""
    table = tidy(runs)
    return largest_set(table) if len(runs) > 1 else Chosen(table, ())

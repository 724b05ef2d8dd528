"""How long the report of many runs takes, the whole command.

    python -m benchmarks.report [--runs 1000]

Copies recorded runs of results/reference/cells in turn, one complete cell a run, each with an id and a day
of its own, into a directory that is removed again; then writes the page of all of them. Prints the seconds,
the most memory and the size of the page.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date, timedelta
from itertools import cycle, islice
from pathlib import Path

from analysis.plan.design import MIB, REFERENCE, RESULTS, cell_directory
from analysis.records.loading import COMPLETE, CellRecords, find_runs, load_runs

RECORDED = RESULTS / REFERENCE / "cells"


def recorded() -> list[tuple[Path, CellRecords]]:
    """Every complete cell of the reference with the directory of its run."""
    runs = load_runs(find_runs(RECORDED).directories).runs
    return [(run.directory, cell) for run in runs for cell in run.cells if cell.status == COMPLETE]


def copies(number: int) -> Iterator[tuple[str, Path, CellRecords]]:
    """So many copies: id, run that it is of, and cell."""
    for place, (run, cell) in enumerate(islice(cycle(recorded()), number)):
        yield f"copy-{place:04}", run, cell


def write_copy(results: Path, run_id: str, run: Path, cell: CellRecords, day: date) -> None:
    """One cell of a run as a run of its own, measured on another day."""

    def copied(path: Path) -> str:
        text = path.read_text().replace(f'"run_id": "{cell.run_id}"', f'"run_id": "{run_id}"')
        return text.replace(f'"{cell.on.recorded_at[:10]}T', f'"{day.isoformat()}T')

    plan = json.loads(copied(run / "plan.json"))
    plan["cells"] = [
        one
        for one in plan["cells"]
        if (one["hypervisor"], one["cell_id"]) == (cell.cell.hypervisor, cell.cell.cell_id)
    ]
    directory = cell_directory(results / run_id, cell.cell)
    directory.mkdir(parents=True)
    (results / run_id / "plan.json").write_text(json.dumps(plan))
    for path in cell.directory.glob("*.json"):
        (directory / path.name).write_text(copied(path))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=1000, help="how many runs")
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        results, page = Path(folder) / "results", Path(folder) / "page.html"
        for place, (run_id, run, cell) in enumerate(copies(runs)):
            write_copy(results, run_id, run, cell, date(2023, 1, 1) + timedelta(days=place))
        began = time.monotonic()
        command = [sys.executable, "-m", "analysis", "report", "--results", str(results), "--html", str(page)]
        subprocess.run(command, check=True)
        took = time.monotonic() - began
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(
            f"{runs} runs: {took:.1f} s, of it {used.ru_utime + used.ru_stime:.1f} s of CPU; at most "
            f"{used.ru_maxrss * 1024 / MIB:.0f} MiB; the page has {page.stat().st_size / MIB:.1f} MiB"
        )


if __name__ == "__main__":
    main()

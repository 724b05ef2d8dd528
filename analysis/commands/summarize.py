"""`python -m analysis summarize`: whatever has been measured becomes the answer."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from analysis.measure.efficiency import censuses
from analysis.measure.ledger import SOURCES, LedgerError, ledger
from analysis.measure.statistics import PolicyDifference, Summary, policy_differences, summarise
from analysis.measure.table import tidy
from analysis.records.loading import COMPLETE, CellRecords, Run, find_run, find_runs, load_run
from analysis.report import figures
from analysis.report import summary as report


def summarize(arguments: Namespace) -> int:
    """Print the summary of the chosen runs and write the files asked for.

    Raises RecordError, DesignError, FigureError or OSError with a text for the user.
    """
    runs, others = choose(arguments.results, arguments.run, everything=arguments.all)
    table = tidy(runs)
    summaries, differences = summarise(table), policy_differences(table)
    if arguments.figure:
        figures.save(figures.figure_2(summaries), arguments.figure)
    if arguments.html:
        arguments.html.write_text(page(summaries, runs, differences, others), encoding="utf-8")
    if arguments.json:
        print(report.summary_json(summaries, runs, differences, others), end="")
    elif arguments.csv:
        print(report.summary_csv(table), end="")
    else:
        print(report.summary_text(summaries, runs, differences, others), end="")
    return 0


def choose(results: Path, run_id: str | None, *, everything: bool) -> tuple[list[Run], list[str]]:
    """The runs to summarise, and the ids of those left out: the newest run, one by its id, or all."""
    directories = find_runs(results)
    if run_id is not None:
        chosen = [find_run(results, run_id)]
    else:
        chosen = directories if everything else directories[-1:]
    others = [directory.name for directory in directories if directory not in chosen]
    return [load_run(directory) for directory in chosen], others


def page(
    summaries: Sequence[Summary],
    runs: Sequence[Run],
    differences: Sequence[PolicyDifference],
    others: Sequence[str],
) -> str:
    """The HTML page with every figure that the records allow."""
    drawn, remarks = [], []
    for where, mine in report.by_place(summaries):
        if any(summary.estimates["host_used_off_mib"] is not None for summary in mine):
            caption = f"{where}: host memory used with KSM off and on, and the saving beside the paper's."
            drawn.append((caption, figures.figure_2(mine)))
    for run in runs:
        measured = [cell for cell in run.cells if cell.status == COMPLETE]
        if not measured:
            continue
        caption = f"Run {run.plan.run_id}: how the saving grew while KSM merged, every cell."
        drawn.append((caption, figures.burndown_figure(measured)))
        try:
            books = [(report.row_name(summary), ledger(cell)) for summary, cell in first_of_each(run)]
        except LedgerError as error:
            remarks.append(f"! {error}")
            continue
        caption = (
            f"Run {run.plan.run_id}: the reconciled ledger, first measured cell of each line of the table. "
            + " ".join(f"{name[0].upper()}{name[1:]}: {source}." for name, source in SOURCES.items())
        )
        drawn.append((caption, figures.ledger_figure(books)))
    pictures = [(caption, figures.svg_text(figure)) for caption, figure in drawn]
    remarks += [f"! {problem}" for problem in censuses(summaries, runs)[1]]
    return report.html_page(
        summaries, runs, differences, [*report.notes(summaries, differences, others), *remarks], pictures
    )


def first_of_each(run: Run) -> list[tuple[Summary, CellRecords]]:
    """Each line of a run's table that was measured, with the first of its cells."""
    cells = {(cell.cell.hypervisor, cell.cell.cell_id): cell for cell in run.cells if cell.status == COMPLETE}
    lines = []
    for summary in summarise(tidy([run])):
        mine = [cells.get((summary.hypervisor, one.cell_id)) for one in summary.cells]
        lines += [(summary, cell) for cell in [found for found in mine if found is not None][:1]]
    return lines

"""Where the saving of a run comes from: item by item, scan by scan, guest by guest, on every host.

example: python -m analysis explain --results results/reference/cells --run idle --guests
"""

import argparse
from pathlib import Path

from analysis.commands.options import add_figure, add_hypervisor, add_json, add_results, add_run_or_all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    add_results(parser)
    add_run_or_all(parser)
    add_hypervisor(parser)
    add_json(parser)
    add_figure(parser, "the ledger as a waterfall")
    parser.add_argument("--burndown", metavar="FILE", type=Path, help="draw the saving against time")
    parser.add_argument(
        "--contents", metavar="FILE", type=Path, help="draw what the pages held, of cells with a census"
    )
    parser.add_argument("--guests", action="store_true", help="a line for each guest, not the range alone")


def run(arguments: argparse.Namespace) -> int:
    """Print the explanation; 1 when there is no cell to explain.

    Raises UserError or OSError with a text for the user.
    """
    from analysis.commands.choosing import chosen_runs, chosen_table
    from analysis.errors import UserError
    from analysis.measure.statistics import summarise
    from analysis.report import explanation, figures
    from analysis.report.content_figures import census_figure
    from analysis.report.growth_figure import burndown_figure
    from analysis.report.summary import Answer
    from analysis.report.tables import show

    found = chosen_runs(
        arguments.results, arguments.run, everything=arguments.all, hypervisor=arguments.hypervisor
    )
    chosen = chosen_table(found.runs)
    answer = Answer(
        tuple(summarise(chosen.table)), found.runs, left_out=chosen.left_out, problems=found.problems
    )
    explained = explanation.explain_all(answer)
    if arguments.contents:
        counted = explanation.censuses_by_name(explained)
        if not counted:
            raise UserError(
                f"no cell of {', '.join(run.plan.run_id for run in found.runs)} has a census, so what its "
                "pages held cannot be drawn: measure with -e census=true, or leave --contents out"
            )
        figures.save(census_figure(counted), arguments.contents)
    if arguments.figure:
        figures.save(figures.ledger_figure(explanation.waterfalls(explained)), arguments.figure)
    if arguments.burndown:
        cells = [records for one in explained for records in one.cells]
        figures.save(burndown_figure(cells), arguments.burndown)
    if arguments.json:
        print(explanation.explanation_json(answer, explained), end="")
    else:
        show(*explanation.explanation_parts(answer, explained, each_guest=arguments.guests))
    return 0 if explained else 1

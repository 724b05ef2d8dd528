"""What was measured: memory freed, used and saved, with intervals over boots, beside the paper's figures.

example: python -m analysis summarize --results results/reference/cells --all --guests 15 --figure figure2.svg
"""

import argparse
from pathlib import Path

from analysis.commands.options import add_figure, add_hypervisor, add_json, add_results, add_run_or_all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    add_results(parser)
    add_run_or_all(parser)
    add_hypervisor(parser)
    parser.add_argument("--guests", metavar="N", type=int, help="cells of so many guests alone")
    form = parser.add_mutually_exclusive_group()
    add_json(form)
    form.add_argument("--csv", action="store_true", help="print the tidy table, one line for each cell")
    add_figure(parser, "the paper's figure 2")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write the text as Markdown")
    parser.add_argument("--parquet", metavar="FILE", type=Path, help="write the tidy table (needs pyarrow)")


def run(arguments: argparse.Namespace) -> int:
    """Print the summary and write the files asked for; 1 when nothing could be averaged.

    Raises UserError or OSError with a text for the user.
    """
    from analysis.commands.choosing import chosen_runs, chosen_table
    from analysis.measure.statistics import policy_differences, summarise
    from analysis.report import figures
    from analysis.report import summary as report
    from analysis.report.parquet import write_parquet
    from analysis.report.tables import markdown, show

    found = chosen_runs(
        arguments.results,
        arguments.run,
        everything=arguments.all,
        hypervisor=arguments.hypervisor,
        guests=arguments.guests,
    )
    chosen = chosen_table(found.runs)
    answer = report.Answer(
        summaries=tuple(summarise(chosen.table)),
        runs=found.runs,
        differences=tuple(policy_differences(chosen.table)),
        others=found.others,
        left_out=chosen.left_out,
        problems=found.problems,
    )
    if arguments.figure:
        figures.save(figures.figure_2(answer.summaries), arguments.figure)
    if arguments.parquet:
        write_parquet(chosen.table, arguments.parquet)
    if arguments.markdown:
        arguments.markdown.write_text(markdown(*report.summary_parts(answer)), encoding="utf-8")
    if arguments.json:
        print(report.summary_json(answer), end="")
    elif arguments.csv:
        print(report.summary_csv(chosen.table), end="")
    else:
        show(*report.summary_parts(answer))
    return 0 if any(summary.measured for summary in answer.summaries) else 1

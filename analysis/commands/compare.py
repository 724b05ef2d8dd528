"""Two runs or campaigns, B less A: in what they were measured differently, and what differs, with intervals.

A and B are each a directory, whose runs are taken together, or the id of a run under --results.

example: python -m analysis compare results/reference/cells results/reference/cells-compacting
"""

import argparse

from analysis.commands.options import add_hypervisor, add_json, add_results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("a", metavar="A", help="directory or run id")
    parser.add_argument("b", metavar="B", help="directory or run id")
    add_results(parser)
    add_hypervisor(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the comparison; 1 when there is nothing to compare.

    Raises UserError or OSError with a text for the user.
    """
    from analysis.commands.choosing import Given, compared, given_runs
    from analysis.report.comparison import comparison_json, comparison_parts
    from analysis.report.tables import show

    a, b = (
        Given(name, given, given_runs(given, arguments.results, arguments.hypervisor))
        for name, given in (("A", arguments.a), ("B", arguments.b))
    )
    found = compared(a, b)
    if arguments.json:
        print(comparison_json(found), end="")
    else:
        show(*comparison_parts(found))
    return 0 if any(any(line.contrasts.values()) for line in found.comparison.lines) else 1

"""Whether what is measured now saves less than a baseline did: for a CI after an upgrade of kernel or image.

BASELINE is a directory, whose runs are taken together, or the id of a run under --results. Savings are memory
freed and gross. Exit code 0: each saving of the baseline was measured again and is shown to be no worse by
more than the tolerance. 3: one is shown to be worse, its interval wholly beyond the tolerance. 4: it cannot
be told: there are fewer than three boots, an interval is too wide, or something was not measured again.

example: python -m analysis check idle --run idle-4-6 --results results/reference/cells
"""

import argparse
import math

from analysis.commands.options import add_hypervisor, add_json, add_results, add_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("baseline", metavar="BASELINE", help="directory or run id")
    add_results(parser)
    add_run(parser, "the newest")
    add_hypervisor(parser)
    parser.add_argument(
        "--tolerance-percent",
        metavar="P",
        type=_percent,
        default=2.0,
        help="how much less may be saved, of the baseline's saving (default: 2)",
    )
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the verdict, which is the exit code, and a sentence for each saving.

    Raises UserError or OSError with a text for the user.
    """
    from analysis.commands.choosing import Given, chosen_runs, compared, given_runs
    from analysis.measure.checking import NO_WORSE, UNTOLD, WORSE, check
    from analysis.report.check import check_json, check_parts
    from analysis.report.tables import show

    baseline = given_runs(arguments.baseline, arguments.results, arguments.hypervisor)
    now = chosen_runs(arguments.results, arguments.run, hypervisor=arguments.hypervisor)
    found = compared(
        Given("the baseline", arguments.baseline, baseline),
        Given("the new runs", ", ".join(arguments.run or ["the newest"]), now),
    )
    checked = check(found.comparison, arguments.tolerance_percent)
    if arguments.json:
        print(check_json(found, checked), end="")
    else:
        show(*check_parts(found, checked))
    return {NO_WORSE: 0, WORSE: 3, UNTOLD: 4}[checked.verdict]


def _percent(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: needed is a number from 0 to below 100")
    return value

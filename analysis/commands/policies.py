"""Policies side by side, from the same checkpoints: saved, how soon, lost on the way, and what ksmd took.

example: python -m analysis policies --run 20261126T120000Z --figure pareto.png
"""

import argparse

from analysis.commands.options import add_figure, add_hypervisor, add_json, add_results, add_run_or_all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    add_results(parser)
    add_run_or_all(parser)
    add_hypervisor(parser)
    add_json(parser)
    add_figure(parser, "memory used against ksmd's CPU and the guests' p99, a panel a workload")


def run(arguments: argparse.Namespace) -> int:
    """Print the policies; 1 when no cell can stand beside another.

    Raises UserError or OSError with a text for the user.
    """
    from analysis.commands.choosing import chosen_runs, chosen_table
    from analysis.measure.policies import side_by_side
    from analysis.report.figures import save
    from analysis.report.policies import policy_json, policy_parts
    from analysis.report.policy_figure import pareto_figure
    from analysis.report.tables import show

    found = chosen_runs(
        arguments.results, arguments.run, everything=arguments.all, hypervisor=arguments.hypervisor
    )
    chosen = chosen_table(found.runs)
    places = side_by_side(chosen.table, found.runs)
    if arguments.json:
        print(policy_json(places, found.runs, chosen.left_out, found.problems), end="")
    else:
        show(*policy_parts(places, found.runs, chosen.left_out, found.problems))
    if arguments.figure:
        save(pareto_figure(places), arguments.figure)
    return 0 if any(place.lines for place in places) else 1

"""Which policy for a goal, by what was measured: with the evidence, and what it loses against the best.

example: python -m analysis recommend --goal memory --workloads idle=10,random_fill=5 --tmpfiles ksm.conf
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.commands.options import add_hypervisor, add_json, add_results, add_run_or_all

if TYPE_CHECKING:
    from analysis.measure.policies import Place
    from analysis.model.recommending import Goal

_GOALS = ("memory", "cpu", "time", "latency")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument(
        "--goal",
        choices=_GOALS,
        required=True,
        help="memory: the guests use least; cpu: the same within --cpu-percent; time: 90 %% of the best "
        "saving soonest; latency: most memory within --latency-percent",
    )
    parser.add_argument(
        "--cpu-percent", metavar="P", type=float, help="of --goal cpu: the most of one CPU that ksmd may take"
    )
    parser.add_argument(
        "--latency-percent",
        metavar="P",
        type=float,
        help="of --goal latency: by how much the p99 of the guests' write latency may rise",
    )
    parser.add_argument(
        "--workloads",
        metavar="W[=N],...",
        help="measured workloads with their guests, idle=10,random_fill=5, or a measured mix (default: each "
        "workload, all alike)",
    )
    parser.add_argument(
        "--guests", metavar="N", type=int, help="measured number of guests (default: the most)"
    )
    add_results(parser)
    add_run_or_all(parser)
    add_hypervisor(parser)
    add_json(parser)
    parser.add_argument(
        "--write", metavar="FILE.yml", type=Path, help="write the policy as variables, for -e @FILE.yml"
    )
    parser.add_argument(
        "--tmpfiles", metavar="FILE", type=Path, help="write it for /etc/tmpfiles.d, set at each boot"
    )
    parser.add_argument(
        "--systemd",
        metavar="DIR",
        type=Path,
        help="write it as a systemd unit into this folder, and the testbed's daemon where it is that",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the recommendation and write the files asked for.

    Raises UserError or OSError with a text for the user.
    """
    from analysis.commands.choosing import chosen_runs, chosen_table
    from analysis.measure.policies import side_by_side
    from analysis.model.recommending import RecommendationError, recommend, regrets
    from analysis.report.recommendation import (
        Advice,
        advice_json,
        advice_parts,
        check_workloads,
        tmpfiles_text,
        unit_files,
        variables_text,
    )
    from analysis.report.tables import show

    goal = _goal(arguments.goal, arguments.cpu_percent, arguments.latency_percent)
    found = chosen_runs(
        arguments.results, arguments.run, everything=arguments.all, hypervisor=arguments.hypervisor
    )
    places = _of_one_kind(side_by_side(chosen_table(found.runs).table, found.runs), arguments.guests)
    weights = _weights(arguments.workloads, [place.workload for place in places])
    check_workloads(places, weights)
    chosen = recommend(places, weights, goal)
    try:
        tried, untried = regrets(places, weights, goal), ""
    except RecommendationError as error:
        tried, untried = [], f"Leaving one workload out cannot be tried: {error}"
    advice = Advice(
        recommendation=chosen,
        places=tuple(place for place in places if place.workload in weights),
        weights=weights,
        regrets=tuple(tried),
        untried=untried,
        run_ids=tuple(one.plan.run_id for one in found.runs),
    )
    for path, text in ((arguments.write, variables_text), (arguments.tmpfiles, tmpfiles_text)):
        if path is not None:
            path.write_text(text(advice), encoding="utf-8")
    if arguments.systemd is not None:
        for name, text_of_file in unit_files(advice).items():
            (arguments.systemd / name).write_text(text_of_file, encoding="utf-8")
    if arguments.json:
        print(advice_json(advice), end="")
    else:
        show(*advice_parts(advice))
    return 0


def _goal(kind: str, cpu_percent: float | None, latency_percent: float | None) -> "Goal":
    """The goal that the options say. Raises UserError where they contradict one another."""
    from analysis.errors import UserError
    from analysis.model.recommending import BUDGET, LATENCY, Goal

    limits = {
        BUDGET: ("--cpu-percent", cpu_percent, "up to 100 % of one CPU", 100.0),
        LATENCY: ("--latency-percent", latency_percent, "up to 1000 % of the p99 without KSM", 1000.0),
    }
    for goal, (option, value, most_in_words, most) in limits.items():
        if kind == goal and (value is None or not 0 < value <= most):
            said = "missing" if value is None else f"{value:g}"
            raise UserError(f"{option} is {said}: --goal {goal} needs a number above 0, {most_in_words}.")
        if kind != goal and value is not None:
            raise UserError(f"{option} is a limit of --goal {goal}, and the goal is {kind}: leave one out.")
    return Goal(kind, cpu_percent, latency_percent)


def _of_one_kind(places: Sequence["Place"], guests: int | None) -> list["Place"]:
    """The places of one host, number and size of guests. Raises UserError where there is no one such."""
    from analysis.errors import UserError

    if not places:
        raise UserError(
            "no cell was measured from a checkpoint: measure with -e policies=ksm,advisor -e boots=3."
        )
    hosts = sorted({place.hypervisor for place in places})
    if len(hosts) > 1:
        raise UserError(f"several hosts were measured, {', '.join(hosts)}: choose one with --hypervisor.")
    numbers = sorted({place.guests for place in places})
    if guests is not None and guests not in numbers:
        raise UserError(f"--guests is {guests}: measured were {', '.join(map(str, numbers))}.")
    of_number = [place for place in places if place.guests == (guests or numbers[-1])]
    sizes = {place.guest_memory_bytes for place in of_number}
    if len(sizes) > 1 or len({place.workload for place in of_number}) < len(of_number):
        raise UserError("the runs have guests of several kinds with one workload: choose runs with --run.")
    return of_number


def _weights(words: str | None, measured: Sequence[str]) -> Mapping[str, float]:
    """Workload -> guests; a measured mix by its own name. Raises UserError."""
    from analysis.plan.mix import mix_text, parse_mix

    if words is None:
        return dict.fromkeys(measured, 1.0)
    if "=" not in words:
        return {name.strip(): 1.0 for name in words.split(",")}
    mix = parse_mix(words, "--workloads")
    if mix_text(mix) in measured:
        return {mix_text(mix): 1.0}
    return {name: float(number) for name, number in mix.items()}

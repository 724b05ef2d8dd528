"""Measure: drive the playbook of the experiment, tell how it goes, and prove that every record exists.

example: python -m analysis run --focus 3 --boots 3
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis.commands.options import add_results
from analysis.plan.design import (
    PROJECT,
    RESULTS,
    VARIABLES,
    DesignError,
    check_run_id,
    check_variable,
    new_run_id,
)

# Variables that are options of the command line, too, with what they say
OPTIONS = {
    "focus": "1, 2, 3, some of them with commas between, or all",
    "workloads": "in place of --focus: files of workloads/, with commas between",
    "policies": "files of policies/, with commas between (default: ksm)",
    "guests": "number of guests, or several with commas between",
    "boots": "independent sets of guests, each booted once",
    "repetitions": "repetitions of each cell in each boot",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    for name, says in OPTIONS.items():
        parser.add_argument(f"--{name}", help=says)
    parser.add_argument("--resume", metavar="RUN_ID", help="go on with this run")
    add_results(parser)
    parser.add_argument("--inventory", metavar="FILE", type=Path, help="inventory (default: the project's)")
    parser.add_argument(
        "-e",
        "--extra-var",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="any other variable of the experiment, see docs/variables.md",
    )


def run(arguments: argparse.Namespace) -> int:
    """Drive a campaign; 1 when a part of it failed, 130 after Ctrl-C. Raises UserError for a wrong option."""
    variables = given_variables(arguments)
    if arguments.inventory and not arguments.inventory.exists():
        raise DesignError(f"--inventory is {str(arguments.inventory)!r}: there is no such file.")
    results = arguments.results.absolute()
    if arguments.resume:
        from analysis.plan.runs import read_plan

        run_id = check_run_id(arguments.resume)
        former = read_plan(results / run_id).design.model_dump(mode="json")
        variables = {**_for_ansible({name: former[name] for name in VARIABLES}), **variables}
    else:
        run_id = new_run_id()
    if results != RESULTS:
        variables["results_directory"] = str(results)
    from analysis.progress.campaign import INTERRUPTED, Campaign, drive

    code = drive(Campaign(PROJECT, results, arguments.inventory, variables, run_id), sys.stdout)
    # Ansible's own codes would pass for the user's mistakes.
    return code if code in (0, INTERRUPTED) else 1


def given_variables(arguments: argparse.Namespace) -> dict[str, Any]:
    """The variables that the command line gives, as -e would hand them over. Raises DesignError."""
    from analysis.plan.proof import VARIABLE, given_forecasts

    given = {name: value for name in OPTIONS if (value := getattr(arguments, name)) is not None}
    for text in arguments.extra_var:
        name, separator, value = text.partition("=")
        if not separator:
            raise DesignError(f"-e {text!r} cannot be read: allowed is NAME=VALUE.")
        given[name] = value
    forecast = given.pop(VARIABLE, "")
    variables = {name: check_variable(name, value) for name, value in given.items()}
    if forecast:
        # The playbook may be played in another directory.
        variables[VARIABLE] = [one.path.absolute() for one in given_forecasts(forecast)]
    return _for_ansible(variables)


def _for_ansible(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Typed variables as -e would hand them over: lists with commas between."""
    return {
        name: ",".join(map(str, value)) if isinstance(value, list | tuple) else "" if value is None else value
        for name, value in variables.items()
    }

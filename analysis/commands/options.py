"""Options that mean the same in every command that has them."""

import argparse
from pathlib import Path

from analysis.plan.design import RESULTS


def add_results(command: argparse.ArgumentParser) -> None:
    """--results."""
    command.add_argument(
        "--results",
        metavar="DIR",
        type=Path,
        default=RESULTS,
        help=f"directory of the runs, or of one (default: {RESULTS.name})",
    )


def add_run(command: argparse._ActionsContainer, default: str) -> None:
    """--run, of one run or several; ``default`` says which runs are taken without it."""
    command.add_argument(
        "--run", metavar="RUN_ID", nargs="+", help=f"these runs alone, together (default: {default})"
    )


def add_run_or_all(command: argparse.ArgumentParser) -> None:
    """--run or --all; the newest run without either."""
    choice = command.add_mutually_exclusive_group()
    add_run(choice, "the newest")
    choice.add_argument("--all", action="store_true", help="all runs together, the most that may be pooled")


def add_hypervisor(command: argparse.ArgumentParser) -> None:
    """--hypervisor."""
    command.add_argument("--hypervisor", metavar="HOST", help="this host alone (default: every host)")


def add_json(command: argparse._ActionsContainer) -> None:
    """--json."""
    command.add_argument("--json", action="store_true", help="print JSON, every number in full")


def add_figure(command: argparse.ArgumentParser, what: str) -> None:
    """--figure; ``what`` it draws."""
    command.add_argument("--figure", metavar="FILE", type=Path, help=f"draw {what} (.png, .svg or .pdf)")

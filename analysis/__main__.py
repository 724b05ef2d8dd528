"""Command line: `python -m analysis summarize | run | explain | forecast | report | census | schema`."""

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path

from analysis.commands.schema import add_arguments as add_schema
from analysis.errors import UserError
from analysis.plan.design import RESULTS


def parser() -> argparse.ArgumentParser:
    """The command line, without importing what only one command needs."""
    main_parser = argparse.ArgumentParser(prog="python -m analysis", description=__doc__)
    commands = main_parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    summarize = commands.add_parser(
        "summarize", help="what was measured, by focus, beside the paper's figures"
    )
    summarize.set_defaults(function="analysis.commands.summarize:summarize")
    _add_results(summarize)
    choice = summarize.add_mutually_exclusive_group()
    choice.add_argument("--run", metavar="RUN_ID", help="this run (default: the newest)")
    choice.add_argument("--all", action="store_true", help="all runs together, where they may be pooled")
    form = summarize.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--csv", action="store_true", help="print the tidy table, one line for each cell")
    summarize.add_argument(
        "--figure", metavar="FILE", type=Path, help="draw the paper's figure 2 (.png .svg .pdf)"
    )
    summarize.add_argument("--html", metavar="FILE", type=Path, help="write one self-contained page")

    explain = commands.add_parser("explain", help="where the saving of a run comes from")
    explain.set_defaults(function="analysis.commands.explain:explain")
    _add_results(explain)
    explain.add_argument("run_id", metavar="RUN", nargs="?", help="run id (default: the newest run)")
    explain.add_argument("--guests", action="store_true", help="a line for each guest, not the range alone")
    explain.add_argument("--figure", metavar="FILE", type=Path, help="draw the ledger as a waterfall")
    explain.add_argument("--burndown", metavar="FILE", type=Path, help="draw the saving against time")

    _add_forecast(commands)
    _add_report(commands)
    _add_census(commands)
    schema = commands.add_parser("schema", help="the JSON Schema of every stored file")
    schema.set_defaults(function="analysis.commands.schema:run")
    add_schema(schema)

    run = commands.add_parser("run", help="measure, and prove that every planned record exists")
    run.set_defaults(function="analysis.commands.run:run")
    run.add_argument("--focus", help="1, 2, 3, some of them with commas between, or all")
    run.add_argument("--workloads", help="in place of --focus: files of workloads/, with commas between")
    run.add_argument("--policies", help="files of policies/, with commas between (default: ksm)")
    run.add_argument("--guests", help="number of guests, or several with commas between")
    run.add_argument("--boots", help="independent sets of guests, each booted once")
    run.add_argument("--repetitions", help="repetitions of each cell in each boot")
    run.add_argument("--resume", metavar="RUN_ID", help="go on with this run")
    run.add_argument("--inventory", metavar="FILE", type=Path, help="inventory (default: the project's)")
    run.add_argument(
        "-e",
        "--extra-var",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="any other variable of the experiment, see inventory/group_vars/all/experiment.yml",
    )
    return main_parser


def main(words: list[str] | None = None) -> int:
    """Run one command; a mistake of the user's is one sentence and exit code 2."""
    arguments = parser().parse_args(words)
    module, function = arguments.function.split(":")
    try:
        return int(getattr(import_module(module), function)(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except BrokenPipeError:
        # The reader of a pipe has gone; the interpreter would complain again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}.", file=sys.stderr)
    return 2


def _add_forecast(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    forecast = commands.add_parser("forecast", help="memory of N guests, and how many fit")
    forecast.set_defaults(function="analysis.model.forecast:forecast")
    _add_results(forecast)
    forecast.add_argument("--guests", metavar="N", help="number of guests, or some with commas between")
    load = forecast.add_mutually_exclusive_group()
    load.add_argument("--workload", metavar="W", help="what all guests do (default: each measured workload)")
    load.add_argument("--mix", metavar="W=N,W=N", help="different guests: idle=5,random_fill=10")
    forecast.add_argument("--fit", action="store_true", help="how many guests fit, with no --guests")
    forecast.add_argument(
        "--model",
        choices=("sharing", "census"),
        default="sharing",
        help="saved/VM = I + D (N-1)/N (default), or the curve of the page census of the largest N",
    )
    limit = forecast.add_mutually_exclusive_group()
    limit.add_argument(
        "--host-memory-mib",
        metavar="M",
        type=_positive,
        help="memory of the host (default: the measured one's)",
    )
    limit.add_argument(
        "--envelope-mib", metavar="M", type=_positive, help="memory for the QEMU processes alone (a cgroup)"
    )
    forecast.add_argument(
        "--run", metavar="RUN_ID", nargs="+", help="forecast from these runs (default: every run)"
    )
    forecast.add_argument("--hypervisor", metavar="HOST", help="forecast for this host")
    forecast.add_argument(
        "--policy", metavar="P", help="forecast with this policy (default: the one that was measured)"
    )
    forecast.add_argument("--json", action="store_true", help="print JSON")
    forecast.add_argument("--figure", metavar="FILE", type=Path, help="draw the curves and limits")
    forecast.add_argument(
        "--out", metavar="FILE", type=Path, help="store the forecast before the run that it predicts"
    )


def _add_report(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    report = commands.add_parser(
        "report", help="forecasts beside what was measured afterwards; capacity runs"
    )
    report.set_defaults(function="analysis.model.validation:report")
    _add_results(report)
    report.add_argument(
        "--forecast",
        metavar="FILE",
        type=Path,
        nargs="+",
        help="these forecasts (default: results/forecasts)",
    )
    report.add_argument(
        "--run", metavar="RUN_ID", nargs="+", help="join with these runs (default: every run)"
    )
    report.add_argument("--json", action="store_true", help="print JSON")
    report.add_argument("--figures", metavar="DIR", type=Path, help="draw every figure into this directory")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: needed is a whole number of MiB from 1")
    return int(text)


def _add_census(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    census = commands.add_parser(
        "census", help="equal pages within and between the running guests, and the ideal saving"
    )
    census.set_defaults(function="analysis.commands.census:census")
    census.add_argument("file", metavar="FILE", type=Path, nargs="?", help="show this census, take none")
    census.add_argument(
        "--results", metavar="DIR", type=Path, default=RESULTS, help="directory for the new census (results)"
    )


def _add_results(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--results",
        metavar="DIR",
        type=Path,
        default=RESULTS,
        help="directory of the runs, or of one (results)",
    )


if __name__ == "__main__":
    sys.exit(main())

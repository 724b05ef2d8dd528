"""Memory of N guests and how many fit, from the largest set of measured cells that belong together.

With --out the forecast is written before the run that it predicts; `report` joins the two afterwards.

example: python -m analysis forecast --guests 30 --figure forecast.png
"""

import argparse
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.commands.options import add_figure, add_hypervisor, add_json, add_results, add_run

if TYPE_CHECKING:
    from analysis.model.sharing import Model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    add_results(parser)
    parser.add_argument("--guests", metavar="N", help="number of guests, or some with commas between")
    load = parser.add_mutually_exclusive_group()
    load.add_argument("--workload", metavar="W", help="what all guests do (default: each measured workload)")
    load.add_argument("--mix", metavar="W=N,W=N", help="different guests: idle=5,random_fill=10")
    parser.add_argument("--fit", action="store_true", help="how many guests fit, with no --guests")
    parser.add_argument(
        "--model",
        choices=("sharing", "census"),
        help="census: the curve of the page census of the largest N; sharing: saved/VM = I + D (N-1)/N "
        "(default: census where every workload has one)",
    )
    parser.add_argument(
        "--guest-memory-mib",
        metavar="M",
        type=_positive,
        help="memory of a guest (default: as measured); on the measured side of 512, "
        "where huge pages begin in the guest",
    )
    limit = parser.add_mutually_exclusive_group()
    limit.add_argument(
        "--host-memory-mib",
        metavar="M",
        type=_positive,
        help="memory of the host (default: the measured one's)",
    )
    limit.add_argument(
        "--envelope-mib", metavar="M", type=_positive, help="memory for the QEMU processes alone (a cgroup)"
    )
    add_run(parser, "every run")
    add_hypervisor(parser)
    parser.add_argument(
        "--policy", metavar="P", help="forecast with this policy (default: of the largest set)"
    )
    add_json(parser)
    add_figure(parser, "the curves and limits")
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help="store the forecast before the run that it predicts"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the forecast asked for, and write it with --out.

    Raises a UserError or OSError with a text for the user.
    """
    from analysis.commands.choosing import chosen_runs
    from analysis.model.calibration import ForecastError, calibration
    from analysis.model.forecasting import forecast_content, make_model
    from analysis.model.resizing import resized
    from analysis.model.sharing import ENVELOPE, HOST
    from analysis.plan.design import MIB
    from analysis.plan.mix import mix_text, parse_mix
    from analysis.records.models import ForecastRecord
    from analysis.records.writing import write_record
    from analysis.report import forecast_figures
    from analysis.report.figures import save
    from analysis.report.forecast import forecast_parts
    from analysis.report.tables import show

    numbers = _numbers(arguments.guests)
    mix = None if arguments.mix is None else parse_mix(arguments.mix, "--mix")
    if mix is None and not numbers and not arguments.fit:
        raise ForecastError("nothing is asked: give --guests N, --mix idle=5,random_fill=10, or --fit.")
    if mix is not None and numbers not in ([], [sum(mix.values())]):
        raise ForecastError(
            f"--guests is {arguments.guests} and --mix has {sum(mix.values())} guests: leave --guests out."
        )
    if arguments.out is not None and arguments.out.exists():
        raise ForecastError(f"{arguments.out} exists: a forecast is never overwritten, choose another name.")
    memory = arguments.guest_memory_mib
    chosen = chosen_runs(arguments.results, arguments.run, everything=True, hypervisor=arguments.hypervisor)
    found = calibration(
        chosen.runs,
        scope=HOST if arguments.envelope_mib is None else ENVELOPE,
        predicted={(mix_text(mix), sum(mix.values()))} if mix else {(arguments.workload, n) for n in numbers},
        guest_memory_bytes=None if memory is None else memory * MIB,
        asked=mix or ({arguments.workload} if arguments.workload else ()),
        model=arguments.model,
        policy=arguments.policy,
        bases_in=arguments.results,
        unread=chosen.problems,
    )
    model = make_model(found)
    if memory is not None:
        model = resized(model, memory * MIB, found.fills)
    loads = [mix] if mix else [{name: 1} for name in _workloads(arguments.workload, model)]
    capacity = arguments.envelope_mib or arguments.host_memory_mib
    content = forecast_content(
        arguments.out.stem if arguments.out else "unsaved",
        found,
        model,
        mixes=[mix] if mix else [{name: n} for load in loads for name in load for n in numbers],
        loads=loads,
        capacity_bytes=capacity * MIB if capacity else float(found.memory_total_bytes),
        now=datetime.now(UTC),
    )
    record = ForecastRecord.model_validate_json(json.dumps(content))
    if arguments.figure:
        save(forecast_figures.forecast_figure(record), arguments.figure)
    if arguments.out:
        write_record(arguments.out, content, ForecastRecord)
    if arguments.json:
        print(json.dumps(content, indent=2, sort_keys=True))
        return 0
    written = (
        f"Written to {arguments.out}. Give it to the run that is to prove it, -e forecast={arguments.out}; "
        "after that: `python -m analysis report`."
    )
    show(
        *forecast_parts(record, found.cells, found.cells_left_out),
        *([written] if arguments.out else []),
    )
    return 0


def _positive(text: str) -> int:
    if not re.fullmatch("[0-9]{1,12}", text) or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: needed is a whole number of MiB from 1")
    return int(text)


def _numbers(words: str | None) -> list[int]:
    from analysis.model.calibration import ForecastError

    if words is None:
        return []
    parts = [part.strip() for part in words.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,4}", part) and int(part) for part in parts):
        raise ForecastError(
            f"--guests is {words!r}: allowed is a whole number from 1 to 9999, or some with commas between."
        )
    return sorted({int(part) for part in parts})


def _workloads(wanted: str | None, model: "Model") -> list[str]:
    from analysis.model.calibration import ForecastError

    if wanted is None:
        return list(model.workloads)
    if wanted not in model.workloads:
        raise ForecastError(
            f"--workload is {wanted!r}: measured, and so allowed, is {', '.join(model.workloads)}."
        )
    return [wanted]

"""`python -m analysis forecast`: memory of N guests and how many fit, from what has been measured.

With --out the forecast is written before the run that it predicts; `report` joins the two afterwards.
"""

import json
import re
from argparse import Namespace
from collections.abc import Sequence
from datetime import UTC, datetime

from analysis.model.calibration import Calibration, ForecastError, calibration
from analysis.model.forecasting import forecast_content, make_model
from analysis.model.sharing import ENVELOPE, HOST, MOST_GUESTS, Model
from analysis.plan.design import MIB
from analysis.plan.mix import mix_text, parse_mix
from analysis.records.loading import choose_runs
from analysis.records.models import ForecastRecord, IntervalBytes, LoadForecast
from analysis.records.writing import write_record
from analysis.report import forecast_figures
from analysis.report.figures import save
from analysis.report.summary import named, wrap

_RUNS_NAMED = 12


def forecast(arguments: Namespace) -> int:
    """Print the forecast asked for, and write it with --out.

    Raises a UserError or OSError with a text for the user.
    """
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
    found_runs = choose_runs(arguments.results, arguments.run)
    wanted = {(mix_text(mix), sum(mix.values()))} if mix else {(arguments.workload, n) for n in numbers}
    found = calibration(
        found_runs.runs,
        scope=HOST if arguments.envelope_mib is None else ENVELOPE,
        predicted=wanted,
        asked=mix or ({arguments.workload} if arguments.workload else ()),
        model=arguments.model,
        hypervisor=arguments.hypervisor,
        policy=arguments.policy,
        bases_in=arguments.results,
        unread=found_runs.problems,
    )
    model = make_model(found, arguments.model)
    loads = [mix] if mix else [{name: 1} for name in _workloads(arguments.workload, model)]
    mixes = [mix] if mix else [{name: n} for load in loads for name in load for n in numbers]
    capacity = arguments.envelope_mib or arguments.host_memory_mib
    content = forecast_content(
        arguments.out.stem if arguments.out else "unsaved",
        found,
        model,
        mixes=mixes,
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
    else:
        print(forecast_text(record, found), end="")
        if arguments.out:
            print(f"\nWritten to {arguments.out}; after the run: `python -m analysis report`.")
    return 0


def forecast_text(record: ForecastRecord, found: Calibration) -> str:
    """The forecast as aligned text of at most 110 columns."""
    cells = record.calibration.cells
    numbers = {
        name: sorted({cell.guests for cell in cells if cell.workload == name})
        for name in sorted({cell.workload for cell in cells})
    }
    counted = {cell.guests for cell in cells if "census" in cell.records}
    bases = len(record.calibration.bases)
    what = "host memory" if record.scope == HOST else "memory of the QEMU processes"
    lines = [
        wrap(
            f"Forecast of the {what} of {record.hypervisor}, policy {record.policy}, guests of "
            f"{record.guest_memory_bytes / MIB:.0f} MiB, from {len(cells)} measured cells of "
            f"{_runs_named([cell.run_id for cell in cells])}: "
            + "; ".join(f"{name} at N = {', '.join(map(str, ns))}" for name, ns in numbers.items())
            + (f"; {bases} measurements with no guest" if bases else "")
            + (f"; the saving by the census at N = {', '.join(map(str, sorted(counted)))}" if counted else "")
            + "."
        ),
        "",
    ]
    policy = record.policy
    on_width = max(12, len(policy) + 2)
    if record.predicted:
        lines += [
            f"{'':<28}{'':>5}{'used, MiB':>12}{'':>{18 + on_width}}{'saved':>8}{'all diverge, MiB':>22}",
            f"{'load':<28}{'N':>5}{'KSM off':>12}{'95 %':>9}{policy:>{on_width}}{'95 %':>9}{'MiB/VM':>8}"
            f"{'need':>12}{'at risk':>10}",
        ]
        for one in record.predicted:
            off, on = one.used_off, one.used_on
            per_vm = (off.mean_bytes - on.mean_bytes) / one.guests / MIB
            lines.append(
                named(
                    one.workload,
                    28,
                    f"{one.guests:>5}{off.mean_bytes / MIB:>12.0f}{_half(off):>9}"
                    f"{on.mean_bytes / MIB:>{on_width}.0f}{_half(on):>9}{per_vm:>8.1f}"
                    f"{one.safe_bytes / MIB:>12.0f}{one.at_risk_bytes / MIB:>10.0f}",
                )
            )
            if len(one.mix) > 1:
                apart = one.used_on_apart_bytes / MIB
                lines.append(f"{'':<28}nothing shared across workloads: {apart:.0f} with {policy}")
        lines.append("")
    lines += [
        f"How many fit in {record.capacity_bytes / MIB:.0f} MiB:",
        f"{'load':<28}{'KSM off':>9}{'expected':>10}{'95 %':>12}{'safe':>7}{'guests at risk':>16}"
        f"{'memory at risk, MiB':>21}",
    ]
    lines += [_limit_line(load) for load in record.loads]
    lines += [
        "",
        "One guest with KSM off, MiB: shared between guests (D), duplicates within (I), unmergeable, outside",
        "guest memory (QEMU, page tables, kernel); with KSM: its own memory, freed beyond its counters",
        f"{'workload':<28}{'D':>9}{'I':>9}{'unmerg.':>9}{'outside':>9}{'KSM':>9}{'beyond':>9}",
    ]
    for name, parts in record.guest_breakdown.items():
        lines.append(
            f"{name:<28}"
            + "".join(
                f"{_mib(parts[f'{part}_bytes']):>9}"
                for part in ("between", "within", "unmergeable", "outside", "ksm", "uncounted")
            )
        )
    if record.scope == HOST:
        lines.append(f"Host with no guest: {record.base_bytes / MIB:.0f} MiB.")
    lines += ["", *(wrap(f"- {sentence}") for sentence in record.assumptions)]
    if any(one.used_on.half_width_bytes is None for one in record.predicted):
        lines.append(
            wrap("No interval where there are too few cells: measure three numbers of guests, or repeat.")
        )
    if found.cells_left_out:
        lines.append(f"{found.cells_left_out} of {len(cells) + found.cells_left_out} cells are not used:")
    lines += [wrap(f"! not used: {reason}.") for reason in record.calibration.left_out]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _runs_named(run_ids: Sequence[str]) -> str:
    """The runs, the first of them by name."""
    names = list(dict.fromkeys(run_ids))
    more = f" and {len(names) - _RUNS_NAMED} more" if len(names) > _RUNS_NAMED else ""
    return f"run{'' if len(names) == 1 else 's'} {', '.join(names[:_RUNS_NAMED])}{more}"


def _numbers(words: str | None) -> list[int]:
    if words is None:
        return []
    parts = [part.strip() for part in words.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,4}", part) and int(part) for part in parts):
        raise ForecastError(
            f"--guests is {words!r}: allowed is a whole number from 1 to 9999, or some with commas between."
        )
    return sorted({int(part) for part in parts})


def _workloads(wanted: str | None, model: Model) -> list[str]:
    if wanted is None:
        return list(model.workloads)
    if wanted not in model.workloads:
        raise ForecastError(
            f"--workload is {wanted!r}: measured, and so allowed, is {', '.join(model.workloads)}."
        )
    return [wanted]


def _limit_line(load: LoadForecast) -> str:
    limits = load.limits
    interval = load.curve.on_low_bytes[0] is not None
    between = f"{_count(limits.on_low)} to {_count(limits.on_high)}" if interval else "no interval"
    more = "-" if limits.on is None or limits.safe is None else str(max(limits.on - limits.safe, 0))
    return named(
        load.workload,
        28,
        f"{_count(limits.off):>9}{_count(limits.on):>10}{between:>12}{_count(limits.safe):>7}{more:>16}"
        f"{_mib(limits.at_risk_bytes, 0):>21}",
    )


def _count(guests: int | None) -> str:
    return f">{MOST_GUESTS}" if guests is None else str(guests)


def _half(interval: IntervalBytes) -> str:
    half = interval.half_width_bytes
    return "none" if half is None else f"±{half / MIB:.0f}"


def _mib(value: float | None, decimals: int = 1) -> str:
    return "-" if value is None else f"{value / MIB:.{decimals}f}"

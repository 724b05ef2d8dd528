"""A forecast as text: what so many guests use, how many fit, and what it rests on."""

from collections.abc import Sequence

from analysis.model.sharing import HOST, MOST_GUESTS
from analysis.plan.design import MIB
from analysis.records.models import ForecastRecord, IntervalBytes, LoadForecast
from analysis.report.quantities import QUANTITIES, UNITS
from analysis.report.tables import Grid, Part, notes, table

SAFE, AT_RISK = QUANTITIES["safe_mib"], QUANTITIES["at_risk_mib"]
_RUNS_NAMED = 12
_PARTS = ("between", "within", "unmergeable", "outside", "ksm", "uncounted")


def forecast_parts(record: ForecastRecord, cells_left_out: int) -> list[Part]:
    """The forecast; ``cells_left_out``: of how many cells its sentences on what is left out are."""
    parts: list[Part] = [_rests_on(record)]
    if record.predicted:
        parts.append(_predicted(record))
    return [*parts, _limits(record), _breakdown(record), notes(_remarks(record, cells_left_out))]


def _rests_on(record: ForecastRecord) -> str:
    cells, bases = record.calibration.cells, len(record.calibration.bases)
    numbers = {
        name: sorted({cell.guests for cell in cells if cell.workload == name})
        for name in sorted({cell.workload for cell in cells})
    }
    counted = sorted({cell.guests for cell in cells if "census" in cell.records})
    what = "host memory" if record.scope == HOST else "memory of the QEMU processes"
    return (
        f"Forecast of the {what} of {record.hypervisor}, policy {record.policy}, guests of "
        f"{record.guest_memory_bytes / MIB:.0f} MiB, from {len(cells)} measured cells of "
        f"{_runs_named([cell.run_id for cell in cells])}: "
        + "; ".join(f"{name} at N = {', '.join(map(str, ns))}" for name, ns in numbers.items())
        + (f"; {bases} measurements with no guest" if bases else "")
        + (f"; the saving by the census at N = {', '.join(map(str, counted))}" if counted else "")
        + "."
    )


def _predicted(record: ForecastRecord) -> Grid:
    heads = (
        "load",
        "N",
        "KSM off\nMiB",
        "95 %",
        f"{record.policy}\nMiB",
        "95 %",
        "saved\nMB/VM",
        SAFE.head,
        AT_RISK.head,
    )
    rows = [
        (
            one.workload,
            str(one.guests),
            mib(one.used_off.mean_bytes, 0),
            _half(one.used_off),
            mib(one.used_on.mean_bytes, 0),
            _half(one.used_on),
            mib((one.used_off.mean_bytes - one.used_on.mean_bytes) / one.guests),
            SAFE.number(one.safe_bytes / MIB),
            AT_RISK.number(one.at_risk_bytes / MIB),
        )
        for one in record.predicted
    ]
    return table(heads, rows, title="Memory used")


def _limits(record: ForecastRecord) -> Grid:
    return table(
        ("load", "KSM off", "expected", "95 %", "safe", "guests\nat risk", f"memory {AT_RISK.head}"),
        [_limit(load) for load in record.loads],
        title=f"How many fit in {record.capacity_bytes / MIB:.0f} MiB",
    )


def _limit(load: LoadForecast) -> tuple[str, ...]:
    limits = load.limits
    interval = load.curve.on_low_bytes[0] is not None
    return (
        load.workload,
        count(limits.off),
        count(limits.on),
        f"{count(limits.on_low)} to {count(limits.on_high)}" if interval else "no interval",
        count(limits.safe),
        "-" if limits.on is None or limits.safe is None else str(max(limits.on - limits.safe, 0)),
        mib(limits.at_risk_bytes, 0),
    )


def _breakdown(record: ForecastRecord) -> Grid:
    return table(
        ("workload", "D", "I", "unmergeable", "outside", "KSM's own", "beyond"),
        [
            (name, *(mib(parts[f"{part}_bytes"]) for part in _PARTS))
            for name, parts in record.guest_breakdown.items()
        ],
        title="One guest, MiB",
    )


def _remarks(record: ForecastRecord, cells_left_out: int) -> list[str]:
    remarks = [
        UNITS,
        "With KSM off: shared between guests (D), duplicates within (I), unmergeable, outside guest memory "
        "(QEMU, page tables, kernel); with KSM: its own memory, and what is freed beyond its counters.",
    ]
    if record.scope == HOST:
        remarks.append(f"Host with no guest: {record.base_bytes / MIB:.0f} MiB.")
    remarks += [
        f"{one.workload} with {record.policy}, were nothing shared across workloads: "
        f"{one.used_on_apart_bytes / MIB:.0f} MiB."
        for one in record.predicted
        if len(one.mix) > 1
    ]
    remarks += record.assumptions
    if any(one.used_on.half_width_bytes is None for one in record.predicted):
        remarks.append(
            "No interval where there are too few cells: measure three numbers of guests, or two boots."
        )
    if cells_left_out:
        used = len(record.calibration.cells)
        remarks.append(f"! {cells_left_out} of {used + cells_left_out} cells are not used:")
    return [*remarks, *(f"! not used: {reason}." for reason in record.calibration.left_out)]


def _runs_named(run_ids: Sequence[str]) -> str:
    """The runs, the first of them by name."""
    names = list(dict.fromkeys(run_ids))
    more = f" and {len(names) - _RUNS_NAMED} more" if len(names) > _RUNS_NAMED else ""
    return f"run{'' if len(names) == 1 else 's'} {', '.join(names[:_RUNS_NAMED])}{more}"


def count(guests: int | None) -> str:
    """A limit; None: beyond what was looked at."""
    return f">{MOST_GUESTS}" if guests is None else str(guests)


def mib(value: float | None, decimals: int = 1) -> str:
    """Bytes in MiB, "-" where they are not known."""
    return "-" if value is None else f"{value / MIB:.{decimals}f}"


def _half(interval: IntervalBytes) -> str:
    half = interval.half_width_bytes
    return "none" if half is None else f"±{half / MIB:.0f}"

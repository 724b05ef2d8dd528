"""A forecast as text: how many more fit and what that costs, on one screen; then what it rests on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from analysis.model.sharing import HOST, MOST_GUESTS, mean_of_known, scaled
from analysis.plan.design import MIB
from analysis.records.loading import CellRecords
from analysis.records.models import ForecastRecord, IntervalBytes, LoadForecast
from analysis.report.quantities import QUANTITIES, UNITS
from analysis.report.tables import Grid, Part, heading, notes, table

SAFE, AT_RISK, LACKING = (QUANTITIES[name] for name in ("safe_mib", "at_risk_mib", "lacking_mib"))
CPU, SETTLED = QUANTITIES["ksmd_cpu_seconds"], QUANTITIES["converged_after_seconds"]
_RUNS_NAMED = 12
_PARTS = ("between", "within", "unmergeable", "outside", "ksm", "uncounted")


@dataclass(frozen=True)
class Merging:
    """What merging took where the most guests of a workload were measured: means over these cells.

    ``settled_seconds``: None where it is not known of all of them.
    """

    guests: int
    ksmd_cpu_seconds: float
    settled_seconds: float | None


def merging(cells: Sequence[CellRecords]) -> dict[str, Merging]:
    """By workload, what merging took in complete cells."""
    found = {}
    for workload in sorted({cell.cell.workload for cell in cells}):
        mine = [cell for cell in cells if cell.cell.workload == workload]
        guests = max(cell.cell.guests for cell in mine)
        seen = [cell.merge.observed for cell in mine if cell.cell.guests == guests]
        found[workload] = Merging(
            guests,
            fmean(one.samples.ksmd_cpu_seconds[-1] - one.samples.ksmd_cpu_seconds[0] for one in seen),
            mean_of_known(one.converged_after_seconds for one in seen),
        )
    return found


def forecast_parts(record: ForecastRecord, cells: Sequence[CellRecords], cells_left_out: int) -> list[Part]:
    """The forecast, its answer first.

    Args:
        record: the forecast.
        cells: those that it rests on.
        cells_left_out: of how many cells its sentences on what is left out are.
    """
    boots = len({cell.boot_key for cell in cells})
    parts: list[Part] = [heading(_question(record)), _limits(record), _costs(record, merging(cells))]
    if record.predicted:
        parts.append(_predicted(record))
    parts.append(notes(_advice(record, boots)))
    remarks = notes(_remarks(record, boots, cells_left_out))
    return [*parts, _rests_on(record, boots), _breakdown(record), remarks]


def _question(record: ForecastRecord) -> str:
    what = f"the memory of {record.hypervisor}" if record.scope == HOST else "an envelope"
    return (
        f"How many guests of {record.guest_memory_bytes / MIB:.0f} MiB fit in {what}, "
        f"{record.capacity_bytes / MIB:.0f} MiB"
    )


def _advice(record: ForecastRecord, boots: int) -> list[str]:
    """What the answer means to whoever owns the host."""
    missed = [f"95 %: by how far forecasts missed measured cells, {_boots(boots)}; which ones, below."]
    return [
        *(missed if _has_intervals(record) else []),
        "Without KSM, with it: so many fit in all, while they do what was measured. Until KSM has settled "
        "new guests need what they need without it.",
        "Safe: so many fit whatever they do, nothing shared and all of their memory in use. With more the "
        "host relies on its guests staying alike; lacking is what it would be short of if none did.",
        "What KSM costs the guests in speed: cells with -e probes=5, and playbooks/capacity.yml, measure it; "
        "`report` shows it.",
    ]


def _rests_on(record: ForecastRecord, boots: int) -> str:
    cells, bases = record.calibration.cells, len(record.calibration.bases)
    measured = record.calibration.guest_memory_bytes or record.guest_memory_bytes
    size = "" if measured == record.guest_memory_bytes else f" of guests of {measured / MIB:.0f} MiB"
    numbers = {
        name: sorted({cell.guests for cell in cells if cell.workload == name})
        for name in sorted({cell.workload for cell in cells})
    }
    counted = sorted({cell.guests for cell in cells if "census" in cell.records})
    what = "host memory" if record.scope == HOST else "memory of the QEMU processes"
    return (
        f"What this rests on. Forecast of the {what} of {record.hypervisor}, policy {record.policy}, guests "
        f"of {record.guest_memory_bytes / MIB:.0f} MiB, from {len(cells)} measured cells{size}, "
        f"{_boots(boots)}, of {_runs_named([cell.run_id for cell in cells])}: "
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
        "95 %",
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
            "none" if one.saved is None else _half(one.saved, one.guests, 1),
            SAFE.number(one.safe_bytes / MIB),
            AT_RISK.number(one.at_risk_bytes / MIB),
        )
        for one in record.predicted
    ]
    return table(heads, rows, title="Memory used")


def _limits(record: ForecastRecord) -> Grid:
    return table(
        ("load", "without\nKSM", f"with\n{record.policy}", "\n95 %", "\nmore", "\nsafe"),
        [_limit(load) for load in record.loads],
        title="Guests",
    )


def _limit(load: LoadForecast) -> tuple[str, ...]:
    limits = load.limits
    interval = load.curve.on_low_bytes[0] is not None
    return (
        load.workload,
        count(limits.off),
        count(limits.on),
        f"{count(limits.on_low)} to {count(limits.on_high)}" if interval else "no interval",
        "-" if limits.on is None or limits.off is None else f"{limits.on - limits.off:+d}",
        count(limits.safe),
    )


def _costs(record: ForecastRecord, took: Mapping[str, Merging]) -> Grid:
    heads = ("load", "guests", "KSM's own\nMiB", LACKING.head, CPU.head, SETTLED.head, "seen with\nguests")
    return table(
        heads,
        [_cost(record, load, took) for load in record.loads],
        title=f"What it costs to run as many as fit with {record.policy}",
    )


def _cost(record: ForecastRecord, load: LoadForecast, took: Mapping[str, Merging]) -> tuple[str, ...]:
    limits = load.limits
    own = None
    if limits.on is not None:
        guests = scaled(load.shares, limits.on)
        each = {name: record.guest_breakdown[name].get("ksm_bytes") for name in guests}
        own = None if None in each.values() else sum(n * (each[name] or 0) for name, n in guests.items())
    seen = took.get(load.workload)
    return (
        load.workload,
        count(limits.on),
        mib(own, 0),
        LACKING.number(None if limits.at_risk_bytes is None else limits.at_risk_bytes / MIB),
        CPU.number(None if seen is None else seen.ksmd_cpu_seconds),
        SETTLED.number(None if seen is None else seen.settled_seconds),
        "-" if seen is None else str(seen.guests),
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


def _remarks(record: ForecastRecord, boots: int, cells_left_out: int) -> list[str]:
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
    if not _has_intervals(record):
        remarks.append("No interval, of too few cells: measure three numbers of guests, or two boots.")
    elif boots == 1:
        remarks.append("! All cells are of one boot: how boots differ is not in the intervals.")
    if cells_left_out:
        used = len(record.calibration.cells)
        remarks.append(f"! {cells_left_out} of {used + cells_left_out} cells are not used:")
    return [*remarks, *(f"! not used: {reason}." for reason in record.calibration.left_out)]


def _has_intervals(record: ForecastRecord) -> bool:
    return all(load.curve.on_low_bytes[0] is not None for load in record.loads)


def _boots(number: int) -> str:
    return "1 boot" if number == 1 else f"{number} boots"


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


def _half(interval: IntervalBytes, guests: int = 1, decimals: int = 0) -> str:
    """Half of an interval, for each of so many guests."""
    half = interval.half_width_bytes
    return "none" if half is None else f"±{half / guests / MIB:.{decimals}f}"

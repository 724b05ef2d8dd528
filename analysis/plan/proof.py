"""The forecasts that a run is given to prove: named in its plan before anything is measured.

Used on the controller by the Ansible actions ``plan`` and ``capacity_plan``. What a run names is found again
by its digest, so that neither another forecast nor a changed one can be scored as held out afterwards.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.plan.design import MIB, Cell, DesignError
from analysis.plan.mix import load_name
from analysis.records.forecasts import Forecast, alteration, load_forecasts
from analysis.records.models import ForecastRecord, NamedForecast

VARIABLE = "forecast"


def given_forecasts(value: Any) -> list[Forecast]:
    """The forecasts in these files, with commas between; none for "".

    Raises DesignError for a file that is missing, damaged, no forecast, changed since, or given twice.
    """
    parts = value if isinstance(value, list | tuple) else str(value).split(",")
    paths = [Path(text).expanduser() for part in parts if (text := str(part).strip())]
    if not paths:
        return []
    found, problems = load_forecasts(Path(), paths)
    changed = [f"{one.path}: {problem}" for one in found if (problem := alteration(one))]
    if problems or changed:
        raise _refusal(f"cannot be used: {'; '.join([*problems, *changed])}")
    if len({one.record.digest for one in found}) < len(found):
        raise _refusal("has one forecast twice")
    return found


def named(forecasts: Sequence[Forecast]) -> list[NamedForecast]:
    """What a run holds of the forecasts that it is given."""
    return [
        NamedForecast(
            forecast_id=one.record.forecast_id, created_at=one.record.created_at, digest=one.record.digest
        )
        for one in forecasts
    ]


def check_cells(forecasts: Sequence[Forecast], cells: Sequence[Cell]) -> None:
    """Each of the forecasts must cover some of the cells. Raises DesignError."""
    for one in forecasts:
        if not any(covers(one.record, cell) for cell in cells):
            numbers: dict[str, list[str]] = {}
            for predicted in one.record.predicted:
                numbers.setdefault(predicted.workload, []).append(str(predicted.guests))
            loads = "; ".join(f"{load} at N = {', '.join(ns)}" for load, ns in numbers.items())
            raise _refusal(
                f"names {one.path}, which covers no cell of this run: it predicts {loads or 'limits alone'}, "
                f"{_kind(one.record)}"
            )


def check_capacity(
    forecasts: Sequence[Forecast],
    *,
    workload: str,
    policy: str,
    envelope_bytes: int | None,
    guest_memory_bytes: int,
    hypervisors: Sequence[str],
) -> None:
    """Each of the forecasts must speak of the limits of this capacity run. Raises DesignError.

    How much memory a host has, where the guests fill all of it, is not known before the run.
    """
    for one in forecasts:
        record = one.record
        capacity_bytes = record.capacity_bytes if record.scope == "envelope" else None
        fits = (
            workload in [load.workload for load in record.loads]
            and record.policy == policy
            and capacity_bytes == envelope_bytes
            and record.guest_memory_bytes == guest_memory_bytes
            and record.hypervisor in hypervisors
        )
        if not fits:
            where = f"{record.capacity_bytes / MIB:.0f} MiB of the {record.scope}"
            raise _refusal(
                f"names {one.path}, which says nothing of this run: it gives the limits of "
                f"{', '.join(load.workload for load in record.loads)} in {where}, {_kind(record)}"
            )
        if envelope_bytes is not None and not counts_ksm(record):
            raise _refusal(f"names {one.path}, which leaves KSM's own memory out of the envelope")


def counts_ksm(forecast: ForecastRecord) -> bool:
    """Whether KSM's own memory is in what a forecast says of an envelope; it was not before admission was."""
    return all(load.curve.admission_bytes is not None for load in forecast.loads)


def covers(forecast: ForecastRecord, cell: Cell) -> bool:
    """Whether a forecast predicts what this cell measures."""
    return (
        (forecast.hypervisor, forecast.policy, forecast.guest_memory_bytes)
        == (cell.hypervisor, cell.policy, cell.guest_memory_bytes)
    ) and (load_name(cell.workload), cell.guests) in {
        (one.workload, one.guests) for one in forecast.predicted
    }


def _kind(record: ForecastRecord) -> str:
    return (
        f"under {record.policy}, guests of {record.guest_memory_bytes / MIB:.0f} MiB on {record.hypervisor}"
    )


def _refusal(words: str) -> DesignError:
    return DesignError(
        f"{VARIABLE} {words.rstrip('.')}: allowed are files that `python -m analysis forecast --out` has "
        "written for this run."
    )

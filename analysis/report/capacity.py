"""Capacity runs as text: the way to the limits, what it cost, and what divergence of merged pages did."""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.measure.probes import KSMD
from analysis.model.capacity import ActualLimit, FoundLimits, found_limits
from analysis.model.divergence import Divergence
from analysis.model.judging import CapacityJoin, JudgedRun
from analysis.model.performance import Cost, costs, relation, steps_table
from analysis.plan.design import MIB
from analysis.plan.policies import OFF
from analysis.records.capacity import CapacityRun
from analysis.report.forecast import count
from analysis.report.performance import differing
from analysis.report.quantities import COSTS, QUANTITIES, STEPS
from analysis.report.tables import Grid, Part, heading, notes, table

_HELD = {True: "it held", False: "it did NOT hold", None: "whether it holds is not known"}


def capacity_parts(judged: JudgedRun) -> list[Part]:
    """One capacity run beside what was forecast of it."""
    run = judged.run
    where = "host" if run.envelope_bytes is None else "envelope"
    parts: list[Part] = [
        heading(
            f"Capacity run {run.run_id}: {run.workload} on {run.hypervisor}, guests of "
            f"{run.guest_memory_bytes / MIB:.0f} MiB in {run.capacity_bytes / MIB:.0f} MiB ({where})"
        )
    ]
    remarks = []
    if run.arms:
        steps = steps_table(run)
        both = relation(steps)
        parts.append(_limits(run, judged.joins))
        parts.append(_steps(steps))
        if lost := costs(both):
            parts.append(_costs(lost))
        remarks += _cost_remarks(both)
        remarks += _step_remarks(steps)
        remarks += _limit_remarks(found_limits(run))
    for seen in judged.divergences:
        remarks += divergence_lines(seen)
    remarks += [f"! {reason}." for reason in judged.refused]
    return [*parts, notes(remarks)]


def divergence_lines(seen: Divergence) -> list[str]:
    """One divergence in words."""
    rate = "unknown" if seen.mean_rate is None else f"{seen.mean_rate / MIB:.0f} MiB/s"
    psi = "unknown" if seen.psi_memory_percent is None else f"{seen.psi_memory_percent:.1f} %"
    lasts = "unknown" if seen.free_seconds is None else f"{seen.free_seconds:.1f} s"
    cow = "unknown" if seen.cow_ksm is None else str(seen.cow_ksm)
    live = "All guests live" if seen.survived else f"{seen.guests_alive} of {seen.guests} guests live"
    predicted = "" if seen.predicted_part is None else f" (forecast: {100 * seen.predicted_part:.0f} %)"
    if seen.full_part is None or seen.full_seconds is None:
        end = f"{100 * seen.part:.0f} % of what they hold differed, and it still fits{predicted}."
    else:
        end = (
            f"full when {100 * seen.full_part:.0f} % of what they hold differed{predicted}, "
            f"{seen.full_seconds:.0f} s after the first request."
        )
    lines = [
        f"Divergence, {seen.workload}, {seen.policy}, boot {seen.boot}, {seen.guests} guests: {end}",
        f"{seen.regained_bytes / MIB:.0f} MiB regained by the guests, {rate} on average, "
        f"{seen.peak_rate / MIB:.0f} MiB/s at the peak, at which what was free would have lasted {lasts}; "
        f"tasks of the host waited for memory for {psi} of the time; copy-on-write faults: {cow}. {live}; "
        f"peak use {seen.peak_used_bytes / MIB:.0f} of {seen.capacity_bytes / MIB:.0f} MiB.",
    ]
    if seen.safe_bytes is not None:
        lines.append(
            f"The safe need of these guests was forecast as {seen.safe_bytes / MIB:.0f} MiB: "
            f"{_HELD[seen.safe_holds]}."
        )
    if not seen.whole:
        lines.append("! The series ended before every guest had answered: what came later is not in it.")
    return lines


def _steps(steps: pd.DataFrame) -> Grid:
    # Without a probe most of them are not known.
    names = [name for name in STEPS if steps[name].notna().any()]
    return table(
        ("policy", "boot", "N", "used\nMiB", "peak\nMiB", *(QUANTITIES[name].head for name in names)),
        [
            (
                str(row["policy"]),
                str(row["boot"]),
                str(row["guests"]),
                _number(row["used_bytes"] / MIB, 0),
                _number(row["peak_bytes"] / MIB, 0),
                *(QUANTITIES[name].number(row[name]) for name in names),
            )
            for row in steps.to_dict("records")
        ],
        title="Steps: used when settled, and at most while guests were started; probes: medians"
        if names
        else "Steps: settled, and at most",
    )


def _costs(seen: Sequence[Cost]) -> Grid:
    return table(
        ("policy", "N", "boots", "saved\nMiB", *(QUANTITIES[name].head for name in COSTS)),
        [
            (
                one.policy,
                str(one.guests),
                "-" if one.saved_bytes is None else str(one.saved_bytes.n_boots),
                "-" if one.saved_bytes is None else _number(one.saved_bytes.mean / MIB, 0),
                *(QUANTITIES[name].estimate(one.lost[name]) for name in COSTS),
            )
            for one in seen
        ],
        title="Memory saved against performance lost, each policy against off at the same N of the same boot",
    )


def _cost_remarks(both: pd.DataFrame) -> list[str]:
    """Which costs are there at all: those whose interval over the boots leaves out 0.

    Of each boot the mean over all N that every boot has.
    """
    remarks = []
    for policy, rows in both.groupby("policy", sort=False):
        everywhere = rows.groupby("guests")["boot"].transform("nunique") == rows["boot"].nunique()
        by_boot = rows[everywhere].groupby("boot")[[KSMD, *COSTS]].mean()
        if len(by_boot) < 2:
            continue
        for one in costs(by_boot.assign(policy=policy, guests=0, saved_bytes=0.0)):
            told = {name: seen for name, seen in one.lost.items() if seen is not None}
            remarks.append(
                f"{policy}, mean over all N with its 95 % interval over {len(by_boot)} boots: "
                f"{differing(told)}."
            )
    return remarks


def _limits(run: CapacityRun, joins: tuple[CapacityJoin, ...]) -> Grid:
    rows, found = [], found_limits(run)
    for policy in run.arms:
        mine = [one for one in found if one.policy == policy]
        join = next((one for one in reversed(joins) if one.policy == policy), None)
        rows += [
            (_named(policy), "steady", _each(one.steady for one in mine), *_predicted(join)),
            (
                _named(policy),
                "admission",
                _each(one.admission for one in mine),
                "-" if join is None else count(join.admission),
                *["-"] * 3,
            ),
        ]
    off = [one for one in found if one.policy == OFF]
    safe = [str(one.safe) for one in off if one.safe is not None]
    said = next((count(one.safe) for one in joins), "-")
    rows.append(("any", "safe", ", ".join(safe) or "-", said, *["-"] * 3))
    worst = "worst error of\nthe use, %"
    heads = ("policy", "limit", "found,\nby boot", "predicted", "95 %", worst, "forecast")
    return table(heads, rows, names=2, title="Limits, guests")


def _each(limits: Iterable[ActualLimit | None]) -> str:
    """A limit as each boot found it."""
    words = ["-" if one is None else f"{one.guests}{'' if one.reached else ' or more'}" for one in limits]
    return ", ".join(words) or "-"


def _predicted(one: CapacityJoin | None) -> tuple[str, ...]:
    """The steady limit of a forecast, its interval, how its curve errs, and its name."""
    if one is None:
        return ("-",) * 4
    between = "-"
    if one.predicted_low is not None and one.predicted_high is not None:
        between = f"{one.predicted_low} to {one.predicted_high}"
    worst = _number(None if one.worst_error is None else 100 * one.worst_error, 1)
    return (count(one.predicted), between, worst, one.forecast_id)


def _limit_remarks(found: Sequence[FoundLimits]) -> list[str]:
    """What each limit ran into, and which were not reached."""
    remarks = []
    for one in found:
        for kind, limit in (("steady", one.steady), ("admission", one.admission)):
            if limit is not None:
                remarks.append(f"{_named(one.policy)}, boot {one.boot}, {kind} limit: {limit.reason}.")
    return list(dict.fromkeys(remarks))


def _step_remarks(steps: pd.DataFrame) -> list[str]:
    return [remark for row in steps.to_dict("records") for remark in _step_remark(row)]


def _step_remark(row: Mapping[Hashable, Any]) -> list[str]:
    step = f"{row['policy']}, boot {row['boot']}, {row['guests']} guests"
    remarks = []
    if row["stop"]:
        remarks.append(f"{step}: stopped: {row['stop']}.")
    if row["silent_guests"]:
        remarks.append(f"! {step}: {row['silent_guests']} gave no answer; the medians leave them out.")
    if row["converged"] is False:
        remarks.append(f"! {step}: not converged: KSM was still merging.")
    return remarks


def _named(policy: str) -> str:
    return "KSM off" if policy == OFF else policy


def _number(value: float | None, decimals: int) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{decimals}f}"

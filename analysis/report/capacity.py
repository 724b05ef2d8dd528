"""Capacity runs as text: the way to the limit, what it cost, and what divergence of merged pages did."""

import math
from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from analysis.model.capacity import Divergence, actual_limit, relation, steps_table
from analysis.model.judging import CapacityJoin, JudgedRun
from analysis.plan.design import MIB
from analysis.plan.policies import OFF
from analysis.records.capacity import CapacityRun
from analysis.report.forecast import count
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
        parts.append(_steps(steps))
        both = relation(steps)
        if not both.empty:
            parts.append(_costs(both))
        parts.append(_limits(run, judged.joins))
        remarks += _step_remarks(steps)
        remarks += [
            f"{_named(policy)}: {limit.reason}."
            for policy, arm in run.arms.items()
            if not (limit := actual_limit(arm)).reached
        ]
    for seen in judged.divergences:
        remarks += divergence_lines(seen)
    remarks += [f"! {reason}." for reason in judged.refused]
    return [*parts, notes(remarks)]


def divergence_lines(seen: Divergence) -> list[str]:
    """One divergence in words."""
    rate = "unknown" if seen.mean_rate is None else f"{seen.mean_rate / MIB:.0f} MiB/s"
    lines = [
        f"Divergence, {seen.workload}, {seen.policy}, {seen.guests} guests: "
        f"{seen.regained_bytes / MIB:.0f} MiB regained by the guests, {rate} on average, "
        f"{seen.peak_rate / MIB:.0f} MiB/s at the peak; copy-on-write faults: "
        f"{'unknown' if seen.cow_ksm is None else seen.cow_ksm}.",
        f"Write latency p99: {_number(seen.p99_before_us, 1)} µs before, "
        f"{_number(seen.p99_during_us, 1)} µs during. "
        f"{'All guests live' if seen.survived else f'{seen.guests_alive} of {seen.guests} guests live'}; "
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
    return table(
        ("policy", "N", "used\nMiB", *(QUANTITIES[name].head for name in STEPS)),
        [
            (
                str(row["policy"]),
                str(row["guests"]),
                _number(row["used_bytes"] / MIB, 0),
                *(QUANTITIES[name].number(row[name]) for name in STEPS),
            )
            for row in steps.to_dict("records")
        ],
    )


def _costs(both: pd.DataFrame) -> Grid:
    return table(
        ("policy", "N", "saved\nMiB", *(QUANTITIES[name].head for name in COSTS)),
        [
            (
                str(row["policy"]),
                str(row["guests"]),
                _number(row["saved_bytes"] / MIB, 0),
                *(QUANTITIES[name].number(row[name]) for name in COSTS),
            )
            for row in both.to_dict("records")
        ],
        title="Memory saved against performance lost, each policy against off at the same N",
    )


def _limits(run: CapacityRun, joins: tuple[CapacityJoin, ...]) -> Grid:
    rows = []
    for policy, steps in run.arms.items():
        limit = actual_limit(steps)
        actual = f"{limit.guests}{'' if limit.reached else ' or more'}"
        mine = [one for one in joins if one.policy == policy]
        rows += [(_named(policy), actual, *_predicted(one)) for one in mine]
        rows += [] if mine else [(_named(policy), actual, *["-"] * 5)]
    heads = ("policy", "actual", "predicted", "95 %", "safe", "worst error of\nthe use, %", "forecast")
    return table(heads, rows, title="Limit, guests")


def _predicted(one: CapacityJoin) -> tuple[str, ...]:
    between = "-"
    if one.predicted_low is not None and one.predicted_high is not None:
        between = f"{one.predicted_low} to {one.predicted_high}"
    return (
        count(one.predicted),
        between,
        "-" if one.policy == OFF else count(one.safe),
        _number(None if one.worst_error is None else 100 * one.worst_error, 1),
        one.forecast_id,
    )


def _step_remarks(steps: pd.DataFrame) -> list[str]:
    return [remark for row in steps.to_dict("records") for remark in _step_remark(row)]


def _step_remark(row: Mapping[Hashable, Any]) -> list[str]:
    step = f"{row['policy']}, {row['guests']} guests"
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

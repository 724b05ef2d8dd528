"""Figures of capacity runs: the way to the limits, what it costs, limits predicted and found, divergence."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib as mpl
import pandas as pd

mpl.use("Agg")
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.model.capacity import FoundLimits, found_limits, used_series
from analysis.model.divergence import Divergence, saved_series
from analysis.model.judging import JudgedRun
from analysis.model.performance import steps_table
from analysis.plan.design import MIB
from analysis.plan.policies import OFF as NO_KSM
from analysis.records.capacity import CapacityRun
from analysis.records.models import DivergenceRecord, LoadForecast
from analysis.report.figures import COLOURS, GAIN, GREY, LOSS, ON, FigureError, entitle
from analysis.report.forecast_figures import GIB, STYLE, draw_limits, mark, predicted_lines

_PANELS = (
    ("touch_mib_per_second", "memory touched, MiB/s a guest"),
    ("cpu_iterations_per_second", "CPU work, iterations/s a guest"),
    ("write_latency_p50_us", "write latency p50, µs"),
    ("write_latency_p99_us", "write latency p99, µs"),
    ("read_cpu_us_per_mib", "host CPU for a MiB read, µs"),
    ("operation_cpu_us", "host CPU for an operation, µs"),
    ("ksmd_percent", "ksmd, % of one CPU"),
    ("cow_ksm_per_second", "copy-on-write of merged pages, 1/s"),
)
# How each limit is drawn
_KINDS = {"steady": "o", "admission": "^", "safe": "s"}


def capacity_figure(run: CapacityRun, loads: Mapping[str, LoadForecast]) -> Figure:
    """Actual use against N by policy, over the predicted curves, with predicted and actual limits.

    Hollow marks: the most that was used while the last guests were started.
    ``loads``: by policy, the load of the forecast that predicts the run; none draws what was measured alone.
    Raises FigureError when the run has no step.
    """
    if not run.arms:
        raise FigureError("there is nothing to draw: the run has no step.")
    table = steps_table(run)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.5, 5.2), layout="constrained")
        axes = figure.subplots()
        arms = _arms(run)
        for number, (policy, load) in enumerate(loads.items()):
            colour, _label = arms[policy]
            predicted_lines(axes, load, policy, colour, suffix=", predicted", alone=number == 0)
        for policy in run.arms:
            colour, label = arms[policy]
            mine = table[table["policy"] == policy]
            axes.plot(
                mine["guests"],
                mine["peak_bytes"] / GIB,
                linestyle="none",
                marker="o",
                markersize=5,
                markerfacecolor="none",
                color=colour,
                alpha=0.6,
            )
            axes.plot(
                mine["guests"],
                mine["used_bytes"] / GIB,
                linestyle="none",
                marker="o",
                markersize=5,
                markeredgecolor="white",
                color=colour,
                label=f"{label}, measured",
            )
            stopped = mine[mine["stop"] != ""]
            axes.plot(
                stopped["guests"],
                stopped["used_bytes"] / GIB,
                linestyle="none",
                marker="x",
                markersize=9,
                markeredgewidth=2,
                color=colour,
            )
        for (policy, kind), guests in _reached(run).items():
            for number in guests:
                axes.axvline(number, color=arms[policy][0], linewidth=1.2, linestyle="-")
            height = 0.02 if kind == "steady" else 0.06
            mark(axes, guests[-1], f"{kind} {', '.join(map(str, guests))}", height)
        draw_limits(axes, list(loads.values()), run.capacity_bytes, drawn=float(table["guests"].max()))
        axes.set_xlabel("guests running (crosses: beyond the limit; hollow: the most while they started)")
        axes.set_ylabel("memory used, GiB")
        figure.legend(loc="outside lower left", ncols=3, frameon=False, fontsize=9)
        entitle(
            figure,
            f"{run.workload.replace('_', ' ')}: to the limit, {run.guest_memory_bytes / MIB:.0f} MiB a guest",
        )
    return figure


def _reached(run: CapacityRun) -> dict[tuple[str, str], list[int]]:
    """The limits that were reached, by policy and kind, over the boots."""
    found: dict[tuple[str, str], set[int]] = {}
    for one in found_limits(run):
        for kind, limit in (("steady", one.steady), ("admission", one.admission)):
            if limit is not None and limit.reached:
                found.setdefault((one.policy, kind), set()).add(limit.guests)
    return {key: sorted(guests) for key, guests in found.items()}


def performance_figure(run: CapacityRun) -> Figure:
    """Probes and host against N, with KSM off and each policy. FigureError when the run has no step."""
    if not run.arms:
        raise FigureError("there is nothing to draw: the run has no step.")
    table = steps_table(run)
    means = table[table["guests"] > 0].groupby(["policy", "guests"])[[name for name, _ in _PANELS]].mean()
    arms, found = _arms(run), found_limits(run)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 9.2), layout="constrained")
        panels = figure.subplots(4, 2, sharex=True).ravel()
        for axes, (name, title) in zip(panels, _PANELS, strict=True):
            for policy, (colour, label) in arms.items():
                mine = means.loc[policy][name] if policy in means.index else pd.Series(dtype=float)
                look: dict[str, Any] = {"color": colour, "marker": "o", "markersize": 4, "linewidth": 1.4}
                axes.plot(mine.index, mine, label=label, **look)
            for one in found:
                if one.steady.reached:
                    axes.axvline(one.steady.guests, color=arms[one.policy][0], linewidth=1, linestyle="--")
            axes.set_ylim(bottom=0)
            axes.set_title(title, fontsize=10, loc="left")
        for axes in panels[-2:]:
            axes.set_xlabel("guests running (dashed: steady limit met)")
        figure.legend(
            *panels[0].get_legend_handles_labels(),
            loc="outside lower left",
            ncols=max(2, len(arms)),
            frameon=False,
            fontsize=9,
        )
        load = run.workload.replace("_", " ")
        entitle(figure, f"{load}: performance on the way to the limit, one guest probed at a time")
    return figure


def limits_figure(judged: Sequence[JudgedRun]) -> Figure:
    """Predicted against actual limit of every capacity run, each limit of each arm and boot a mark.

    Raises FigureError when there is none of both.
    """
    marks = [mark for one in judged for mark in _limit_marks(one)]
    if not marks:
        raise FigureError("there is nothing to draw: no limit was both predicted and found.")
    loads = list(dict.fromkeys(load for load, *_rest in marks))
    colours = dict(zip(loads, cycle(COLOURS), strict=False))
    with mpl.rc_context({**STYLE, "axes.grid.axis": "both"}):
        figure = Figure(figsize=(6.4, 6.8), layout="constrained")
        axes = figure.subplots()
        far = max(max(predicted, found) for _load, _kind, predicted, found, _off in marks) * 1.1 + 1
        axes.plot([0, far], [0, far], color=GREY, linewidth=1)
        for load, kind, predicted, found, off in marks:
            filled = "white" if off else colours[load]
            axes.plot(
                predicted,
                found,
                marker=_KINDS[kind],
                color=colours[load],
                markerfacecolor=filled,
                markersize=7,
                linestyle="none",
            )
        axes.set(xlim=(0, far), ylim=(0, far), aspect="equal")
        axes.set_xlabel("predicted limit, guests")
        axes.set_ylabel("limit found, guests (hollow: KSM off)")
        keys = [
            Line2D([], [], linestyle="none", marker=mark, color=GREY, label=kind)
            for kind, mark in _KINDS.items()
        ] + [Line2D([], [], linewidth=4, color=colours[load], label=load) for load in loads]
        figure.legend(handles=keys, loc="outside lower left", ncols=3, frameon=False, fontsize=9)
        entitle(figure, "Limits: predicted and found")
    return figure


def _limit_marks(judged: JudgedRun) -> list[tuple[str, str, int, int, bool]]:
    """(load, kind of limit, predicted, found, whether KSM was off) of each limit that has both."""
    load, marks = judged.run.workload.replace("_", " "), []
    for join in judged.joins:
        off = join.policy == NO_KSM
        for actual in join.actual:
            for kind, predicted, found in _pairs(join.predicted, join.admission, join.safe, actual):
                # What is safe does not ask for the policy.
                if predicted is not None and found is not None and (kind != "safe" or off):
                    marks.append((load, kind, predicted, found, off))
    return marks


def _pairs(
    steady: int | None, admission: int | None, safe: int | None, actual: FoundLimits
) -> list[tuple[str, int | None, int | None]]:
    reached = [
        None if limit is None or not limit.reached else limit.guests
        for limit in (actual.steady, actual.admission)
    ]
    found = (*reached, actual.safe)
    return list(zip(_KINDS, (steady, admission, safe), found, strict=True))


def divergence_figure(record: DivergenceRecord, seen: Divergence) -> Figure:
    """Memory saved and used against time while one merged guest after another diverges."""
    samples, turns = record.observed.samples, record.observed.turns
    seconds = samples.seconds
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 4.6), layout="constrained")
        axes = figure.subplots()
        used = [value / GIB for value in used_series(record, samples)]
        axes.plot(seconds, used, color=ON, linewidth=1.8, label="used")
        axes.plot(
            seconds, [v / GIB for v in saved_series(record)], color=GAIN, linewidth=1.8, label="saved by KSM"
        )
        axes.axhline(seen.capacity_bytes / GIB, color=GREY, linewidth=1.2, label="capacity")
        if seen.safe_bytes is not None:
            axes.axhline(
                seen.safe_bytes / GIB, color=LOSS, linewidth=1.2, linestyle="--", label="safe need, predicted"
            )
        last = turns[-1].finished_seconds
        axes.axvspan(
            turns[0].started_seconds,
            seconds[-1] if last is None else last,
            color="#f0f0f0",
            zorder=0,
            label="from the first request to the last answer",
        )
        axes.set_ylim(bottom=0)
        axes.set_xlim(seconds[0], seconds[-1])
        axes.set_xlabel("seconds")
        axes.set_ylabel("GiB")
        figure.legend(loc="outside lower left", ncols=5, frameon=False, fontsize=9)
        entitle(
            figure,
            f"{seen.workload.replace('_', ' ')}: {len(turns)} of {seen.guests} guests, merged by "
            f"{seen.policy}, diverge",
        )
    return figure


def _arms(run: CapacityRun) -> dict[str, tuple[str, str]]:
    """Colour and label of each arm of a run: KSM off, then its policies."""
    labels = {policy: "KSM off" if policy == NO_KSM else policy for policy in (NO_KSM, *run.policies)}
    return {policy: (colour, labels[policy]) for policy, colour in zip(labels, cycle(COLOURS), strict=False)}

"""Figures of forecasts, their validation, capacity runs and divergence."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib as mpl
import pandas as pd

mpl.use("Agg")
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.model.capacity import (
    Cost,
    Divergence,
    FoundLimits,
    costs,
    found_limits,
    relation,
    saved_series,
    steps_table,
    used_series,
)
from analysis.model.judging import JudgedRun
from analysis.model.scoring import ON_USE, SAVED, Group
from analysis.plan.design import MIB
from analysis.plan.policies import OFF as NO_KSM
from analysis.records.capacity import CapacityRun
from analysis.records.models import DivergenceRecord, ForecastRecord, LoadForecast
from analysis.report.figures import COLOURS, DASHES, GAIN, GREY, LOSS, OFF, ON, PAPER, FigureError, entitle

GIB = 1 << 30
_NAIVE_COLOURS = {"constant_saving": PAPER, "no_saving": "#CC79A7"}
# What is validated, its title, and the largest error aimed at in percent
_VALIDATED = ((ON_USE, "memory used, policy on", 1), (SAVED, "memory saved", 3))
# A smaller error is drawn there.
_FLOOR_PERCENT = 0.01
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "axes.axisbelow": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "ksm-testbed",
}
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


def forecast_figure(record: ForecastRecord) -> Figure:
    """Predicted use against N: KSM off, the policy with its interval, all diverged; one panel a load."""
    loads = record.loads
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(max(5.2 * len(loads), 6.4), 4.6), layout="constrained")
        panels = figure.subplots(1, len(loads), sharey=True, squeeze=False)[0]
        for axes, load in zip(panels, loads, strict=True):
            _predicted_lines(axes, load, record.policy)
            _limits(axes, [load], record.capacity_bytes)
            axes.set_title(load.workload.replace("_", " "), fontsize=10, loc="left")
            axes.set_xlabel("guests")
        panels[0].set_ylabel("memory used, GiB")
        figure.legend(
            *panels[0].get_legend_handles_labels(),
            loc="outside lower left",
            ncols=4,
            frameon=False,
            fontsize=9,
        )
        entitle(figure, f"Forecast: how many guests of {record.guest_memory_bytes / MIB:.0f} MiB fit")
    return figure


def validation_figure(group: Group) -> Figure:
    """Absolute errors of held-out cells, of the use and of the saving, ours beside the naive answers'.

    One row for each load and number of guests, one mark for each cell, hollow where the measured use lies
    outside the prediction interval; percent on a log scale.
    """
    loads = group.loads
    with mpl.rc_context({**_STYLE, "axes.grid.axis": "x"}):
        figure = Figure(figsize=(11, 1.9 + 0.36 * len(loads)), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (what, title, aim) in zip(panels, _VALIDATED, strict=True):
            for row, mine in enumerate(loads.values()):
                for name, colour in _NAIVE_COLOURS.items():
                    errors = [one.error(what, naive=name) for one in mine]
                    _error_marks(axes, errors, row, marker="s", color=colour, markersize=5)
                for hollow in (False, True):
                    cells = [one for one in mine if (one.inside(ON_USE) is False) == hollow]
                    ours = [one.error(what) for one in cells]
                    filled = "white" if hollow else GAIN
                    _error_marks(axes, ours, row, marker="o", color=GAIN, markerfacecolor=filled)
            axes.axvline(aim, color=GREY, linewidth=1, linestyle="--")
            axes.set_xscale("log")
            axes.set_xlim(left=_FLOOR_PERCENT * 0.8)
            axes.xaxis.set_major_formatter(lambda value, _place: f"{value:g}")
            axes.tick_params(length=0)
            axes.set_title(title, fontsize=10, loc="left")
            axes.set_xlabel(f"absolute error, % (dashed: the aim, {aim} %)")
        panels[0].set_yticks(range(len(loads)), [f"{load}, N = {guests}" for load, guests in loads])
        panels[0].set_ylim(len(loads) - 0.5, -0.5)
        figure.legend(
            handles=_validation_keys(), loc="outside lower left", ncols=4, frameon=False, fontsize=9
        )
        entitle(figure, f"Forecasts against what was measured: {group.name}; {group.proof}")
    return figure


def _error_marks(axes: Axes, errors: Sequence[float | None], row: int, **look: Any) -> None:
    drawn = [max(100 * abs(error), _FLOOR_PERCENT) for error in errors if error is not None]
    axes.plot(drawn, [row] * len(drawn), linestyle="none", **look)


def _validation_keys() -> list[Line2D]:
    looks: list[tuple[str, str, str, str]] = [
        ("forecast", "o", GAIN, GAIN),
        ("forecast, use outside its 95 % interval", "o", GAIN, "white"),
        *((name.replace("_", " "), "s", colour, colour) for name, colour in _NAIVE_COLOURS.items()),
    ]
    return [
        Line2D([], [], linestyle="none", marker=marker, color=colour, markerfacecolor=filled, label=label)
        for label, marker, colour, filled in looks
    ]


def capacity_figure(run: CapacityRun, loads: Mapping[str, LoadForecast]) -> Figure:
    """Actual use against N by policy, over the predicted curves, with predicted and actual limits.

    Hollow marks: the most that was used while the last guests were started.
    ``loads``: by policy, the load of the forecast that predicts the run; none draws what was measured alone.
    Raises FigureError when the run has no step.
    """
    if not run.arms:
        raise FigureError("there is nothing to draw: the run has no step.")
    table = steps_table(run)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.5, 5.2), layout="constrained")
        axes = figure.subplots()
        arms = _arms(run)
        for number, (policy, load) in enumerate(loads.items()):
            colour, _label = arms[policy]
            _predicted_lines(axes, load, policy, colour, suffix=", predicted", alone=number == 0)
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
        for one in found_limits(run):
            colour, _label = arms[one.policy]
            for kind, limit, height in (("steady", one.steady, 0.02), ("admission", one.admission, 0.06)):
                if limit is not None and limit.reached:
                    axes.axvline(limit.guests, color=colour, linewidth=1.2, linestyle="-")
                    _mark(axes, limit.guests, f"{kind} {limit.guests}", colour, height)
        _limits(axes, list(loads.values()), run.capacity_bytes, drawn=float(table["guests"].max()))
        axes.set_xlabel("guests running (crosses: beyond the limit; hollow: the most while they started)")
        axes.set_ylabel("memory used, GiB")
        figure.legend(loc="outside lower left", ncols=3, frameon=False, fontsize=9)
        entitle(
            figure,
            f"{run.workload.replace('_', ' ')}: to the limit, {run.guest_memory_bytes / MIB:.0f} MiB a guest",
        )
    return figure


def trade_off_figure(run: CapacityRun) -> Figure:
    """Memory saved against performance lost, each policy against off at the same N, marked with its N.

    Means over boots with their 95 % intervals where there are several.
    Raises FigureError when no number of guests was seen with KSM off and under a policy.
    """
    seen = costs(relation(steps_table(run))) if run.arms else []
    if not seen:
        raise FigureError("there is nothing to draw: no number of guests was seen with KSM off and on.")
    policies = list(dict.fromkeys(one.policy for one in seen))
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(13, 4.6), layout="constrained")
        for axes, heading, names in zip(
            figure.subplots(1, 3),
            ("throughput lost, %", "write latency added, %", "host CPU added, %"),
            (
                {"touch_lost_percent": "touching memory", "cpu_lost_percent": "CPU work"},
                {"p50_added_percent": "p50", "p99_added_percent": "p99"},
                {"read_cpu_added_percent": "a MiB read", "operation_cpu_added_percent": "an operation"},
            ),
            strict=True,
        ):
            for policy, dashes in zip(policies, DASHES, strict=False):
                mine = [one for one in seen if one.policy == policy and one.saved_bytes is not None]
                _trade_off_lines(axes, mine, names, dashes, "" if len(policies) == 1 else f"{policy}, ")
            axes.axhline(0, color=GREY, linewidth=0.8)
            axes.set_title(heading, fontsize=10, loc="left")
            axes.set_xlabel("memory saved, GiB (numbers: guests)")
            axes.legend(frameon=False, fontsize=9)
        entitle(
            figure,
            f"{run.workload.replace('_', ' ')}: memory saved against performance lost, {', '.join(policies)} "
            "against KSM off",
        )
    return figure


def _trade_off_lines(
    axes: Axes, seen: Sequence[Cost], names: Mapping[str, str], dashes: str, prefix: str
) -> None:
    for (name, label), colour in zip(names.items(), (OFF, ON), strict=True):
        drawn = [(one, lost) for one in seen if (lost := one.lost[name]) is not None]
        saved = [one.saved_bytes.mean / GIB for one, _lost in drawn if one.saved_bytes is not None]
        axes.errorbar(
            saved,
            [lost.mean for _one, lost in drawn],
            yerr=[lost.half_width or 0.0 for _one, lost in drawn],
            marker="o",
            markersize=4,
            capsize=2,
            color=colour,
            linestyle=dashes,
            label=f"{prefix}{label}",
        )
        for at, (one, lost) in zip(saved, drawn, strict=True):
            axes.annotate(
                f"{one.guests}",
                (at, lost.mean),
                xytext=(0, 5),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )


def performance_figure(run: CapacityRun) -> Figure:
    """Probes and host against N, with KSM off and each policy. FigureError when the run has no step."""
    if not run.arms:
        raise FigureError("there is nothing to draw: the run has no step.")
    table = steps_table(run)
    means = table[table["guests"] > 0].groupby(["policy", "guests"])[[name for name, _ in _PANELS]].mean()
    arms, found = _arms(run), found_limits(run)
    with mpl.rc_context(_STYLE):
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
    with mpl.rc_context({**_STYLE, "axes.grid.axis": "both"}):
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
    with mpl.rc_context(_STYLE):
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


def _predicted_lines(
    axes: Axes,
    load: LoadForecast,
    policy: str,
    colour: str = ON,
    suffix: str = "",
    *,
    alone: bool = True,
) -> None:
    """A forecast's curves; ``alone``: those without a policy, too."""
    curve = load.curve
    guests = curve.guests
    low, high = ([v for v in ends if v is not None] for ends in (curve.on_low_bytes, curve.on_high_bytes))
    if len(low) == len(high) == len(guests):
        axes.fill_between(
            guests,
            [value / GIB for value in low],
            [value / GIB for value in high],
            color=colour,
            alpha=0.2,
            linewidth=0,
            label="95 % prediction interval" if alone else None,
        )
    lines = [(curve.on_bytes, colour, "-", f"{policy}{suffix}")]
    if alone:
        lines.insert(0, (curve.off_bytes, OFF, "-", f"KSM off{suffix}"))
        lines.append((curve.safe_bytes, LOSS, "--", "all pages diverge (safe need)"))
    for needs, its_colour, dashes, label in lines:
        values = [value / GIB for value in needs]
        axes.plot(guests, values, color=its_colour, linestyle=dashes, linewidth=1.6, label=label)


def _limits(
    axes: Axes, loads: Sequence[LoadForecast], capacity_bytes: float, drawn: float | None = None
) -> None:
    capacity = capacity_bytes / GIB
    axes.axhline(capacity, color=GREY, linewidth=1.4)
    axes.annotate(
        f"capacity {capacity:.1f} GiB",
        (0, capacity),
        xycoords=("axes fraction", "data"),
        xytext=(4, 4),
        textcoords="offset points",
        fontsize=8,
        color=GREY,
    )
    far = [drawn or 0.0]
    for load in loads:
        for limit, colour, height, label in (
            (load.limits.safe, LOSS, 0.16, "safe"),
            (load.limits.on, ON, 0.09, "expected"),
            (load.limits.admission, ON, 0.12, "admitted"),
        ):
            if limit:
                axes.plot([limit] * 2, [0, capacity], color=colour, linewidth=1, linestyle=":")
                axes.plot(limit, capacity, marker="v", color=colour, markersize=7)
                _mark(axes, limit, f"{label} {limit}", colour, height)
                far.append(limit)
    axes.set_ylim(0, capacity * 1.25)
    axes.set_xlim(0, max(far) * 1.18 + 1)


def _mark(axes: Axes, guests: float, words: str, colour: str, height: float) -> None:
    left = words.startswith("safe")
    axes.annotate(
        words,
        (guests, height),
        xycoords=("data", "axes fraction"),
        xytext=(-3 if left else 3, 0),
        textcoords="offset points",
        ha="right" if left else "left",
        fontsize=8,
        color=colour,
    )

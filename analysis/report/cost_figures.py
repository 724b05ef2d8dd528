"""Figures of what guests lose in performance for the memory saved."""

from collections.abc import Mapping, Sequence
from itertools import cycle

import matplotlib as mpl

mpl.use("Agg")
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.measure.probes import KSMD, OPERATION_CPU, P99
from analysis.measure.statistics import Estimate
from analysis.model.performance import Cost
from analysis.plan.workloads import in_order
from analysis.report.figures import (
    COLOURS,
    DASHES,
    GREY,
    MARKERS,
    OFF,
    ON,
    FigureError,
    drawn_half_width,
    entitle,
    legend_entries,
)
from analysis.report.forecast_figures import GIB, STYLE

_PANELS = {
    "touch_lost_percent": "touching memory, throughput lost, %",
    "cpu_lost_percent": "CPU work lost, %",
    "p50_added_percent": "median write, longer by %",
    P99: "p99 of writes, longer by %",
    "read_cpu_added_percent": "host CPU for a MiB read, added %",
    OPERATION_CPU: "host CPU for an operation, added %",
    KSMD: "ksmd while they were probed, % of one CPU",
}
_BARS = "Mean of the boots; bars: 95 % interval; numbers: guests."


def trade_off_figure(load: str, seen: Sequence[Cost]) -> Figure:
    """Memory saved against performance lost, each policy against off at the same N, marked with its N.

    Beside it the share of a CPU that ksmd took while the guests were probed.
    Means over boots with their 95 % intervals where there are several.
    Raises FigureError when no number of guests was seen with KSM off and under a policy.
    """
    if not seen:
        raise FigureError("there is nothing to draw: no number of guests was seen with KSM off and on.")
    policies = list(dict.fromkeys(one.policy for one in seen))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 8.4), layout="constrained")
        panels = figure.subplots(2, 2).ravel()
        for axes, heading, names in zip(
            panels,
            ("throughput lost, %", "write latency added, %", "host CPU added, %", "ksmd, % of one CPU"),
            (
                {"touch_lost_percent": "touching memory", "cpu_lost_percent": "CPU work"},
                {"p50_added_percent": "p50", "p99_added_percent": "p99"},
                {"read_cpu_added_percent": "a MiB read", "operation_cpu_added_percent": "an operation"},
                {KSMD: "while guests were probed"},
            ),
            strict=True,
        ):
            for policy, dashes in zip(policies, cycle(DASHES), strict=False):
                mine = [one for one in seen if one.policy == policy]
                _trade_off_lines(axes, mine, names, dashes, "" if len(policies) == 1 else f"{policy}, ")
            axes.axhline(0, color=GREY, linewidth=0.8)
            axes.set_title(heading, fontsize=10, loc="left")
            axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
            axes.set_xlabel("memory saved, GiB")
            if axes.containers:
                axes.legend(frameon=False, fontsize=9)
        figure.supxlabel(_BARS, fontsize=8, color=GREY, x=0.01, ha="left")
        entitle(
            figure,
            f"{load.replace('_', ' ')}: memory saved against performance lost, {', '.join(policies)} "
            "against KSM off",
        )
    return figure


def _numbered(axes: Axes, seen: Sequence[Cost], name: str) -> list[tuple[float, Estimate]]:
    """GiB saved and what was lost, where both are known; the number of guests is written beside each."""
    points = [
        (one.guests, one.saved_bytes.mean / GIB, lost)
        for one in seen
        if (lost := one.ksmd_percent if name == KSMD else one.lost[name]) is not None
        and one.saved_bytes is not None
    ]
    for guests, saved, lost in points:
        axes.annotate(f"{guests}", (saved, lost.mean), xytext=(4, 3), textcoords="offset points", fontsize=8)
    return [(saved, lost) for _guests, saved, lost in points]


def _trade_off_lines(
    axes: Axes, seen: Sequence[Cost], names: Mapping[str, str], dashes: str, prefix: str
) -> None:
    for (name, label), colour in zip(names.items(), (OFF, ON), strict=False):
        points = _numbered(axes, seen, name)
        if not points:
            continue
        axes.errorbar(
            [saved for saved, _lost in points],
            [lost.mean for _saved, lost in points],
            yerr=[lost.half_width or 0.0 for _saved, lost in points],
            marker="o",
            markersize=4,
            capsize=2,
            color=colour,
            linestyle=dashes,
            label=f"{prefix}{label}",
        )


def cell_costs_figure(host: str, loads: Mapping[str, Sequence[Cost]]) -> Figure:
    """What the guests of a host's cells lost, a panel for each cost and one for ksmd, against memory saved.

    A colour for each workload, a mark for each policy, each point with its number of guests. ``loads``: by
    workload, of at least one.
    """
    policies = list(dict.fromkeys(one.policy for seen in loads.values() for one in seen))
    marks = dict(zip(policies, cycle(MARKERS), strict=False))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(14, 7.2), layout="constrained")
        *panels, legend = figure.subplots(2, 4).ravel()
        for axes, (name, title) in zip(panels, _PANELS.items(), strict=True):
            for workload, colour in zip(in_order(loads), cycle(COLOURS), strict=False):
                for policy, mark in marks.items():
                    mine = [one for one in loads[workload] if one.policy == policy]
                    for saved, lost in _numbered(axes, mine, name):
                        axes.errorbar(
                            saved,
                            lost.mean,
                            yerr=drawn_half_width(lost),
                            marker=mark,
                            markersize=5,
                            capsize=2,
                            color=colour,
                            linestyle="none",
                            label=f"{workload.replace('_', ' ')}, {policy}",
                        )
            axes.axhline(0, color=GREY, linewidth=0.8)
            axes.set_xlim(left=0)
            axes.set_title(title, fontsize=10, loc="left")
            axes.set_xlabel("memory saved, GiB")
        handles = legend_entries(panels)
        legend.set_axis_off()
        legend.legend(handles.values(), handles, loc="upper left", frameon=False)
        figure.supxlabel(_BARS, fontsize=8, color=GREY, x=0.01, ha="left")
        entitle(figure, f"{host}: memory saved against what guests lose, against KSM off")
    return figure

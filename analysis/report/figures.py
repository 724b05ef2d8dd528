"""Figures, drawn without a display, PNG or SVG by the file's suffix."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.errors import UserError
from analysis.measure.burndown import burndown
from analysis.measure.ledger import GUEST_REST, HOST_REST, Ledger
from analysis.measure.statistics import PAPER_MIB_PER_VM, Estimate, Summary, exact
from analysis.plan.design import MIB
from analysis.plan.policies import policy_order
from analysis.plan.workloads import focus_of, in_order, title
from analysis.records.loading import CellRecords

FORMATS = (".png", ".svg", ".pdf")

# Okabe and Ito's palette, told apart by people with any colour vision.
OFF, ON, PAPER, GAIN, LOSS = "#0072B2", "#E69F00", "#999999", "#009E73", "#D55E00"
GREY = "#555555"
# One colour for each workload, one dash for each policy
COLOURS = (OFF, ON, GAIN, "#CC79A7", "#56B4E9", LOSS, "#F0E442")
DASHES = ("-", "--", "-.", ":")
PANELS_IN_A_ROW = 3
# So many groups of bars have room for figures in a larger type.
_FEW = 4

_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e5e5e5",
    "axes.axisbelow": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "ksm-testbed",
}


class FigureError(UserError):
    """A figure that cannot be drawn or stored."""


def figure_2(summaries: Sequence[Summary]) -> Figure:
    """The paper's figure 2: host memory used with KSM off and on, saved per VM beside the paper's.

    A group of bars for each workload and policy. Where some guests were restored from a checkpoint and others
    measured as they booted, the restored ones are drawn. The paper gives the saving per VM only, not the
    height of its bars: they are not drawn. It has its three foci alone.
    Raises FigureError when nothing has a mean, or the summaries are of several hosts, numbers or sizes of
    guests, or ways to start them.
    """
    drawn = [summary for summary in summaries if summary.estimates["host_used_off_mib"] is not None]
    if not drawn:
        raise FigureError("there is nothing to draw: no cell may be averaged.")
    drawn = [summary for summary in drawn if summary.start_from == "checkpoint"] or drawn
    if len({(one.hypervisor, one.guests, one.guest_memory_bytes, one.start_from) for one in drawn}) > 1:
        raise FigureError(
            "one figure shows one host, one number and one size of guests: choose a run with --run RUN_ID."
        )
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(max(10, 2.0 * len(drawn)), 4.6), layout="constrained")
        papers = [exact(PAPER_MIB_PER_VM.get(focus_of(summary.workload) or 0)) for summary in drawn]
        left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
        _grouped(
            left,
            drawn,
            [
                ("KSM off", OFF, [summary.estimates["host_used_off_mib"] for summary in drawn]),
                (_on_name(drawn), ON, [summary.estimates["host_used_on_mib"] for summary in drawn]),
            ],
            decimals=0,
        )
        left.set_ylabel("MemTotal − MemAvailable, MiB")
        left.set_title("Host memory used", fontsize=10, loc="left")
        _grouped(
            right,
            drawn,
            [
                ("this testbed", GAIN, [s.estimates["saved_mem_available_mib_per_vm"] for s in drawn]),
                *([("the paper", PAPER, papers)] if any(papers) else []),
            ],
            decimals=1,
        )
        right.set_ylabel("by MemAvailable, MB/VM (MiB)")
        right.set_title("Saved per VM", fontsize=10, loc="left")
        figure.suptitle(
            f"{drawn[0].guests} guests of {drawn[0].guest_memory_bytes >> 20} MB: memory with KSM off and on",
            fontsize=12,
            x=0.01,
            ha="left",
        )
        intervals = any(len(summary.boots) > 1 for summary in drawn)
        figure.supxlabel(
            ("Lines on bars: 95 % t interval over boots. " if intervals else "One boot: no interval. ")
            + (
                "The paper gives its saving per VM only, so its bars of memory used are not drawn."
                if any(papers)
                else "The paper measured none of these."
            ),
            fontsize=8,
            color=GREY,
            x=0.01,
            ha="left",
        )
    return figure


def burndown_figure(cells: Sequence[CellRecords]) -> Figure:
    """Saved per VM against time while KSM merges, one line a cell, a dot where a full scan ended.

    Raises FigureError when there is no cell.
    """
    if not cells:
        raise FigureError("there is nothing to draw: no cell has been measured.")
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        axes = figure.subplots()
        labelled: set[str] = set()
        loads = in_order(records.cell.workload for records in cells)
        policies = sorted({records.cell.policy for records in cells}, key=policy_order)
        for records in cells:
            merge, cell = burndown(records), records.cell
            unit, name = cell.guests * MIB, f"{title(cell.workload)}, {cell.policy}"
            colour = COLOURS[loads.index(cell.workload) % len(COLOURS)]
            dashes = DASHES[policies.index(cell.policy) % len(DASHES)]
            axes.plot(
                merge.seconds,
                [value / unit for value in merge.saved_bytes],
                color=colour,
                linestyle=dashes,
                linewidth=1.5,
                label=None if name in labelled else name,
            )
            labelled.add(name)
            axes.plot(
                [second for _scan, second, _saved in merge.by_scan[1:]],
                [saved / unit for _scan, _second, saved in merge.by_scan[1:]],
                linestyle="none",
                marker="o",
                markersize=3.5,
                color=colour,
            )
            if merge.settled_seconds is not None:
                axes.plot(
                    merge.settled_seconds,
                    merge.saved_bytes[merge.seconds.index(merge.settled_seconds)] / unit,
                    marker="o",
                    markersize=9,
                    markerfacecolor="none",
                    color=colour,
                )
        axes.set_xlabel("seconds since KSM was switched on (dots: full scans; rings: settled)")
        axes.set_ylabel("saved, MB/VM (MiB), gross counters")
        axes.set_title("How the saving grows while KSM merges", fontsize=12, loc="left")
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        axes.set_xlim(left=0)
        axes.legend(frameon=False, fontsize=9)
    return figure


def ledger_figure(ledgers: Sequence[tuple[str, Ledger]]) -> Figure:
    """A waterfall a ledger, from KSM's gross counters to the rise of MemAvailable, MB/VM.

    Args:
        ledgers: title and ledger of each panel.

    Raises FigureError when there is no ledger.
    """
    if not ledgers:
        raise FigureError("there is nothing to draw: no cell has been measured.")
    with mpl.rc_context({**_STYLE, "axes.grid.axis": "x"}):
        columns = min(len(ledgers), PANELS_IN_A_ROW)
        rows = -(-len(ledgers) // columns)
        figure = Figure(figsize=(4.2 * columns + 2.4, 5.0 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
        for axes in panels[len(ledgers) :]:
            figure.delaxes(axes)
        for axes, (name, book) in zip(panels, ledgers, strict=False):
            _waterfall(axes, book)
            axes.set_title(name + (": rest above 5 %" if book.flagged else ""), fontsize=10, loc="left")
            axes.set_xlabel("MB/VM (MiB)")
        figure.suptitle("From KSM's counters to what the host gained", fontsize=12, x=0.01, ha="left")
    return figure


def _waterfall(axes: Axes, book: Ledger) -> None:
    unit = book.guests * MIB
    way = book.available
    names = ["gross counters", *(item.name for item in way.items), "MemAvailable"]
    steps = [item.bytes / unit for item in way.items]
    level = way.start_bytes / unit
    starts, widths, colours = [0.0], [level], [OFF]
    for item, step in zip(way.items, steps, strict=True):
        starts.append(level)
        widths.append(step)
        rest = item.name in (GUEST_REST, HOST_REST)
        colours.append(PAPER if rest else GAIN if step >= 0 else LOSS)
        level += step
    starts.append(0.0)
    widths.append(way.end_bytes / unit)
    colours.append(OFF)
    places = range(len(names))
    axes.barh(places, widths, left=starts, color=colours, height=0.7)
    edge = max(start + max(width, 0) for start, width in zip(starts, widths, strict=True))
    for place, (start, width) in enumerate(zip(starts, widths, strict=True)):
        total = place in (0, len(names) - 1)
        text = f"{width:.1f}" if total else f"{round(width, 1) + 0.0:+.1f}"
        axes.annotate(
            text,
            (max(start, start + width), place),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    low = min(start + min(width, 0) for start, width in zip(starts, widths, strict=True))
    axes.set_xlim(min(0, low * 1.05), edge * 1.16 if edge > 0 else 1)
    axes.set_yticks(places, names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)


def save(figure: Figure, path: Path) -> None:
    """Store a figure in the format of the file's suffix. Raises FigureError when that is not possible."""
    if path.suffix.lower() not in FORMATS:
        raise FigureError(f"--figure is {str(path)!r}: its suffix must be {' or '.join(FORMATS)}.")
    try:
        with mpl.rc_context(_STYLE):
            figure.savefig(path, dpi=160)
    except OSError as error:
        raise FigureError(f"{path} cannot be written: {error.strerror}.") from None


def svg_text(figure: Figure) -> str:
    """The figure as SVG text, the same for the same data."""
    buffer = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _on_name(summaries: Sequence[Summary]) -> str:
    """What the bars of the on arm are called: the policy where all have the same."""
    policies = {summary.policy for summary in summaries}
    return policies.pop() if len(policies) == 1 else "policy on"


def _tick(summary: Summary) -> str:
    """What stands under the bars: workload and policy; a mix has a line for each workload."""
    breaks = {": ": ":\n", ",": ",\n", " fill": "\nfill", "-": "-\n"}
    words = f"{title(summary.workload)}\n{summary.variant}"
    for before, after in breaks.items():
        words = words.replace(before, after)
    return words


def _grouped(
    axes: Axes,
    summaries: Sequence[Summary],
    series: Sequence[tuple[str, str, Sequence[Estimate | None]]],
    decimals: int,
) -> None:
    width = 0.8 / len(series)
    size = 9 if len(summaries) <= _FEW else 7.5
    for number, (name, colour, values) in enumerate(series):
        known = [(place, value) for place, value in enumerate(values) if value is not None]
        places = [place + (number - (len(series) - 1) / 2) * width for place, _value in known]
        bars = axes.bar(
            places,
            [value.mean for _place, value in known],
            width * 0.94,
            # One boot has no interval, which is no interval of width 0.
            yerr=[math.nan if value.half_width is None else value.half_width for _place, value in known]
            if _any_interval(values)
            else None,
            error_kw={"ecolor": "#222222", "elinewidth": 1, "capsize": 3},
            color=colour,
            label=name,
        )
        axes.bar_label(
            bars, [f"{value.mean:.{decimals}f}" for _place, value in known], padding=2, fontsize=size
        )
    axes.set_xticks(
        range(len(summaries)),
        [_tick(summary) for summary in summaries],
        fontsize=size,
    )
    axes.margins(y=0.14)
    axes.tick_params(length=0)
    axes.legend(
        frameon=False,
        loc="lower right",
        bbox_to_anchor=(1, 0.985),
        ncols=len(series),
        fontsize=9,
        borderpad=0,
    )


def _any_interval(values: Sequence[Estimate | None]) -> bool:
    return any(value is not None and value.half_width is not None for value in values)

"""Figures of forecasts and their validation."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.model.scoring import ON_USE, SAVED, Group
from analysis.plan.design import MIB
from analysis.records.models import ForecastRecord, LoadForecast
from analysis.report.figures import GAIN, GREY, LOSS, OFF, ON, PAPER, entitle

GIB = 1 << 30
_NAIVE_COLOURS = {"constant_saving": PAPER, "no_saving": "#CC79A7"}
# What is validated, its title, and the largest error aimed at in percent
_VALIDATED = ((ON_USE, "memory used, policy on", 1), (SAVED, "memory saved", 3))
# A smaller error is drawn there.
_FLOOR_PERCENT = 0.01
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "axes.axisbelow": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "ksm-testbed",
}


def forecast_figure(record: ForecastRecord) -> Figure:
    """Predicted use against N: KSM off, the policy with its interval, all diverged; one panel a load."""
    loads = record.loads
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.2 * len(loads), 4.6), layout="constrained")
        panels = figure.subplots(1, len(loads), sharey=True, squeeze=False)[0]
        for axes, load in zip(panels, loads, strict=True):
            predicted_lines(axes, load, record.policy)
            draw_limits(axes, [load], record.capacity_bytes)
            axes.set_title(load.workload.replace("_", " "), fontsize=10, loc="left")
            axes.set_xlabel("guests")
        panels[0].set_ylabel("memory used, GiB")
        figure.legend(
            *panels[0].get_legend_handles_labels(),
            loc="outside lower left",
            ncols=2 * min(len(loads), 2),
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
    with mpl.rc_context({**STYLE, "axes.grid.axis": "x"}):
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
        entitle(figure, f"Forecasts against what was measured: {group.name}")
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


def predicted_lines(
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


def draw_limits(
    axes: Axes, loads: Sequence[LoadForecast], capacity_bytes: float, drawn: float | None = None
) -> None:
    """The capacity, and each load's predicted limits; ``drawn``: the most guests that are drawn besides."""
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
                mark(axes, limit, f"{label} {limit}", height)
                far.append(limit)
    axes.set_ylim(0, capacity * 1.25)
    axes.set_xlim(0, max(far) * 1.18 + 1)


def mark(axes: Axes, guests: float, words: str, height: float) -> None:
    """Words beside a number of guests, at a part of the height."""
    left = words.startswith("safe")
    axes.annotate(
        words,
        (guests, height),
        xycoords=("data", "axes fraction"),
        xytext=(-3 if left else 3, 0),
        textcoords="offset points",
        ha="right" if left else "left",
        fontsize=8,
    )

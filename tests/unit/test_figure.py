"""Figures: the bars are the means, the files are what their suffixes say, refusals are clear."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.container import BarContainer
from synthetic import MIB, store, synthetic_plan

from analysis.measure.statistics import Summary, summarise
from analysis.measure.table import tidy
from analysis.records.loading import Run, load_run
from analysis.report import figures
from analysis.report.figures import Waterfall
from analysis.report.growth_figure import burndown_figure
from analysis.report.svg import svg_text


@pytest.fixture
def run(results: Path) -> Run:
    saved = {"idle": 60, "constant_fill": 430, "random_fill": 40}
    plan = synthetic_plan(focus="all", boots=2)
    return load_run(store(results, plan, None, lambda cell: saved[cell.workload] + cell.boot))


def bars(axes: Any) -> dict[str, list[float]]:
    groups = [container for container in axes.containers if isinstance(container, BarContainer)]
    return {
        str(group.get_label()): [round(patch.get_height(), 3) for patch in group.patches] for group in groups
    }


def test_figure_2_shows_our_means_and_the_papers_savings(run: Run) -> None:
    left, right = figures.figure_2(summarise(tidy([run]))).axes
    ours = [53.5, 423.5, 33.5]
    assert bars(left) == {"KSM off": [8000] * 3, "ksm": [7197.5, 1647.5, 7497.5]}
    assert bars(right) == {"freed": ours, "MemAvailable": ours, "the paper": [50.6, 440.3, 31.6]}


def test_a_mix_is_drawn_beside_the_foci_without_a_bar_of_the_paper(results: Path, run: Run) -> None:
    mixed = load_run(store(results, synthetic_plan(run_id="mixed", mix="idle=5,random_fill=10")))
    _left, right = figures.figure_2(summarise(tidy([run, mixed]))).axes
    assert bars(right)["freed"] == [53.5, 423.5, 33.5, 92.0]
    assert bars(right)["the paper"] == [50.6, 440.3, 31.6]
    ticks = [tick.get_text() for tick in right.get_xticklabels()]
    assert ticks[0] == "1 idle\nksm"
    assert ticks[3] == "mix:\nidle=5,\nrandom_fill=10\nksm"
    _left, alone = figures.figure_2(summarise(tidy([mixed]))).axes
    assert bars(alone) == {"freed": [92.0], "MemAvailable": [92.0]}
    (axes,) = burndown_figure(mixed.cells).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["mix: idle=5,random_fill=10, ksm"]


def test_policies_are_groups_of_bars_and_lines_of_their_own(results: Path) -> None:
    saved = {"ksm": 100, "advisor": 60}
    plan = synthetic_plan(policies="ksm,advisor")
    run = load_run(store(results, plan, None, lambda cell: saved[cell.policy]))
    left, right = figures.figure_2(summarise(tidy([run]))).axes
    assert bars(left) == {"KSM off": [8000, 8000], "policy on": [6620, 7220]}
    assert bars(right)["freed"] == [92, 52]
    assert [tick.get_text() for tick in right.get_xticklabels()] == ["1 idle\nksm", "1 idle\nadvisor"]
    (axes,) = burndown_figure(run.cells).axes
    lines = {str(line.get_label()): line for line in axes.lines}
    assert lines["1 idle, ksm"].get_color() == lines["1 idle, advisor"].get_color()
    assert lines["1 idle, ksm"].get_linestyle() != lines["1 idle, advisor"].get_linestyle()


def intervals(axes: Any) -> list[tuple[float, float]]:
    """Ends of the lines on the bars."""
    drawn = [
        group for group in axes.containers if isinstance(group, BarContainer) and group.errorbar is not None
    ]
    segments = [
        segment for group in drawn for line in group.errorbar.lines[2] for segment in line.get_segments()
    ]
    return [(float(low), float(high)) for (_x, low), (_same, high) in segments if not math.isnan(low)]


def boots(results: Path, number: int, saved: dict[int, float]) -> list[Summary]:
    plan = synthetic_plan(run_id=f"of{number}", boots=number)
    return summarise(tidy([load_run(store(results, plan, None, lambda cell: saved[cell.boot]))]))


def test_the_axis_holds_every_interval_that_is_drawn(results: Path) -> None:
    left, right = figures.figure_2(boots(results, 3, {1: 10, 2: 100, 3: 400})).axes
    for axes in (left, right):
        ends = intervals(axes)
        assert ends
        low, high = axes.get_ylim()
        assert low <= min(end for end, _high in ends)
        assert high >= max(end for _low, end in ends)
    # Freed 162 on average, standard deviation 204: t(0.975, 2) x 204 / sqrt(3) = 507.
    assert intervals(right)[0] == pytest.approx((162 - 507, 162 + 507), abs=1)


@pytest.mark.parametrize("number", [1, 2])
def test_of_too_few_boots_no_interval_is_drawn_and_it_is_said(results: Path, number: int) -> None:
    figure = figures.figure_2(boots(results, number, {1: 10, 2: 400}))
    assert all(intervals(axes) == [] for axes in figure.axes)
    # Nor does the axis make room for one: that of two boots would reach beyond 2000.
    assert figure.axes[1].get_ylim()[1] < 500
    said = svg_text(figure)
    assert f"No line on fewer than 3 boots (1 idle: {number})" in said
    assert "95 % t interval" not in said


def test_three_boots_have_lines_that_are_explained(results: Path) -> None:
    said = svg_text(figures.figure_2(boots(results, 3, {1: 10, 2: 12, 3: 14})))
    assert "Lines on bars: 95 % t interval over boots." in said
    assert "No line" not in said


def test_hosts_stand_side_by_side(results: Path) -> None:
    saved = {"host1": 100, "host2": 60}
    plan = synthetic_plan(hosts=("host1", "host2"), focus="1,2")
    run = load_run(store(results, plan, None, lambda cell: saved[cell.hypervisor]))
    _left, right = figures.figure_2(summarise(tidy([run]))).axes
    assert bars(right)["freed"] == [92, 52, 92, 52]
    ticks = [tick.get_text().splitlines()[-1] for tick in right.get_xticklabels()]
    assert ticks == ["host1", "host2", "host1", "host2"]


def test_other_numbers_of_guests_have_panels_of_their_own(results: Path) -> None:
    runs = [load_run(store(results, synthetic_plan(run_id=f"n{n}", guests=n))) for n in (4, 15)]
    titles = [axes.get_title(loc="left") for axes in figures.figure_2(summarise(tidy(runs))).axes]
    assert [title for title in titles if "Saved" in title] == [
        "Saved per VM, 4 guests of 512 MB",
        "Saved per VM, 15 guests of 512 MB",
    ]


def test_many_ledgers_are_drawn_in_rows() -> None:
    books = [Waterfall(str(number), 100.0, {"KSM's rmap_items": -8.0}, 92.0, False) for number in range(4)]
    assert len(figures.ledger_figure(books).axes) == 4


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_the_format_follows_the_suffix(run: Run, tmp_path: Path, suffix: str, start: bytes) -> None:
    path = tmp_path / f"figure{suffix}"
    figures.save(figures.figure_2(summarise(tidy([run]))), path)
    assert path.read_bytes().startswith(start)


@pytest.mark.parametrize("name", ["figure", "figure.txt", "missing/figure.png"])
def test_a_file_that_cannot_be_is_refused(run: Run, tmp_path: Path, name: str) -> None:
    with pytest.raises(figures.FigureError, match=r"suffix must be|cannot be written"):
        figures.save(figures.figure_2(summarise(tidy([run]))), tmp_path / name)


def test_svg_of_the_same_data_is_the_same(run: Run) -> None:
    first, second = (svg_text(figures.figure_2(summarise(tidy([run])))) for _ in range(2))
    assert first == second


def test_nothing_measured_is_refused(results: Path) -> None:
    empty = load_run(store(results, synthetic_plan(), lambda _cell, records: records.clear()))
    with pytest.raises(figures.FigureError, match="nothing to draw"):
        figures.figure_2(summarise(tidy([empty])))
    with pytest.raises(figures.FigureError, match="nothing to draw"):
        burndown_figure([])
    with pytest.raises(figures.FigureError, match="nothing to draw"):
        figures.ledger_figure([])


def test_the_waterfall_ends_where_its_steps_lead() -> None:
    (axes,) = figures.ledger_figure(
        [Waterfall("idle", 100.0, {"split": 4.5, "rmap": -8.0}, 96.5, False)]
    ).axes
    patches = list(axes.patches)
    level = patches[0].get_width() + sum(patch.get_width() for patch in patches[1:-1])
    assert level == pytest.approx(patches[-1].get_width()) == 96.5


def test_the_burndown_draws_the_samples(run: Run) -> None:
    (axes,) = burndown_figure([run.cells[0]]).axes
    line = axes.lines[0]
    samples = json.loads((run.cells[0].directory / "merge.json").read_text())["observed"]["samples"]
    assert list(line.get_xdata()) == samples["seconds"]
    expected = [pages * 4096 / 15 / MIB for pages in samples["pages_sharing"]]
    assert list(line.get_ydata()) == pytest.approx(expected)

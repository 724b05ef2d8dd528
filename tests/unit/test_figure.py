"""Figures: the bars are the means, the files are what their suffixes say, refusals are clear."""

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.container import BarContainer
from synthetic import MIB, store, synthetic_plan

from analysis.measure.ledger import ledger
from analysis.measure.statistics import summarise
from analysis.measure.table import tidy
from analysis.records.loading import Run, load_run
from analysis.report import figures


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
    assert bars(left) == {"KSM off": [8000] * 3, "ksm": [7197.5, 1647.5, 7497.5]}
    assert bars(right) == {"this testbed": [53.5, 423.5, 33.5], "the paper": [50.6, 440.3, 31.6]}


def test_a_mix_is_drawn_beside_the_foci_without_a_bar_of_the_paper(results: Path, run: Run) -> None:
    mixed = load_run(store(results, synthetic_plan(run_id="mixed", mix="idle=5,random_fill=10")))
    _left, right = figures.figure_2(summarise(tidy([run, mixed]))).axes
    assert bars(right) == {"this testbed": [53.5, 423.5, 33.5, 92.0], "the paper": [50.6, 440.3, 31.6]}
    ticks = [tick.get_text() for tick in right.get_xticklabels()]
    assert ticks[0] == "1 idle\nksm"
    assert ticks[3] == "mix:\nidle=5,\nrandom_fill=10\nksm"
    _left, alone = figures.figure_2(summarise(tidy([mixed]))).axes
    assert bars(alone) == {"this testbed": [92.0]}
    (axes,) = figures.burndown_figure(mixed.cells).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["mix: idle=5,random_fill=10, ksm"]


def test_policies_are_groups_of_bars_and_lines_of_their_own(results: Path) -> None:
    saved = {"ksm": 100, "advisor": 60}
    plan = synthetic_plan(policies="ksm,advisor")
    run = load_run(store(results, plan, None, lambda cell: saved[cell.policy]))
    left, right = figures.figure_2(summarise(tidy([run]))).axes
    assert bars(left) == {"KSM off": [8000, 8000], "policy on": [6620, 7220]}
    assert bars(right)["this testbed"] == [92, 52]
    assert [tick.get_text() for tick in right.get_xticklabels()] == ["1 idle\nksm", "1 idle\nadvisor"]
    (axes,) = figures.burndown_figure(run.cells).axes
    lines = {str(line.get_label()): line for line in axes.lines}
    assert lines["1 idle, ksm"].get_color() == lines["1 idle, advisor"].get_color()
    assert lines["1 idle, ksm"].get_linestyle() != lines["1 idle, advisor"].get_linestyle()


def test_the_lines_on_bars_are_intervals_over_boots(results: Path) -> None:
    one = load_run(store(results, synthetic_plan(run_id="one", repetitions=3)))
    two = load_run(store(results, synthetic_plan(run_id="two", boots=2)))
    said = [figures.svg_text(figures.figure_2(summarise(tidy([run])))) for run in (one, two)]
    assert "One boot: no interval." in said[0]
    assert "95 % t interval over boots" in said[1]


def test_many_ledgers_are_drawn_in_rows(run: Run) -> None:
    book = ledger(run.cells[0])
    assert len(figures.ledger_figure([(str(number), book) for number in range(4)]).axes) == 4


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
    first, second = (figures.svg_text(figures.figure_2(summarise(tidy([run])))) for _ in range(2))
    assert first == second


def test_nothing_measured_is_refused(results: Path) -> None:
    empty = load_run(store(results, synthetic_plan(), lambda _cell, records: records.clear()))
    with pytest.raises(figures.FigureError, match="nothing to draw"):
        figures.figure_2(summarise(tidy([empty])))
    with pytest.raises(figures.FigureError, match="nothing to draw"):
        figures.burndown_figure([])
    with pytest.raises(figures.FigureError, match="nothing to draw"):
        figures.ledger_figure([])


def test_two_hosts_are_not_drawn_as_one(results: Path) -> None:
    both = load_run(store(results, synthetic_plan(hosts=("a", "b"))))
    with pytest.raises(figures.FigureError, match="one host, one number and one size of guests"):
        figures.figure_2(summarise(tidy([both])))


def test_the_waterfall_ends_where_its_steps_lead(run: Run) -> None:
    book = ledger(run.cells[0])
    (axes,) = figures.ledger_figure([("focus 1", book)]).axes
    patches = list(axes.patches)
    level = patches[0].get_width() + sum(patch.get_width() for patch in patches[1:-1])
    assert level == pytest.approx(patches[-1].get_width())
    assert patches[-1].get_width() == pytest.approx(book.available.end_bytes / 15 / MIB)


def test_the_burndown_draws_the_samples(run: Run) -> None:
    (axes,) = figures.burndown_figure([run.cells[0]]).axes
    line = axes.lines[0]
    samples = json.loads((run.cells[0].directory / "merge.json").read_text())["observed"]["samples"]
    assert list(line.get_xdata()) == samples["seconds"]
    expected = [pages * 4096 / 15 / MIB for pages in samples["pages_sharing"]]
    assert list(line.get_ydata()) == pytest.approx(expected)

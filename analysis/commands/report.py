"""Forecasts beside what was measured afterwards, capacity runs on their way to the limit, and performance.

example: python -m analysis report --figures figures
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.commands.options import add_json, add_results, add_run

if TYPE_CHECKING:
    from analysis.commands.choosing import Runs
    from analysis.measure.policies import Place
    from analysis.report.scores import Scores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    add_results(parser)
    parser.add_argument(
        "--forecast",
        metavar="FILE",
        type=Path,
        nargs="+",
        help="these forecasts (default: DIR/forecasts/*.json)",
    )
    add_run(parser, "every run")
    add_json(parser)
    parser.add_argument("--figures", metavar="DIR", type=Path, help="draw every figure into this directory")


def run(arguments: argparse.Namespace) -> int:
    """Print every forecast beside what was measured afterwards, the capacity runs, and cells with probes.

    A run is scored by the forecasts that it names alone.

    Returns 1 when nothing could be joined, there is no capacity run and no guest was probed. A file that
    cannot be used is named and left out. Raises UserError or OSError with a text for the user.
    """
    from analysis.model.judging import judge
    from analysis.model.scoring import Joined, Refused, ScoringError, join, measured, not_read
    from analysis.records.capacity import load_capacity
    from analysis.records.forecasts import forecast_problem, load_forecasts
    from analysis.report.scores import Scores, score_json, score_parts
    from analysis.report.tables import show

    results = own_or_published(arguments.results)
    forecasts, damaged_forecasts = load_forecasts(results, arguments.forecast)
    capacity, damaged_steps = load_capacity(results)
    left_out = [*damaged_forecasts, *damaged_steps]
    runs = _runs(results, arguments.run)
    probed, apart = _probed(runs)
    if not forecasts and not capacity and not probed and not left_out:
        raise ScoringError(
            f"{arguments.results} holds no forecast and no capacity run: write one with `python -m analysis "
            "forecast --guests N --out results/forecasts/NAME.json` before the run that it predicts."
        )
    cells = measured(runs.runs) if forecasts else []
    named = {run.plan.run_id: run.plan.forecasts for run in runs.runs}
    joined: list[Joined] = []
    refused: list[Refused] = []
    sound = []
    for one in forecasts:
        problem = forecast_problem(one, results)
        if not problem:
            sound.append(one.record)
        mine, reasons = join(one.record, cells, named, problem)
        joined += mine
        refused += reasons
    scores = Scores(
        forecasts=len(forecasts),
        joined=tuple(joined),
        refused=tuple(refused),
        not_read=tuple(not_read(named, (one.record for one in forecasts))),
        capacity=tuple(judge(run, sound) for run in capacity),
        probed=probed,
        left_out=(*left_out, *(problem.rstrip(".") for problem in (*runs.problems, *apart))),
    )
    if arguments.figures:
        _draw(arguments.figures, scores)
    if arguments.json:
        print(score_json(scores))
    else:
        show(*score_parts(scores))
    return 0 if joined or capacity or scores.probed else 1


def own_or_published(results: Path) -> Path:
    """These results, or the published ones in them while they hold nothing else."""
    from analysis.plan.design import REFERENCE
    from analysis.records.capacity import CAPACITY
    from analysis.records.forecasts import FORECASTS

    own = any((results / name).is_dir() for name in (FORECASTS, CAPACITY)) or _has_runs(results)
    return results if own or not (results / REFERENCE).is_dir() else results / REFERENCE


def _runs(results: Path, run_ids: Sequence[str] | None) -> "Runs":
    from analysis.commands.choosing import Runs, chosen_runs

    if not run_ids and not _has_runs(results):
        return Runs((), (), ())
    return chosen_runs(results, run_ids, everything=True)


def _probed(runs: "Runs") -> tuple[tuple["Place", ...], list[str]]:
    """Cells in which guests were probed, by place, and a sentence for each run that is not of them."""
    from analysis.commands.choosing import chosen_table
    from analysis.measure.policies import side_by_side
    from analysis.report.summary import left_out_words

    probed = [run for run in runs.runs if run.plan.design.probes]
    if not probed:
        return (), []
    chosen = chosen_table(probed)
    apart = [words.removeprefix("! ") for words in left_out_words(chosen.left_out)]
    return tuple(side_by_side(chosen.table, probed)), apart


def _has_runs(results: Path) -> bool:
    from analysis.records.loading import find_runs
    from analysis.records.reading import RecordError

    try:
        return bool(find_runs(results).directories)
    except RecordError:
        return False


def _draw(directory: Path, scores: "Scores") -> None:
    from analysis.model.performance import cell_costs, costs, relation, steps_table
    from analysis.model.scoring import groups
    from analysis.plan.design import load_file_name
    from analysis.report import capacity_figures, forecast_figures
    from analysis.report.figures import save

    directory.mkdir(parents=True, exist_ok=True)
    for group in groups(scores.joined):
        name = f"validation-{group.model}-{group.policy}-{group.scope}"
        save(forecast_figures.validation_figure(group), directory / f"{name}.png")
    if any(judged.joins for judged in scores.capacity):
        save(capacity_figures.limits_figure(scores.capacity), directory / "limits.png")
    for judged in scores.capacity:
        run = judged.run
        name = f"{run.run_id}-{run.hypervisor}-{load_file_name(run.workload)}"
        if run.arms:
            save(capacity_figures.capacity_figure(run, judged.loads), directory / f"capacity-{name}.png")
            save(capacity_figures.performance_figure(run), directory / f"performance-{name}.png")
        lost = costs(relation(steps_table(run))) if run.arms else []
        if lost:
            figure = capacity_figures.trade_off_figure(run.workload, lost)
            save(figure, directory / f"trade-off-{name}.png")
        for number, (record, seen) in enumerate(zip(run.divergences, judged.divergences, strict=True), 1):
            save(
                capacity_figures.divergence_figure(record, seen),
                directory / f"divergence-{name}-{number}.png",
            )
    for (host, workload), lost in cell_costs(scores.probed).items():
        figure = capacity_figures.trade_off_figure(workload, lost)
        save(figure, directory / f"trade-off-cells-{host}-{load_file_name(workload)}.png")

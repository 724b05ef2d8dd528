"""All that is known of runs and surveys as one page; without a file, forecasts beside what came of them.

With --html, --markdown or --text: the answer, figure 2 beside the paper's values, policies, where the saving
comes from, what the guests' memory holds, a forecast with its limits, forecasts proved, capacity runs,
surveyed hosts. Else forecasts beside what was measured afterwards, capacity runs on the way to the limit, and
guests' performance in cells with probes.

example: python -m analysis report --results results/reference/cells --html page.html
"""

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.commands.options import add_hypervisor, add_json, add_results, add_run

if TYPE_CHECKING:
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
    add_run(parser, "every run, and the newest survey")
    add_hypervisor(parser)
    add_json(parser)
    parser.add_argument("--figures", metavar="DIR", type=Path, help="draw every figure into this directory")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write one self-contained page")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write the page as Markdown")
    parser.add_argument("--text", metavar="FILE", type=Path, help="write the page as text")


def run(arguments: argparse.Namespace) -> int:
    """Write the report, or print forecasts beside what came of them, capacity runs and performance.

    Returns 1 when nothing was measured; without a file, when nothing could be joined, there is no capacity
    run and no guest was probed. A file that cannot be used is named and left out. Raises UserError or OSError
    with a text for the user.
    """
    from analysis.commands.gathering import gather_runs, gather_scores, own_or_published
    from analysis.report.scores import score_json, score_parts
    from analysis.report.tables import show

    if arguments.html or arguments.markdown or arguments.text:
        return _write(arguments)
    results = own_or_published(arguments.results)
    runs = gather_runs(results, arguments.run, arguments.hypervisor)
    scores = gather_scores(results, arguments.forecast, runs)
    if arguments.figures:
        _draw(arguments.figures, scores)
    if arguments.json:
        print(score_json(scores))
    else:
        show(*score_parts(scores))
    return 0 if scores.joined or scores.capacity or scores.probed else 1


def _write(arguments: argparse.Namespace) -> int:
    from analysis.commands.gathering import gather, own_or_published
    from analysis.report.chapters import sections
    from analysis.report.document import parts_of
    from analysis.report.page import html_page
    from analysis.report.tables import markdown, render

    contents = gather(
        own_or_published(arguments.results),
        arguments.forecast,
        arguments.run,
        arguments.hypervisor,
        f"`python -m analysis {shlex.join(arguments.words)}`",
    )
    found = sections(contents)
    if arguments.html:
        arguments.html.write_text(html_page(found), encoding="utf-8")
    if arguments.markdown:
        arguments.markdown.write_text(markdown(*parts_of(found)), encoding="utf-8")
    if arguments.text:
        arguments.text.write_text(render(*parts_of(found)), encoding="utf-8")
    print("\n".join(block for block in found[0].blocks if isinstance(block, str)))
    measured = contents.answer is not None and any(one.measured for one in contents.answer.summaries)
    return 0 if measured or contents.surveys else 1


def _draw(directory: Path, scores: "Scores") -> None:
    from analysis.model.performance import cell_costs, costs, relation, steps_table, was_probed
    from analysis.model.scoring import groups
    from analysis.plan.design import load_file_name
    from analysis.report import capacity_figures, cost_figures, forecast_figures
    from analysis.report.figures import save

    directory.mkdir(parents=True, exist_ok=True)
    for group in groups(scores.joined):
        save(forecast_figures.validation_figure(group), directory / f"validation-{group.file_name}.png")
    if any(judged.joins for judged in scores.capacity):
        save(capacity_figures.limits_figure(scores.capacity), directory / "limits.png")
    for judged in scores.capacity:
        run = judged.run
        name = f"{run.run_id}-{run.hypervisor}-{load_file_name(run.workload)}"
        if run.arms:
            save(capacity_figures.capacity_figure(run, judged.loads), directory / f"capacity-{name}.png")
        if was_probed(run):
            save(capacity_figures.performance_figure(run), directory / f"performance-{name}.png")
        lost = costs(relation(steps_table(run))) if run.arms else []
        if lost:
            figure = cost_figures.trade_off_figure(run.workload, lost)
            save(figure, directory / f"trade-off-{name}.png")
        for number, (record, seen) in enumerate(zip(run.divergences, judged.divergences, strict=True), 1):
            save(
                capacity_figures.divergence_figure(record, seen),
                directory / f"divergence-{name}-{number}.png",
            )
    for host, loads in cell_costs(scores.probed).items():
        save(cost_figures.cell_costs_figure(host, loads), directory / f"trade-off-cells-{host}.png")

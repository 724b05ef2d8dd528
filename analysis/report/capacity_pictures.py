"""The figures of a capacity run for a page, each with its words."""

from collections.abc import Iterator

from analysis.model.judging import JudgedRun
from analysis.model.performance import costs, relation, steps_table, was_probed
from analysis.report.capacity import divergence_lines
from analysis.report.capacity_figures import (
    capacity_figure,
    divergence_figure,
    performance_figure,
)
from analysis.report.cost_figures import trade_off_figure
from analysis.report.document import Picture

_TABLES = "The tables below have the numbers."


def capacity_pictures(judged: JudgedRun) -> Iterator[Picture]:
    """Use and limits, performance, the trade-off and each divergence, where they were measured."""
    run = judged.run
    name = f"{run.workload} on {run.hypervisor}"
    if run.arms:
        yield Picture(
            capacity_figure(run, judged.loads),
            f"{name}: memory used on the way to the limit.",
            f"Marks of the memory used by number of guests, beside the predicted lines. {_TABLES}",
        )
        if was_probed(run):
            yield Picture(
                performance_figure(run),
                f"{name}: performance on the way to the limit.",
                f"Lines of throughput, latency and CPU by number of guests and policy. {_TABLES}",
            )
        lost = costs(relation(steps_table(run)))
        if lost:
            yield Picture(
                trade_off_figure(run.workload, lost),
                f"{name}: memory saved against performance lost.",
                f"Lines of what is lost by what is saved. {_TABLES}",
            )
    for record, seen in zip(run.divergences, judged.divergences, strict=True):
        yield Picture(
            divergence_figure(record, seen),
            f"{name}: the guests' pages diverge, {record.policy}, boot {record.boot}.",
            " ".join(divergence_lines(seen)),
        )

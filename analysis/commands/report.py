"""`python -m analysis report`: forecasts joined with what was measured afterwards, and the capacity runs."""

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from analysis.model.capacity import Divergence, actual_limit, divergence, relation, steps_table
from analysis.model.scoring import (
    KSM_MATTERS,
    NAIVE,
    CapacityJoin,
    Joined,
    Score,
    ScoringError,
    by_model,
    capacity_problem,
    join,
    join_capacity,
    load_of,
    measured,
    safe_bytes,
    score,
)
from analysis.model.sharing import HOST
from analysis.plan.design import MIB, REFERENCE
from analysis.plan.policies import OFF
from analysis.records.capacity import CAPACITY, CapacityRun, load_capacity
from analysis.records.forecasts import FORECASTS, forecast_problem, load_forecasts
from analysis.records.loading import RunsLoaded, choose_runs, find_runs
from analysis.records.models import ForecastRecord
from analysis.records.reading import RecordError
from analysis.report import forecast_figures
from analysis.report.capacity import capacity_lines, divergence_lines
from analysis.report.figures import save
from analysis.report.summary import named, wrap


def report(arguments: Namespace) -> int:
    """Print every forecast beside what was measured afterwards, and the capacity runs.

    Returns 1 when nothing could be joined and there is no capacity run. A file that cannot be
    used is named and left out. Raises ScoringError, FigureError or OSError with a text for the user.
    """
    results = own_or_published(arguments.results)
    forecasts, left_out = load_forecasts(results, arguments.forecast)
    capacity, damaged = load_capacity(results)
    left_out += damaged
    if not forecasts and not capacity and not left_out:
        raise ScoringError(
            f"{arguments.results} holds no forecast and no capacity run: write one with `python -m analysis "
            "forecast --guests N --out results/forecasts/NAME.json` before the run that it predicts."
        )
    runs = _runs(results, arguments.run) if forecasts else RunsLoaded((), ())
    left_out += runs.problems
    cells = measured(runs.runs)
    joined: list[Joined] = []
    refused: list[str] = []
    sound: list[ForecastRecord] = []
    for one in forecasts:
        problem = forecast_problem(one, results)
        if problem:
            refused.append(f"{one.path.name}: {problem}")
            continue
        sound.append(one.record)
        mine, reasons = join(one.record, cells)
        joined += mine
        refused += [f"{one.path.name}: {reason}" for reason in reasons]
    sections = [_capacity_section(run, sound) for run in capacity]
    if arguments.figures:
        _draw(arguments.figures, joined, capacity, sections)
    if arguments.json:
        print(_report_json(joined, refused, left_out, capacity, sections))
    else:
        parts = [validation_text(joined, refused)] if forecasts else []
        parts += [section.text(run) for run, section in zip(capacity, sections, strict=True)]
        parts += [left_out_text(left_out)] if left_out else []
        print("\n\n".join(part.rstrip("\n") for part in parts))
    return 0 if joined or capacity else 1


def own_or_published(results: Path) -> Path:
    """These results, or the published ones in them while they hold nothing else."""
    own = any((results / name).is_dir() for name in (FORECASTS, CAPACITY)) or _has_runs(results)
    return results if own or not (results / REFERENCE).is_dir() else results / REFERENCE


def validation_text(joined: Sequence[Joined], refused: Sequence[str]) -> str:
    """The held-out cells as one table of at most 110 columns, and the scores."""
    lines = ["Forecasts against what was measured afterwards (memory used with the policy on, MiB)", ""]
    for model, mine in by_model(joined).items():
        lines += [
            f"By the model {model}{', host memory' if mine[0].scope == HOST else ''}:",
            f"{'':<30}{'KSM off':>9}{f'{mine[0].policy}, MiB':>27}{'error':>8}{'naive answers, error %':>34}",
            f"{'load':<26}{'N':>4}{'error %':>9}{'measured':>10}{'predicted':>10}{'95 %':>7}{'%':>8}"
            f"{'constant':>12}{'ratio':>11}{'nominal':>11}",
        ]
        lines += [_line(one) for one in mine]
        lines.append("")
        policy = mine[0].policy
        lines += _score_lines("All", policy, score(mine))
        matters = [one for one in mine if one.ksm_matters]
        if matters and len(matters) < len(mine):
            lines += _score_lines(
                f"Where it saves at least {100 * KSM_MATTERS:.0f} %", policy, score(matters)
            )
        lines.append("")
    if joined:
        lines += [wrap(f"{name.replace('_', ' ')}: {meaning}.") for name, meaning in NAIVE.items()]
        if any(one.error_off is None for one in joined):
            lines.append(wrap("KSM off -: measured after KSM was on, whose split huge pages stay split."))
    else:
        lines.append("Nothing could be joined.")
    lines += [wrap(f"! {reason}.") for reason in refused]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def left_out_text(problems: Sequence[str]) -> str:
    """The files that could not be used, counted and named."""
    files = "1 file or run is" if len(problems) == 1 else f"{len(problems)} files or runs are"
    return "\n".join([f"{files} left out:", *(wrap(f"! {problem}.") for problem in problems)])


@dataclass(frozen=True)
class _Section:
    """What is known of one capacity run. ``forecasts``: that of each policy which has one."""

    forecasts: dict[str, ForecastRecord]
    joins: tuple[CapacityJoin, ...]
    divergences: tuple[Divergence, ...]
    refused: tuple[str, ...]

    def text(self, run: CapacityRun) -> str:
        """The section as text."""
        where = "host" if run.envelope_bytes is None else "envelope"
        lines = [
            f"Capacity run {run.run_id}: {run.workload} on {run.hypervisor}, guests of "
            f"{run.guest_memory_bytes / MIB:.0f} MiB in {run.capacity_bytes / MIB:.0f} MiB ({where})",
            "",
        ]
        if run.arms:
            lines += [*capacity_lines(run), "", "Limit, guests:"]
        for policy, steps in run.arms.items():
            seen = actual_limit(steps)
            name = "KSM off" if policy == OFF else policy
            line = f"{name}: actual {seen.guests}{'' if seen.reached else ' or more'} ({seen.reason})"
            for one in self.joins:
                if one.policy == policy:
                    line += f"; predicted {_count(one.predicted)}"
                    if one.predicted_low is not None and one.predicted_high is not None:
                        line += f" (95 %: {one.predicted_low} to {one.predicted_high})"
                    if policy != OFF:
                        line += f", safe {_count(one.safe)}"
                    if one.worst_error is not None:
                        line += f"; worst error of the use along the way {100 * one.worst_error:.1f} %"
                    line += f" [{one.forecast_id}]"
            lines.append(wrap(line))
        for seen_divergence in self.divergences:
            lines += ["", *(wrap(line) for line in divergence_lines(seen_divergence))]
        lines += [wrap(f"! {reason}.") for reason in self.refused]
        return "\n".join(line.rstrip() for line in lines)


def _capacity_section(run: CapacityRun, forecasts: Sequence[ForecastRecord]) -> _Section:
    problems = {one.digest: capacity_problem(one, run) for one in forecasts}
    refused = [
        f"forecast {one.forecast_id} is not joined with run {run.run_id}: {problems[one.digest]}"
        for one in forecasts
        if problems[one.digest] and load_of(one, run) is not None
    ]
    # Of each policy the last one written before the run is the one that predicts it.
    fitting = [one for one in forecasts if not problems[one.digest]]
    chosen = {one.policy: one for one in sorted(fitting, key=lambda one: one.created_at)}
    return _Section(
        forecasts=chosen,
        joins=tuple(join for one in chosen.values() for join in join_capacity(one, run)),
        divergences=tuple(
            divergence(record, safe_bytes(chosen.get(record.policy), run, record.guests))
            for record in run.divergences
        ),
        refused=tuple(refused),
    )


def _runs(results: Path, run_ids: Sequence[str] | None) -> RunsLoaded:
    if not run_ids and not _has_runs(results):
        return RunsLoaded((), ())
    return choose_runs(results, run_ids)


def _has_runs(results: Path) -> bool:
    try:
        return bool(find_runs(results).directories)
    except RecordError:
        return False


def _line(one: Joined) -> str:
    half = "none" if one.half_width_on is None else f"±{one.half_width_on / MIB:.0f}"
    naive = one.naive_errors
    off = "-" if one.error_off is None else f"{100 * one.error_off:+.2f}"
    return named(
        one.workload,
        26,
        f"{one.guests:>4}{off:>9}{one.measured_on / MIB:>10.0f}"
        f"{one.predicted_on / MIB:>10.0f}{half:>7}{100 * one.error_on:>+8.2f}"
        f"{100 * naive['constant_saving']:>+12.2f}{100 * naive['sharing_ratio']:>+11.2f}"
        f"{100 * naive['nominal']:>+11.2f}",
    )


def _score_lines(label: str, policy: str, seen: Score) -> list[str]:
    ratio = "no error of ours to compare" if seen.ratio is None else f"{seen.ratio:.1f} times ours"
    inside = (
        f"{seen.inside} of {seen.with_interval} inside their interval"
        if seen.with_interval
        else "no interval to be inside of"
    )
    off = ""
    if seen.worst_off is not None and seen.mean_off is not None:
        off = f"KSM off worst {100 * seen.worst_off:.2f} %, mean {100 * seen.mean_off:.2f} %; "
    return [
        wrap(
            f"{label} ({seen.cells} cells): with {policy} worst error {100 * seen.worst:.2f} %, mean "
            f"{100 * seen.mean:.2f} %; {off}{inside}. Best naive answer: "
            f"{seen.best_naive.replace('_', ' ')}, mean error "
            f"{100 * seen.naive_mean[seen.best_naive]:.2f} %, {ratio}."
        )
    ]


def _count(guests: int | None) -> str:
    return "over 9999" if guests is None else str(guests)


def _draw(
    directory: Path, joined: Sequence[Joined], capacity: Sequence[CapacityRun], sections: Sequence[_Section]
) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    if joined:
        several = len(by_model(joined)) > 1
        rows = [
            (
                f"{one.workload}\nN = {one.guests}{f', {one.model}, {one.policy}' if several else ''}",
                one.error_on,
                one.naive_errors,
            )
            for one in joined
        ]
        save(forecast_figures.validation_figure(rows), directory / "validation.png")
    for run, section in zip(capacity, sections, strict=True):
        name = f"{run.run_id}-{run.hypervisor}-{run.workload}"
        loads = {
            policy: load
            for policy, content in section.forecasts.items()
            if (load := load_of(content, run)) is not None
        }
        if run.arms:
            save(forecast_figures.capacity_figure(run, loads), directory / f"capacity-{name}.png")
            save(forecast_figures.performance_figure(run), directory / f"performance-{name}.png")
        if run.arms and not relation(steps_table(run)).empty:
            save(forecast_figures.trade_off_figure(run), directory / f"trade-off-{name}.png")
        for number, (record, seen) in enumerate(zip(run.divergences, section.divergences, strict=True), 1):
            save(
                forecast_figures.divergence_figure(record, seen),
                directory / f"divergence-{name}-{number}.png",
            )


def _report_json(
    joined: Sequence[Joined],
    refused: Sequence[str],
    left_out: Sequence[str],
    capacity: Sequence[CapacityRun],
    sections: Sequence[_Section],
) -> str:
    models = by_model(joined)
    matter = by_model([one for one in joined if one.ksm_matters])
    content = {
        "schema_version": 2,
        "joined": [
            {
                **asdict(one),
                "error_off": one.error_off,
                "error_on": one.error_on,
                "naive_errors": one.naive_errors,
                "inside": one.inside,
                "ksm_matters": one.ksm_matters,
            }
            for one in joined
        ],
        "score": {model: asdict(score(mine)) for model, mine in models.items()},
        "score_where_ksm_matters": {model: asdict(score(mine)) for model, mine in matter.items()},
        "refused": list(refused),
        "left_out": list(left_out),
        "capacity": [
            {
                "run_id": run.run_id,
                "hypervisor": run.hypervisor,
                "workload": run.workload,
                "capacity_bytes": run.capacity_bytes,
                "steps": json.loads(steps_table(run).to_json(orient="records")) if run.arms else [],
                "relation": json.loads(relation(steps_table(run)).to_json(orient="records"))
                if run.arms
                else [],
                "limits": {policy: asdict(actual_limit(steps)) for policy, steps in run.arms.items()},
                "joins": [asdict(one) for one in section.joins],
                "divergences": [
                    {**asdict(one), "survived": one.survived, "safe_holds": one.safe_holds}
                    for one in section.divergences
                ],
                "refused": list(section.refused),
            }
            for run, section in zip(capacity, sections, strict=True)
        ],
    }
    return json.dumps(content, indent=2)

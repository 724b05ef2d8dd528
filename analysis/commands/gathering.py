"""What a report is of, gathered: runs, forecasts stored and made, capacity runs, surveys."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from analysis.commands.choosing import Runs, chosen_runs, chosen_table, of_hypervisor
from analysis.commands.survey import read_surveys, stored
from analysis.measure.policies import Place, side_by_side
from analysis.measure.statistics import policy_differences, summarise
from analysis.model.calibration import ForecastError, calibration
from analysis.model.forecasting import forecast_content, make_model
from analysis.model.judging import judge
from analysis.model.scoring import Joined, Refused, ScoringError, join, measured, not_read
from analysis.model.sharing import SharingError
from analysis.plan.design import PLAN_FILE, REFERENCE
from analysis.records.capacity import CAPACITY, load_capacity
from analysis.records.forecasts import FORECASTS, forecast_problem, load_forecasts
from analysis.records.loading import find_runs
from analysis.records.models import ForecastRecord
from analysis.records.reading import RecordError
from analysis.records.survey import FILE as SURVEY_FILE
from analysis.report.chapters import Contents, Forecasted
from analysis.report.scores import Scores
from analysis.report.summary import Answer, left_out_words
from analysis.report.survey import Survey


def own_or_published(results: Path) -> Path:
    """These results, or the published ones in them while they hold nothing else."""
    kept = (FORECASTS, CAPACITY, PLAN_FILE, f"*/{PLAN_FILE}", f"*/*/{SURVEY_FILE}")
    own = any(path for name in kept for path in results.glob(name) if path.parent != results / REFERENCE)
    return results if own or not (results / REFERENCE).is_dir() else results / REFERENCE


def gather_runs(results: Path, run_ids: Sequence[str] | None, hypervisor: str | None) -> Runs:
    """The runs asked for, every one without ids; none where there is none. Raises as chosen_runs."""
    if not run_ids and not _has_runs(results):
        return Runs((), (), ())
    return chosen_runs(results, run_ids, everything=True, hypervisor=hypervisor)


def gather_scores(results: Path, files: Sequence[Path] | None, runs: Runs) -> Scores:
    """Stored forecasts beside the cells of these runs, the capacity runs, and cells with probes.

    A run is scored by the forecasts that it names alone. What a forecast rests on is looked for where it is
    stored. Raises ScoringError where there is nothing of all that.
    """
    forecasts, damaged_forecasts = load_forecasts(results, files)
    capacity, damaged_steps = load_capacity(results)
    left_out = [*damaged_forecasts, *damaged_steps]
    probed, apart = _probed(runs)
    if not forecasts and not capacity and not probed and not left_out:
        raise ScoringError(
            f"{results} holds no forecast and no capacity run: write one with `python -m analysis "
            "forecast --guests N --out results/forecasts/NAME.json` before the run that it predicts."
        )
    cells = measured(runs.runs) if forecasts else []
    named = {run.plan.run_id: run.plan.forecasts for run in runs.runs}
    joined: list[Joined] = []
    refused: list[Refused] = []
    sound = []
    for one in forecasts:
        problem = forecast_problem(one, results if files is None else one.path.resolve().parent.parent)
        if not problem:
            sound.append(one.record)
        mine, reasons = join(one.record, cells, named, problem)
        joined += mine
        refused += reasons
    return Scores(
        forecasts=len(forecasts),
        joined=tuple(joined),
        refused=tuple(refused),
        not_read=tuple(not_read(named, (one.record for one in forecasts))),
        capacity=tuple(judge(run, sound) for run in capacity),
        probed=probed,
        left_out=(*left_out, *(problem.rstrip(".") for problem in (*runs.problems, *apart))),
    )


def gather(
    results: Path,
    files: Sequence[Path] | None,
    run_ids: Sequence[str] | None,
    hypervisor: str | None,
    command: str,
) -> Contents:
    """All that is known of these runs and of the survey asked for, or the newest.

    ``command``: what makes the report again. Raises RecordError where there is nothing.
    """
    runs = Runs((), (), ())
    paths: list[Path] = []
    missing = []
    try:
        runs = chosen_runs(results, run_ids, everything=True, hypervisor=hypervisor)
    except RecordError as no_run:
        missing.append(str(no_run))
    try:
        paths = stored(results, None if run_ids is None else list(run_ids), hypervisor)
    except RecordError as no_survey:
        missing.append(str(no_survey))
    try:
        scores = gather_scores(results, files, runs)
    except ScoringError:
        scores = None
    if not runs.runs and not paths and scores is None:
        raise RecordError(" ".join(missing))
    surveys, placements, problems = read_surveys(paths)
    chosen = chosen_table(runs.runs) if runs.runs else None
    forecasts, reasons = _forecasts(runs, results)
    return Contents(
        answer=None
        if chosen is None
        else Answer(
            tuple(summarise(chosen.table)),
            runs.runs,
            differences=tuple(policy_differences(chosen.table)),
            others=runs.others,
            left_out=chosen.left_out,
            problems=runs.problems,
        ),
        policies=() if chosen is None else tuple(side_by_side(chosen.table, runs.runs)),
        forecasts=tuple(forecasts),
        scores=scores,
        surveys=tuple(map(Survey, surveys)),
        placements=tuple(placements),
        doubts=(*reasons, *problems),
        command=command,
    )


def _probed(runs: Runs) -> tuple[tuple[Place, ...], list[str]]:
    """Cells in which guests were probed, by place, and a sentence for each run that is not of them."""
    probed = [run for run in runs.runs if run.plan.design.probes]
    if not probed:
        return (), []
    chosen = chosen_table(probed)
    apart = [words.removeprefix("! ") for words in left_out_words(chosen.left_out)]
    return tuple(side_by_side(chosen.table, probed)), apart


def _has_runs(results: Path) -> bool:
    try:
        return bool(find_runs(results).directories)
    except RecordError:
        return False


def _forecasts(runs: Runs, results: Path) -> tuple[list[Forecasted], list[str]]:
    """How many guests fit on each host, from its cells; a sentence for each host that cannot be said of."""
    found, reasons = [], []
    for host in sorted({cell.cell.hypervisor for run in runs.runs for cell in run.cells}):
        try:
            fitted = calibration(of_hypervisor(runs.runs, host), bases_in=results)
            model = make_model(fitted)
            content = forecast_content(
                "unsaved",
                fitted,
                model,
                mixes=[],
                loads=[{name: 1} for name in model.workloads],
                capacity_bytes=float(fitted.memory_total_bytes),
                now=datetime.now(UTC),
            )
        except (ForecastError, SharingError) as error:
            reasons.append(f"no forecast for {host}: {str(error).rstrip('.')}.")
            continue
        record = ForecastRecord.model_validate_json(json.dumps(content))
        found.append(Forecasted(record, tuple(fitted.cells), fitted.cells_left_out))
    return found, reasons

"""`python -m analysis report`: forecasts joined with what was measured afterwards, and the capacity runs."""

import hashlib
import json
from argparse import Namespace
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from analysis.errors import UserError
from analysis.measure.statistics import OFF_ON
from analysis.measure.table import PROVENANCE, tidy
from analysis.model.capacity import (
    CAPACITY,
    ActualLimit,
    CapacityRecord,
    CapacityRun,
    Divergence,
    actual_limit,
    breach,
    capacity_lines,
    conditions,
    divergence,
    divergence_lines,
    load_capacity,
    no_guests,
    relation,
    steps_table,
    text,
    used_bytes,
)
from analysis.model.forecast import FORECASTS, design_digest, digest, record_digests, scope_used_bytes
from analysis.model.sharing import ENVELOPE, HOST
from analysis.plan.design import MIB, REFERENCE
from analysis.plan.mix import mix_text, parse_mix
from analysis.plan.policies import OFF
from analysis.records.loading import COMPLETE, CellRecords, RecordError, Run, find_run, find_runs, load_run
from analysis.records.migration import migrate_forecast
from analysis.report import forecast_figures
from analysis.report.figures import save
from analysis.report.summary import named, wrap

NAIVE = {
    "constant_saving": "constant saving per VM, as at the largest calibration N",
    "sharing_ratio": "pages_sharing ratio: nominal memory less the fraction saved at the largest N",
    "nominal": "nominal memory: base + N x guest memory",
}
# Below this saving a forecast of the saving cannot be told from one without.
KSM_MATTERS = 0.05


class ValidationError(UserError):
    """A forecast file that cannot be used."""


@dataclass(frozen=True)
class Forecast:
    """A forecast, and where it lies. ``stored``: as it is in the file, which its digests are of."""

    path: Path
    stored: dict[str, Any]
    content: dict[str, Any]


@dataclass(frozen=True)
class Joined:
    """One held-out cell beside its prediction (bytes). ``naive_on`` is keyed by NAIVE.

    ``scope`` says of what the memory is: HOST, or ENVELOPE.
    """

    forecast_id: str
    model: str
    scope: str
    policy: str
    workload: str
    guests: int
    run_id: str
    cell_id: str
    arm_order: str
    measured_off: float
    measured_on: float
    predicted_off: float
    predicted_on: float
    half_width_on: float | None
    naive_on: dict[str, float]

    @property
    def error_off(self) -> float | None:
        """Relative error without KSM; None after on: huge pages that KSM split stay split."""
        if self.arm_order != OFF_ON:
            return None
        return self.predicted_off / self.measured_off - 1

    @property
    def error_on(self) -> float:
        """Relative error with the policy on."""
        return self.predicted_on / self.measured_on - 1

    @property
    def naive_errors(self) -> dict[str, float]:
        """Relative error of each naive answer with the policy on."""
        return {name: value / self.measured_on - 1 for name, value in self.naive_on.items()}

    @property
    def inside(self) -> bool | None:
        """Whether the measured use lies in the prediction interval."""
        if self.half_width_on is None:
            return None
        return abs(self.predicted_on - self.measured_on) <= self.half_width_on

    @property
    def ksm_matters(self) -> bool:
        """Whether KSM saved at least 5 % of the use."""
        return self.measured_off - self.measured_on >= KSM_MATTERS * self.measured_off


@dataclass(frozen=True)
class Score:
    """Errors over some held-out cells, as fractions. ``ratio``: best naive mean error over ours.

    ``best_naive`` is the naive answer with the smallest mean error. ``inside``: cells in their interval, of
    ``with_interval``. ``ratio`` is None when ours has no error at all.
    """

    cells: int
    worst: float
    mean: float
    worst_off: float | None
    mean_off: float | None
    naive_mean: dict[str, float]
    best_naive: str
    ratio: float | None
    inside: int
    with_interval: int


@dataclass(frozen=True)
class CapacityJoin:
    """Predicted and actual limit of one arm: of off, or of the forecast's policy.

    None: no limit below 9999; ``worst_error`` along the curve.
    """

    forecast_id: str
    policy: str
    predicted: int | None
    predicted_low: int | None
    predicted_high: int | None
    safe: int | None
    actual: ActualLimit
    worst_error: float | None


def report(arguments: Namespace) -> int:
    """Print every forecast beside what was measured afterwards, and the capacity runs.

    Returns 1 when nothing could be joined and there is no capacity run. Raises ValidationError,
    RecordError, FigureError or OSError with a text for the user.
    """
    results = own_or_published(arguments.results)
    forecasts = load_forecasts(results, arguments.forecast)
    capacity = load_capacity(results)
    if not forecasts and not capacity:
        raise ValidationError(
            f"{arguments.results} holds no forecast and no capacity run: write one with `python -m analysis "
            "forecast --guests N --out results/forecasts/NAME.json` before the run that it predicts."
        )
    runs = _runs(results, arguments.run) if forecasts else []
    joined: list[Joined] = []
    refused: list[str] = []
    sound: list[Mapping[str, Any]] = []
    for one in forecasts:
        problem = forecast_problem(one, results)
        if problem:
            refused.append(f"{one.path.name}: {problem}")
            continue
        sound.append(one.content)
        mine, reasons = join(one.content, runs)
        joined += mine
        refused += [f"{one.path.name}: {reason}" for reason in reasons]
    sections = [_capacity_section(run, sound) for run in capacity]
    if arguments.figures:
        _draw(arguments.figures, joined, capacity, sections)
    if arguments.json:
        print(_report_json(joined, refused, capacity, sections))
    else:
        parts = [validation_text(joined, refused)] if forecasts else []
        parts += [section.text(run) for run, section in zip(capacity, sections, strict=True)]
        print("\n\n".join(part.rstrip("\n") for part in parts))
    return 0 if joined or capacity else 1


def own_or_published(results: Path) -> Path:
    """These results, or the published ones in them while they hold nothing else."""
    own = any((results / name).is_dir() for name in (FORECASTS, CAPACITY)) or bool(_directories(results))
    return results if own or not (results / REFERENCE).is_dir() else results / REFERENCE


def load_forecasts(results: Path, files: Sequence[Path] | None = None) -> list[Forecast]:
    """The forecasts under ``results``/forecasts, or these files.

    Raises ValidationError naming a file that is not a forecast.
    """
    return [_read(path) for path in files or sorted((results / FORECASTS).glob("*.json"))]


def forecast_problem(forecast: Forecast, results: Path) -> str:
    """Why a whole forecast cannot be joined, "" when it can: it or its calibration was changed since."""
    stored = forecast.stored
    if stored["digest"] != digest(stored):
        return "it was changed after it was written (its digest differs)"
    if stored["design_digest"] != design_digest(stored):
        return "its predicted cells are not those of its design digest"
    return _calibration_problem(stored, results)


def join(content: Mapping[str, Any], runs: Sequence[Run]) -> tuple[list[Joined], list[str]]:
    """Join a sound forecast with the measured cells of the runs.

    Returns the joined cells, one for each repetition, and a sentence for each cell that is refused: among
    the calibration, recorded before the forecast, not complete, of other provenance; or not measured yet.
    """
    joined: list[Joined] = []
    refused: list[str] = []
    table = tidy(list(runs))
    stored = {
        (run.plan.run_id, cell.cell.hypervisor, cell.cell.cell_id): cell for run in runs for cell in run.cells
    }
    here = table[
        (table["hypervisor"] == content["hypervisor"]) & (table["policy"] == content["policy"])
    ].to_dict("records")
    for predicted in content["predicted"]:
        wanted = (predicted["workload"], predicted["guests"])
        before = len(joined)
        for row in here:
            if (load_name(str(row["workload"])), row["guests"]) != wanted:
                continue
            cell = stored[(row["run_id"], row["hypervisor"], row["cell_id"])]
            reason = _refusal(content, row, cell)
            off, on = (
                None if reason else scope_used_bytes(cell, kind, content["scope"]) for kind in ("off", "on")
            )
            if off is None or on is None:
                reason = reason or "its records lack Pss_Anon"
                refused.append(f"run {row['run_id']}, {row['cell_id']} is not joined: {reason}")
            else:
                joined.append(_joined(content, predicted, row, (off, on)))
        if len(joined) == before:
            refused.append(f"{wanted[0]} at {wanted[1]} guests has no measurement to join yet")
    return joined, refused


def differences(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """In what two sets of conditions differ, as "name: expected, not found"."""
    return [
        f"{name}: {expected.get(name, 'absent')} / {found.get(name, 'absent')}"
        for name in sorted(set(expected) | set(found))
        if expected.get(name, "absent") != found.get(name, "absent")
    ]


def load_name(workload: str) -> str:
    """The name of a load as forecasts write it: parts of a mix in the order of the alphabet."""
    return mix_text(parse_mix(workload, "workload")) if "=" in workload else workload


def by_model(joined: Sequence[Joined]) -> dict[str, list[Joined]]:
    """The joined cells by model and policy of their forecast; what is of an envelope apart."""
    groups: dict[str, list[Joined]] = {}
    for one in joined:
        name = f"{one.model}, {one.policy}{'' if one.scope == HOST else f', {one.scope}'}"
        groups.setdefault(name, []).append(one)
    return dict(sorted(groups.items()))


def score(joined: Sequence[Joined]) -> Score:
    """Worst and mean error over held-out cells, beside the naive answers'.

    Raises ValidationError when there is none.
    """
    if not joined:
        raise ValidationError("there is no joined cell to score.")
    errors = [abs(one.error_on) for one in joined]
    errors_off = [abs(one.error_off) for one in joined if one.error_off is not None]
    naive = {name: fmean(abs(one.naive_errors[name]) for one in joined) for name in NAIVE}
    best = min(naive, key=lambda name: naive[name])
    ours = fmean(errors)
    return Score(
        cells=len(joined),
        worst=max(errors),
        mean=ours,
        worst_off=max(errors_off, default=None),
        mean_off=fmean(errors_off) if errors_off else None,
        naive_mean=naive,
        best_naive=best,
        ratio=naive[best] / ours if ours else None,
        inside=sum(one.inside is True for one in joined),
        with_interval=sum(one.inside is not None for one in joined),
    )


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


def capacity_problem(content: Mapping[str, Any], run: CapacityRun) -> str:
    """Why a forecast does not speak of this capacity run, "" when it does."""
    scope = HOST if run.envelope_bytes is None else ENVELOPE
    spoken_of = _arms_of(content, run)
    steps = [step.content for arm in spoken_of.values() for step in arm] or [run.first]
    differing = [words for step in steps for words in _step_differences(content, step)]
    problems = (
        (_load_of(content, run) is None, f"it does not forecast {run.workload}"),
        (
            bool(run.policies) and content["policy"] not in run.policies,
            f"it is for the policy {content['policy']}",
        ),
        (
            (content["scope"], content["capacity_bytes"]) != (scope, run.capacity_bytes),
            f"it is for {content['capacity_bytes'] / MIB:.0f} MiB of the {content['scope']}, the run had "
            f"{run.capacity_bytes / MIB:.0f} MiB of the {scope}",
        ),
        (content["hypervisor"] != run.hypervisor, "it is of another host"),
        (content["guest_memory_bytes"] != run.guest_memory_bytes, "it is of another size of guests"),
        (
            min(step["recorded_at"] for step in steps) <= content["created_at"],
            "the run was recorded before it was written",
        ),
        (bool(differing), f"the conditions differ ({'; '.join(dict.fromkeys(differing))})"),
    )
    return next((words for wrong, words in problems if wrong), "")


def join_capacity(content: Mapping[str, Any], run: CapacityRun) -> list[CapacityJoin]:
    """Predicted beside actual limit, without KSM and with the forecast's policy.

    Raises ValidationError when they do not belong together.
    """
    problem = capacity_problem(content, run)
    load = _load_of(content, run)
    if problem or load is None:
        raise ValidationError(
            f"forecast {content['forecast_id']} is not joined with {run.run_id}: {problem}."
        )
    limit, curve = load["limits"], load["curve"]
    joins = []
    for policy, steps in _arms_of(content, run).items():
        arm = "off" if policy == OFF else "on"
        predicted = dict(zip(curve["guests"], curve[f"{arm}_bytes"], strict=True))
        errors = [
            abs(predicted[step.content["guests"]] / used_bytes(step.content) - 1)
            for step in steps
            if step.content["guests"] in predicted and used_bytes(step.content)
        ]
        joins.append(
            CapacityJoin(
                forecast_id=content["forecast_id"],
                policy=policy,
                predicted=limit[arm],
                predicted_low=limit["on_low"] if arm == "on" else None,
                predicted_high=limit["on_high"] if arm == "on" else None,
                safe=limit["safe"],
                actual=actual_limit(steps),
                worst_error=max(errors, default=None),
            )
        )
    return joins


@dataclass(frozen=True)
class _Section:
    """What is known of one capacity run. ``forecasts``: that of each policy which has one."""

    forecasts: dict[str, Mapping[str, Any]]
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


def _capacity_section(run: CapacityRun, forecasts: Sequence[Mapping[str, Any]]) -> _Section:
    fitting = [content for content in forecasts if not capacity_problem(content, run)]
    refused = [
        f"forecast {content['forecast_id']} is not joined with run {run.run_id}: "
        f"{capacity_problem(content, run)}"
        for content in forecasts
        if content not in fitting and _load_of(content, run) is not None
    ]
    # Of each policy the last one written before the run is the one that predicts it.
    chosen: dict[str, Mapping[str, Any]] = {}
    for content in sorted(fitting, key=lambda content: str(content["created_at"])):
        chosen[content["policy"]] = content
    return _Section(
        forecasts=chosen,
        joins=tuple(one for content in chosen.values() for one in join_capacity(content, run)),
        divergences=tuple(
            divergence(
                record, _safe_bytes(chosen.get(record.content["policy"]), run, record.content["guests"])
            )
            for record in run.divergences
        ),
        refused=tuple(refused),
    )


def _arms_of(content: Mapping[str, Any], run: CapacityRun) -> dict[str, tuple[CapacityRecord, ...]]:
    """The arms that a forecast speaks of: off, and that of its policy."""
    return {policy: arm for policy, arm in run.arms.items() if policy in (OFF, content["policy"])}


def _load_of(content: Mapping[str, Any], run: CapacityRun) -> Mapping[str, Any] | None:
    wanted = load_name(run.workload)
    return next((load for load in content["loads"] if load["workload"] == wanted), None)


def _safe_bytes(content: Mapping[str, Any] | None, run: CapacityRun, guests: int) -> float | None:
    load = None if content is None else _load_of(content, run)
    if load is None:
        return None
    curve = load["curve"]
    return dict(zip(curve["guests"], curve["safe_bytes"], strict=True)).get(guests)


def _read(path: Path) -> Forecast:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValidationError(f"{path} cannot be read: {error}.") from None
    content = migrate_forecast(stored)
    found = breach(content, "forecast")
    if found:
        raise ValidationError(f"{path} is not a forecast, at {found}.")
    return Forecast(path, stored, content)


def _calibration_problem(content: Mapping[str, Any], results: Path) -> str:
    for cell in content["calibration"]["cells"]:
        name = f"its calibration cell {cell['cell_id']} of run {cell['run_id']}"
        try:
            directory = find_run(results, cell["run_id"]) / content["hypervisor"] / cell["cell_id"]
            found = record_digests(directory, cell["records"])
        except (OSError, UserError):
            return f"{name} is no longer there"
        if found != cell["records"]:
            return f"{name} has other records now (digests differ)"
    for base in content["calibration"]["bases"]:
        path = results / base["path"]
        if not path.is_file():
            return f"its record with no guest {base['path']} is no longer there"
        if "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest() != base["sha256"]:
            return f"its record with no guest {base['path']} has changed (digests differ)"
    return ""


def _runs(results: Path, run_ids: Sequence[str] | None) -> list[Run]:
    if run_ids:
        return [load_run(find_run(results, run_id)) for run_id in run_ids]
    return [load_run(directory) for directory in _directories(results)]


def _directories(results: Path) -> list[Path]:
    try:
        return find_runs(results)
    except RecordError:
        return []


def _refusal(content: Mapping[str, Any], row: Mapping[Hashable, Any], cell: CellRecords) -> str:
    """Why a measured cell may not be joined with the forecast that predicts its load; "" when it may."""
    calibrated = {(c["run_id"], c["cell_id"]) for c in content["calibration"]["cells"]}
    if (row["run_id"], row["cell_id"]) in calibrated:
        return "it is among the calibration"
    if row["status"] != COMPLETE:
        return f"{row['status']}: {row['problem']}".rstrip(".")
    if min(cell.records[kind]["recorded_at"] for kind in ("off", "on")) <= content["created_at"]:
        return "it was recorded before the forecast was written"
    found = {
        str(name).removeprefix(PROVENANCE): text(value)
        for name, value in row.items()
        if str(name).startswith(PROVENANCE)
    }
    differing = differences(content["calibration"]["conditions"], found)
    return f"its conditions differ from the calibration's ({'; '.join(differing)})" if differing else ""


def _step_differences(content: Mapping[str, Any], step: dict[str, Any]) -> list[str]:
    expected = {
        name: value
        for name, value in content["calibration"]["conditions"].items()
        # With KSM off the knobs say nothing, and no guest began from nothing.
        if not (step["policy"] == OFF and name.startswith("ksm_knobs."))
        and not (no_guests(step) and name == "start.from")
    }
    return differences(expected, conditions(step))


def _joined(
    content: Mapping[str, Any],
    predicted: Mapping[str, Any],
    row: Mapping[Hashable, Any],
    used: tuple[float, float],
) -> Joined:
    return Joined(
        forecast_id=content["forecast_id"],
        model=content["model"],
        scope=content["scope"],
        policy=content["policy"],
        workload=predicted["workload"],
        guests=predicted["guests"],
        run_id=str(row["run_id"]),
        cell_id=str(row["cell_id"]),
        arm_order=str(row["arm_order"]),
        measured_off=used[0],
        measured_on=used[1],
        predicted_off=predicted["used_off"]["mean_bytes"],
        predicted_on=predicted["used_on"]["mean_bytes"],
        half_width_on=predicted["used_on"]["half_width_bytes"],
        naive_on=dict(predicted["naive_used_on_bytes"]),
    )


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
            if (load := _load_of(content, run)) is not None
        }
        if run.arms:
            save(forecast_figures.capacity_figure(run, loads), directory / f"capacity-{name}.png")
            save(forecast_figures.performance_figure(run), directory / f"performance-{name}.png")
        if run.arms and not relation(steps_table(run)).empty:
            save(forecast_figures.trade_off_figure(run), directory / f"trade-off-{name}.png")
        for number, (record, seen) in enumerate(zip(run.divergences, section.divergences, strict=True), 1):
            save(
                forecast_figures.divergence_figure(record.content, seen),
                directory / f"divergence-{name}-{number}.png",
            )


def _report_json(
    joined: Sequence[Joined],
    refused: Sequence[str],
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

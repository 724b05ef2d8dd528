"""Forecasts joined with what was measured afterwards, and scored beside answers that need no model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from analysis.errors import UserError
from analysis.measure.pooling import Row, condition_text
from analysis.measure.saving import Unknown, known
from analysis.measure.statistics import OFF_ON
from analysis.measure.table import PROVENANCE, tidy
from analysis.model.calibration import scope_used_bytes
from analysis.model.capacity import (
    ActualLimit,
    Divergence,
    actual_limit,
    conditions,
    divergence,
    used_bytes,
)
from analysis.model.sharing import ENVELOPE, HOST
from analysis.plan.design import MIB
from analysis.plan.mix import mix_text, parse_mix
from analysis.plan.policies import OFF
from analysis.records.capacity import CapacityRun
from analysis.records.loading import COMPLETE, CellRecords, Run
from analysis.records.models import DivergenceRecord, ForecastRecord, LoadForecast, Predicted, StepRecord

NAIVE = {
    "constant_saving": "constant saving per VM, as at the largest calibration N",
    "sharing_ratio": "pages_sharing ratio: nominal memory less the fraction saved at the largest N",
    "nominal": "nominal memory: base + N x guest memory",
}
# Below this saving a forecast of the saving cannot be told from one without.
KSM_MATTERS = 0.05


class ScoringError(UserError):
    """A forecast file that cannot be used."""


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


@dataclass(frozen=True)
class JudgedRun:
    """What is known of one capacity run.

    ``loads``: by policy, what its forecast says of the run's load; ``divergences``: as those of the run.
    """

    run: CapacityRun
    loads: dict[str, LoadForecast]
    joins: tuple[CapacityJoin, ...]
    divergences: tuple[Divergence, ...]
    refused: tuple[str, ...]


def measured(runs: Sequence[Run]) -> list[tuple[Row, CellRecords]]:
    """Each planned cell of the runs, its row of the tidy table and its records."""
    stored = {
        (run.plan.run_id, cell.cell.hypervisor, cell.cell.cell_id): cell for run in runs for cell in run.cells
    }
    return [
        (row, stored[row["run_id"], row["hypervisor"], row["cell_id"]])
        for row in (tidy(list(runs)).to_dict("records") if runs else ())
    ]


def join(
    forecast: ForecastRecord, cells: Sequence[tuple[Row, CellRecords]]
) -> tuple[list[Joined], list[str]]:
    """Join a sound forecast with measured cells.

    Returns the joined cells, one for each repetition, and a sentence for each cell that is refused: among
    the calibration, recorded before the forecast, not complete, of other provenance; or not measured yet.
    """
    joined: list[Joined] = []
    refused: list[str] = []
    for predicted in forecast.predicted:
        wanted = (forecast.hypervisor, forecast.policy, predicted.workload, predicted.guests)
        before = len(joined)
        for row, cell in cells:
            is_of = (row["hypervisor"], row["policy"], load_name(str(row["workload"])), row["guests"])
            if is_of != wanted:
                continue
            reason = _refusal(forecast, row, cell)
            used: list[float] | Unknown = Unknown(reason)
            if not reason:
                used = known(scope_used_bytes(cell, arm, forecast.scope) for arm in (cell.off, cell.on))
            if isinstance(used, Unknown):
                refused.append(f"run {row['run_id']}, {row['cell_id']} is not joined: {used.reason}")
            else:
                joined.append(_joined(forecast, predicted, row, (used[0], used[1])))
        if len(joined) == before:
            refused.append(
                f"{predicted.workload} at {predicted.guests} guests has no measurement to join yet"
            )
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

    Raises ScoringError when there is none.
    """
    if not joined:
        raise ScoringError("there is no joined cell to score.")
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


def capacity_problem(forecast: ForecastRecord, run: CapacityRun) -> str:
    """Why a forecast does not speak of this capacity run, "" when it does."""
    scope = HOST if run.envelope_bytes is None else ENVELOPE
    steps: list[StepRecord | DivergenceRecord] = [
        step for arm in _arms_of(forecast, run).values() for step in arm
    ]
    steps = steps or [run.first]
    differing = [words for step in steps for words in _step_differences(forecast, step)]
    problems = (
        (load_of(forecast, run) is None, f"it does not forecast {run.workload}"),
        (
            bool(run.policies) and forecast.policy not in run.policies,
            f"it is for the policy {forecast.policy}",
        ),
        (
            (forecast.scope, forecast.capacity_bytes) != (scope, run.capacity_bytes),
            f"it is for {forecast.capacity_bytes / MIB:.0f} MiB of the {forecast.scope}, the run had "
            f"{run.capacity_bytes / MIB:.0f} MiB of the {scope}",
        ),
        (forecast.hypervisor != run.hypervisor, "it is of another host"),
        (forecast.guest_memory_bytes != run.guest_memory_bytes, "it is of another size of guests"),
        (
            min(step.recorded_at for step in steps) <= forecast.created_at,
            "the run was recorded before it was written",
        ),
        (bool(differing), f"the conditions differ ({'; '.join(dict.fromkeys(differing))})"),
    )
    return next((words for wrong, words in problems if wrong), "")


def join_capacity(forecast: ForecastRecord, run: CapacityRun) -> list[CapacityJoin]:
    """Predicted beside actual limit, without KSM and with the forecast's policy.

    Raises ScoringError when they do not belong together.
    """
    problem = capacity_problem(forecast, run)
    load = load_of(forecast, run)
    if problem or load is None:
        raise ScoringError(f"forecast {forecast.forecast_id} is not joined with {run.run_id}: {problem}.")
    limits, curve = load.limits, load.curve
    joins = []
    for policy, steps in _arms_of(forecast, run).items():
        off = policy == OFF
        predicted = dict(zip(curve.guests, curve.off_bytes if off else curve.on_bytes, strict=True))
        pairs = [(predicted.get(step.guests), used_bytes(step)) for step in steps]
        errors = [abs(need / used - 1) for need, used in pairs if need is not None and used > 0]
        joins.append(
            CapacityJoin(
                forecast_id=forecast.forecast_id,
                policy=policy,
                predicted=limits.off if off else limits.on,
                predicted_low=None if off else limits.on_low,
                predicted_high=None if off else limits.on_high,
                safe=limits.safe,
                actual=actual_limit(steps),
                worst_error=max(errors, default=None),
            )
        )
    return joins


def judge(run: CapacityRun, forecasts: Sequence[ForecastRecord]) -> JudgedRun:
    """A capacity run beside the forecasts that speak of it."""
    problems = {one.digest: capacity_problem(one, run) for one in forecasts}
    fitting = [one for one in forecasts if not problems[one.digest]]
    # Of each policy the last one written before the run is the one that predicts it.
    chosen = {one.policy: one for one in sorted(fitting, key=lambda one: one.created_at)}
    loads = {policy: load for policy, one in chosen.items() if (load := load_of(one, run)) is not None}
    return JudgedRun(
        run=run,
        loads=loads,
        joins=tuple(join for one in chosen.values() for join in join_capacity(one, run)),
        divergences=tuple(
            divergence(record, _safe_bytes(loads.get(record.policy), record.guests))
            for record in run.divergences
        ),
        refused=tuple(
            f"forecast {one.forecast_id} is not joined with run {run.run_id}: {problems[one.digest]}"
            for one in forecasts
            if problems[one.digest] and load_of(one, run) is not None
        ),
    )


def load_of(forecast: ForecastRecord, run: CapacityRun) -> LoadForecast | None:
    """What a forecast says of the load of this run; None when it does not speak of it."""
    wanted = load_name(run.workload)
    return next((load for load in forecast.loads if load.workload == wanted), None)


def _safe_bytes(load: LoadForecast | None, guests: int) -> float | None:
    """The forecast safe need of so many guests; None without one."""
    if load is None:
        return None
    return dict(zip(load.curve.guests, load.curve.safe_bytes, strict=True)).get(guests)


def _arms_of(forecast: ForecastRecord, run: CapacityRun) -> dict[str, tuple[StepRecord, ...]]:
    """The arms that a forecast speaks of: off, and that of its policy."""
    return {policy: arm for policy, arm in run.arms.items() if policy in (OFF, forecast.policy)}


def _refusal(forecast: ForecastRecord, row: Row, cell: CellRecords) -> str:
    """Why a measured cell may not be joined with the forecast that predicts its load; "" when it may."""
    calibrated = {(used.run_id, used.cell_id) for used in forecast.calibration.cells}
    if (row["run_id"], row["cell_id"]) in calibrated:
        return "it is among the calibration"
    if row["status"] != COMPLETE:
        return f"{row['status']}: {row['problem']}".rstrip(".")
    if min(cell.off.recorded_at, cell.on.recorded_at) <= forecast.created_at:
        return "it was recorded before the forecast was written"
    found = {
        str(name).removeprefix(PROVENANCE): condition_text(value)
        for name, value in row.items()
        if str(name).startswith(PROVENANCE)
    }
    differing = differences(forecast.calibration.conditions, found)
    return f"its conditions differ from the calibration's ({'; '.join(differing)})" if differing else ""


def _step_differences(forecast: ForecastRecord, step: StepRecord | DivergenceRecord) -> list[str]:
    expected = {
        name: value
        for name, value in forecast.calibration.conditions.items()
        # With KSM off the knobs say nothing, and no guest began from nothing.
        if not (step.policy == OFF and name.startswith("ksm_knobs."))
        and not (step.guests == 0 and name == "start.from")
    }
    return differences(expected, conditions(step))


def _joined(forecast: ForecastRecord, predicted: Predicted, row: Row, used: tuple[float, float]) -> Joined:
    return Joined(
        forecast_id=forecast.forecast_id,
        model=forecast.model,
        scope=forecast.scope,
        policy=forecast.policy,
        workload=predicted.workload,
        guests=predicted.guests,
        run_id=str(row["run_id"]),
        cell_id=str(row["cell_id"]),
        arm_order=str(row["arm_order"]),
        measured_off=used[0],
        measured_on=used[1],
        predicted_off=predicted.used_off.mean_bytes,
        predicted_on=predicted.used_on.mean_bytes,
        half_width_on=predicted.used_on.half_width_bytes,
        naive_on=predicted.naive_used_on_bytes.model_dump(),
    )

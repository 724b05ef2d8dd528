"""Capacity runs beside the forecasts that speak of them: predicted and actual limit, and the safe need."""

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.measure.table import RULE
from analysis.model.capacity import FoundLimits, conditions, found_limits, used_bytes
from analysis.model.divergence import Divergence, divergence
from analysis.model.scoring import NOT_NAMED, ScoringError, differences, is_named, not_read
from analysis.model.sharing import ENVELOPE, HOST
from analysis.plan.design import MIB
from analysis.plan.mix import load_name
from analysis.plan.policies import OFF
from analysis.plan.proof import counts_ksm
from analysis.records.capacity import CapacityRun
from analysis.records.models import DivergenceRecord, ForecastRecord, LoadForecast, StepRecord


@dataclass(frozen=True)
class CapacityJoin:
    """Predicted and actual limits of one policy's arms: of off, or of the forecast's policy.

    ``predicted``: the steady limit with the ends of its interval. None: no limit below 9999. ``actual``: of
    each boot. ``worst_error`` along the curve.
    """

    forecast_id: str
    policy: str
    predicted: int | None
    predicted_low: int | None
    predicted_high: int | None
    admission: int | None
    safe: int | None
    actual: tuple[FoundLimits, ...]
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


def capacity_problem(forecast: ForecastRecord, run: CapacityRun) -> str:
    """Why a forecast does not speak of this capacity run, "" when it does."""
    scope = HOST if run.envelope_bytes is None else ENVELOPE
    steps: list[StepRecord | DivergenceRecord] = [
        step for arm in _arms_of(forecast, run).values() for step in arm
    ]
    steps = steps or [run.first]
    differing = [words for step in steps for words in _step_differences(forecast, step)]
    names = run.first.forecasts
    problems = (
        (load_of(forecast, run) is None, f"it does not forecast {run.workload}"),
        (not is_named(forecast, names), NOT_NAMED),
        (
            bool(run.policies) and forecast.policy not in run.policies,
            f"it is for the policy {forecast.policy}",
        ),
        (
            (forecast.scope, forecast.capacity_bytes) != (scope, run.capacity_bytes),
            f"it is for {forecast.capacity_bytes / MIB:.0f} MiB of the {forecast.scope}, the run had "
            f"{run.capacity_bytes / MIB:.0f} MiB of the {scope}",
        ),
        (
            forecast.scope == ENVELOPE and not counts_ksm(forecast),
            "it leaves KSM's own memory out of the envelope, as forecasts did before",
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
    joins, found = [], found_limits(run)
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
                admission=limits.off if off else limits.admission,
                safe=limits.safe,
                actual=tuple(one for one in found if one.policy == policy),
                worst_error=max(errors, default=None),
            )
        )
    return joins


def judge(run: CapacityRun, forecasts: Sequence[ForecastRecord]) -> JudgedRun:
    """A capacity run beside the forecasts that speak of it."""
    problems = {one.digest: capacity_problem(one, run) for one in forecasts}
    fitting = [one for one in forecasts if not problems[one.digest]]
    fitting.sort(key=lambda one: one.created_at)
    # Where a run names several of a policy its curve is that of the last one.
    last = {one.policy: one for one in fitting}
    loads = {policy: load for policy, one in last.items() if (load := load_of(one, run)) is not None}
    return JudgedRun(
        run=run,
        loads=loads,
        joins=tuple(join for one in fitting for join in join_capacity(one, run)),
        divergences=tuple(
            divergence(
                record,
                _forecast_bytes(loads.get(record.policy), record.guests, "safe_bytes"),
                _forecast_bytes(loads.get(record.policy), record.guests, "off_bytes"),
            )
            for record in run.divergences
        ),
        refused=tuple(
            f"forecast {one.forecast_id} is not joined with run {run.run_id}: {problems[one.digest]}"
            for one in forecasts
            if problems[one.digest] and load_of(one, run) is not None
        )
        + tuple(not_read({run.run_id: run.first.forecasts}, forecasts)),
    )


def load_of(forecast: ForecastRecord, run: CapacityRun) -> LoadForecast | None:
    """What a forecast says of the load of this run; None when it does not speak of it."""
    wanted = load_name(run.workload)
    return next((load for load in forecast.loads if load.workload == wanted), None)


def _forecast_bytes(load: LoadForecast | None, guests: int, curve: str) -> float | None:
    """A point of a forecast's curve; None without one."""
    if load is None:
        return None
    return dict(zip(load.curve.guests, getattr(load.curve, curve), strict=True)).get(guests)


def _arms_of(forecast: ForecastRecord, run: CapacityRun) -> dict[str, tuple[StepRecord, ...]]:
    """The arms that a forecast speaks of: off, and that of its policy."""
    return {policy: arm for policy, arm in run.arms.items() if policy in (OFF, forecast.policy)}


def _step_differences(forecast: ForecastRecord, step: StepRecord | DivergenceRecord) -> list[str]:
    expected = {
        name: value
        for name, value in forecast.calibration.conditions.items()
        # With KSM off the knobs say nothing, and no guest began from nothing.
        if not (step.policy == OFF and name.startswith("ksm_knobs."))
        and not (step.guests == 0 and name == "start.from")
        # A step's use is read when it has settled, by whichever rule.
        and name != RULE
    }
    return differences(expected, conditions(step))

"""Forecasts joined with what was measured afterwards, and scored beside answers that need no model."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from analysis.errors import UserError
from analysis.measure.pooling import Row, condition_text
from analysis.measure.saving import Unknown, known, saving, used_available_bytes, withheld_bytes
from analysis.measure.statistics import wilson
from analysis.measure.table import GUESTS_MEMORY_TOO, PROVENANCE, RULE, tidy
from analysis.model.calibration import scope_used_bytes
from analysis.model.sharing import HOST
from analysis.plan.design import MIB
from analysis.plan.mix import load_name
from analysis.plan.proof import counts_ksm, covers
from analysis.records.loading import COMPLETE, CellRecords, Run
from analysis.records.models import ForecastRecord, Named, Predicted

# What a cell is scored by: memory used with KSM off and with the policy on, and the difference of the two.
OFF_USE, ON_USE, SAVED = "used_off", "used_on", "saved"
SCORED = (OFF_USE, ON_USE, SAVED)
# What counts as used. The forecast is of the first; the second is what the paper measured, of a host alone.
USED, AVAILABLE = "used", "used_available"
NAIVE = {
    "constant_saving": "what a guest saved at the largest calibration N, times N",
    "no_saving": "as with KSM off",
}
# By what definition of used a forecast was written, with the words of one that is no longer written so.
# Errors and intervals by two definitions are never averaged.
LATEST = "latest"
DEFINITIONS = {
    LATEST: "",
    "withheld-counted": "what MemAvailable withholds counted as it was",
    "ksm-left-out": "KSM's own memory left out",
}
# A smaller part of the use says nothing of an error relative to it.
LEAST_SAVED = 0.05

NOT_NAMED = "not named by the run"
NOT_USABLE = "the forecast cannot be used"
CALIBRATION = "among the forecast's calibration"
TOO_EARLY = "recorded before the forecast was written"
CONDITIONS = "measured under other conditions than the calibration"
UNKNOWN_USE = "its memory used is not known"


class ScoringError(UserError):
    """A forecast file that cannot be used."""


@dataclass(frozen=True)
class Use:
    """Memory used with KSM off and with the policy on, bytes."""

    off: float
    on: float

    @property
    def saved(self) -> float:
        """What the policy saved."""
        return self.off - self.on

    def of(self, what: str) -> float:
        """One of SCORED."""
        return {OFF_USE: self.off, ON_USE: self.on, SAVED: self.saved}[what]


@dataclass(frozen=True)
class Joined:
    """One held-out cell beside its prediction.

    ``scope`` says of what the memory is: HOST, or ENVELOPE; ``definition`` is one of DEFINITIONS.
    ``calibration``: the runs that it was fitted to, for a cell of another calibration is another proof.
    ``measured`` is keyed by USED and, of a host, AVAILABLE; ``half_width`` (bytes, None: no interval) by
    SCORED; ``naive_on``, the use with the policy on, by NAIVE.
    """

    forecast_id: str
    model: str
    scope: str
    definition: str
    calibration: tuple[str, ...]
    policy: str
    guest_memory_bytes: int
    workload: str
    guests: int
    run_id: str
    cell_id: str
    measured: dict[str, Use]
    predicted: Use
    half_width: dict[str, float | None]
    naive_on: dict[str, float]

    def error(self, what: str, used: str = USED, naive: str | None = None) -> float | None:
        """Error of the forecast, or of a naive answer, relative to what was measured.

        None where it says nothing: of a saving below LEAST_SAVED of the use.
        """
        if used not in self.measured:
            return None
        seen = self.measured[used]
        if what == SAVED and seen.saved < LEAST_SAVED * seen.off:
            return None
        said = self.predicted if naive is None else Use(self.predicted.off, self.naive_on[naive])
        return said.of(what) / seen.of(what) - 1

    def inside(self, what: str, used: str = USED) -> bool | None:
        """Whether what was measured lies in the prediction interval; None without one."""
        half = self.half_width[what]
        if half is None or self.error(what, used) is None:
            return None
        return abs(self.predicted.of(what) - self.measured[used].of(what)) <= half


@dataclass(frozen=True)
class Refused:
    """A cell that a forecast covers and that is not scored, or a prediction without a cell (both "").

    ``reason``: one of a few, to be counted by; ``detail``: what it is in this case, "" for no more to say.
    """

    forecast_id: str
    workload: str
    guests: int
    run_id: str
    cell_id: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Coverage:
    """Cells inside their 95 % prediction interval, of those that have one.

    ``low``, ``high``: Wilson's 95 % interval of their share, the cells taken as independent; None of no cell.
    """

    inside: int
    cells: int
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Errors:
    """Errors of one of SCORED over cells, as fractions of what was measured.

    ``mean``: of the absolute values; ``worst``: the largest of these, with its sign; ``too_high``: cells of
    which too much was said. ``naive``: mean absolute error by NAIVE, and ``ratio`` the best of them over
    ours; with KSM off there is no other answer, and None where ours has no error at all.
    """

    cells: int
    mean: float
    worst: float
    too_high: int
    coverage: Coverage
    naive: dict[str, float]
    ratio: float | None

    @property
    def best_naive(self) -> str:
        """The naive answer with the smallest mean error."""
        return min(self.naive, key=lambda name: self.naive[name])


@dataclass(frozen=True)
class Group:
    """Joined cells of one kind: one model, policy, scope, definition of used, size of guests, calibration."""

    model: str
    policy: str
    scope: str
    definition: str
    guest_memory_bytes: int
    calibration: tuple[str, ...]
    joined: tuple[Joined, ...]

    @property
    def name(self) -> str:
        """The kind in words."""
        parts = (
            self.model,
            self.policy,
            "" if self.scope == HOST else self.scope,
            f"guests of {self.guest_memory_mib} MB",
            f"from {self.calibrated_by}",
            DEFINITIONS[self.definition],
        )
        return ", ".join(filter(None, parts))

    @property
    def file_name(self) -> str:
        """The kind as a part of a file's name."""
        definition = () if self.definition == LATEST else (self.definition,)
        size = f"{self.guest_memory_mib}mib"
        runs = self.calibration
        if len(runs) > 1:
            # A file's name has room for one run's, or two.
            told = hashlib.sha256("\0".join(runs).encode()).hexdigest()[:8]
            runs = (f"{runs[0]}-and-{len(runs) - 1}-more-{told}",)
        return "-".join((self.model, self.policy, self.scope, size, *runs, *definition))

    @property
    def calibrated_by(self) -> str:
        """The runs of the calibration, in words."""
        first, *more = self.calibration
        return f"{first} and {len(more)} more" if more else first

    @property
    def guest_memory_mib(self) -> int:
        """Memory of a guest in MiB."""
        return self.guest_memory_bytes // MIB

    @property
    def loads(self) -> dict[tuple[str, int], list[Joined]]:
        """The cells by workload and number of guests."""
        found: dict[tuple[str, int], list[Joined]] = {}
        for one in sorted(self.joined, key=lambda one: (one.workload, one.guests)):
            found.setdefault((one.workload, one.guests), []).append(one)
        return found


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
    forecast: ForecastRecord,
    cells: Sequence[tuple[Row, CellRecords]],
    named: Mapping[str, Named],
    problem: str = "",
) -> tuple[list[Joined], list[Refused]]:
    """Join a forecast with the measured cells that it covers: each is scored, or refused with the reason.

    Args:
        forecast: what was predicted.
        cells: what was measured, each repetition for itself.
        named: of each run the forecasts that it names.
        problem: why the whole forecast cannot be joined, "" where it can.

    Returns the joined cells; and those refused, with the predictions that no cell measures.
    """
    joined: list[Joined] = []
    refused: list[Refused] = []
    predictions = {(one.workload, one.guests): one for one in forecast.predicted}
    met = set()
    for row, cell in cells:
        if not covers(forecast, cell.cell):
            continue
        load = (load_name(cell.cell.workload), cell.cell.guests)
        met.add(load)
        names = named[cell.run_id]
        reason, detail = (NOT_USABLE, problem) if problem else _refusal(forecast, names, row, cell)
        if not reason:
            used = _measured(cell, forecast)
            if isinstance(used, Unknown):
                reason, detail = UNKNOWN_USE, used.reason
            else:
                joined.append(_joined(forecast, predictions[load], row, used))
        if reason:
            refused.append(
                Refused(forecast.forecast_id, *load, cell.run_id, cell.cell.cell_id, reason, detail)
            )
    joined.sort(key=lambda one: (one.workload, one.guests))
    reason, detail = (NOT_USABLE, problem) if problem else ("not measured yet", "")
    refused += [
        Refused(forecast.forecast_id, *load, "", "", reason, detail)
        for load in predictions
        if load not in met
    ]
    return joined, refused


def is_named(forecast: ForecastRecord, names: Named) -> bool:
    """Whether a run names a forecast."""
    return forecast.digest in {one.digest for one in names}


def definition(forecast: ForecastRecord) -> str:
    """By which of DEFINITIONS a forecast was written."""
    if forecast.scope == HOST:
        return LATEST if forecast.withheld_bytes is not None else "withheld-counted"
    return LATEST if counts_ksm(forecast) else "ksm-left-out"


def not_read(runs: Mapping[str, Named], forecasts: Iterable[ForecastRecord]) -> list[str]:
    """A sentence for each forecast that a run names and that is not among these."""
    digests = {one.digest for one in forecasts}
    return [
        f"run {run_id} names the forecast {one.forecast_id} of {one.created_at} ({one.digest[:19]}...), "
        "which is not among those that can be used: what it predicted is not scored"
        for run_id, names in runs.items()
        for one in names
        if one.digest not in digests
    ]


def differences(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """In what two sets of conditions differ, as "name: expected, not found"."""
    return [
        f"{name}: {expected.get(name, 'absent')} / {found.get(name, 'absent')}"
        for name in sorted(set(expected) | set(found))
        if expected.get(name, "absent") != found.get(name, "absent")
    ]


def groups(joined: Sequence[Joined]) -> list[Group]:
    """The joined cells by kind."""
    found: dict[tuple[str, str, str, str, int, tuple[str, ...]], list[Joined]] = {}
    for one in joined:
        size = one.guest_memory_bytes
        kind = (one.model, one.policy, one.scope, one.definition, size, one.calibration)
        found.setdefault(kind, []).append(one)
    return [Group(*kind, tuple(found[kind])) for kind in sorted(found)]


def score(joined: Sequence[Joined], what: str, used: str = USED) -> Errors | None:
    """Errors of one of SCORED over these cells, beside the naive answers'; None where none says anything."""
    scored = [(one, error) for one in joined if (error := one.error(what, used)) is not None]
    if not scored:
        return None
    ours = fmean(abs(error) for _one, error in scored)
    naive = {
        name: fmean(abs(one.error(what, used, name) or 0.0) for one, _error in scored)
        for name in (NAIVE if what != OFF_USE else ())
    }
    inside = [seen for one, _error in scored if (seen := one.inside(what, used)) is not None]
    return Errors(
        cells=len(scored),
        mean=ours,
        worst=max((error for _one, error in scored), key=abs),
        too_high=sum(error > 0 for _one, error in scored),
        coverage=Coverage(sum(inside), len(inside), *wilson(sum(inside), len(inside))),
        naive=naive,
        ratio=min(naive.values()) / ours if ours and naive else None,
    )


def _refusal(forecast: ForecastRecord, names: Named, row: Row, cell: CellRecords) -> tuple[str, str]:
    """Why a measured cell may not be joined with the forecast that covers it, and in detail; "" if it may."""
    calibrated = {(used.run_id, used.cell_id) for used in forecast.calibration.cells}
    if (cell.run_id, cell.cell.cell_id) in calibrated:
        return CALIBRATION, ""
    if row["status"] != COMPLETE:
        return str(row["status"]), str(row["problem"]).rstrip(".")
    if min(cell.off.recorded_at, cell.on.recorded_at) <= forecast.created_at:
        return TOO_EARLY, ""
    if not is_named(forecast, names):
        return NOT_NAMED, ""
    found = {
        str(name).removeprefix(PROVENANCE): condition_text(value)
        for name, value in row.items()
        if str(name).startswith(PROVENANCE)
    }
    rule = str(row[RULE])
    # A forecast that does not say by which rule is of before the guests' memory was watched.
    wanted = {RULE: rule.removesuffix(GUESTS_MEMORY_TOO), **forecast.calibration.conditions}
    differing = differences(wanted, {**found, RULE: rule})
    return (CONDITIONS, "; ".join(differing)) if differing else ("", "")


def _measured(cell: CellRecords, forecast: ForecastRecord) -> dict[str, Use] | Unknown:
    """Memory used by a complete cell, by each definition that the scope has.

    USED is with other programs, and with what is withheld, as the forecast has them, AVAILABLE as they were.
    """
    arms = (cell.off, cell.on)
    used = known(scope_used_bytes(cell, arm, forecast.scope) for arm in arms)
    if isinstance(used, Unknown):
        return used
    if forecast.scope != HOST:
        own = saving(cell).ksm_own if counts_ksm(forecast) else 0.0
        return own if isinstance(own, Unknown) else {USED: Use(used[0], used[1] + own)}
    if forecast.others_bytes is None:
        return Unknown("the forecast does not tell what other programs held")
    withheld = known(withheld_bytes(arm.observed.host) for arm in arms)
    if isinstance(withheld, Unknown):
        return withheld
    # A forecast of before counts that as it was.
    taken = withheld if forecast.withheld_bytes is None else [forecast.withheld_bytes] * len(arms)
    beside = [forecast.others_bytes + held for held in taken]
    return {
        USED: Use(*(use + held for use, held in zip(used, beside, strict=True))),
        AVAILABLE: Use(*(used_available_bytes(arm.observed.host) for arm in arms)),
    }


def _joined(forecast: ForecastRecord, predicted: Predicted, row: Row, used: dict[str, Use]) -> Joined:
    return Joined(
        forecast_id=forecast.forecast_id,
        model=forecast.model,
        scope=forecast.scope,
        definition=definition(forecast),
        calibration=tuple(sorted({used.run_id for used in forecast.calibration.cells})),
        policy=forecast.policy,
        guest_memory_bytes=forecast.guest_memory_bytes,
        workload=predicted.workload,
        guests=predicted.guests,
        run_id=str(row["run_id"]),
        cell_id=str(row["cell_id"]),
        measured=used,
        predicted=Use(predicted.used_off.mean_bytes, predicted.used_on.mean_bytes),
        half_width={
            OFF_USE: predicted.used_off.half_width_bytes,
            ON_USE: predicted.used_on.half_width_bytes,
            SAVED: None if predicted.saved is None else predicted.saved.half_width_bytes,
        },
        naive_on={
            "constant_saving": predicted.naive_used_on_bytes.constant_saving,
            "no_saving": predicted.used_off.mean_bytes,
        },
    )

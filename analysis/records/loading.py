"""What results/ holds: runs found, read, and checked, never changed.

A file that is damaged, foreign or newer is named among the problems and left out; only where one run is asked
for by name, and that one cannot be used, is there an error.
"""

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from analysis.plan.design import CHURN, PLAN_FILE, RECORD_KINDS, REFERENCE, RESULTS, Cell, cell_directory
from analysis.plan.runs import read_plan
from analysis.records.checks import Measured, cell_problem, identity_problem, series_problem
from analysis.records.models import (
    PHASES,
    AfterRecord,
    CensusRecord,
    ChurnRecord,
    FailedRecord,
    MergeRecord,
    PerformanceRecord,
    Phase,
    PlanRecord,
    Provenance,
    SnapshotRecord,
    Start,
    VerifyRecord,
)
from analysis.records.reading import RecordError, read_record
from analysis.records.survey import FILE as SURVEY_FILE
from analysis.records.survey import SurveyRecord

COMPLETE, FAILED, INVALID, MISSING = "complete", "failed", "invalid", "missing"

P = TypeVar("P", bound=Phase)
B = TypeVar("B", CensusRecord, AfterRecord, ChurnRecord, PerformanceRecord, SurveyRecord)


@dataclass(frozen=True)
class CellRecords:
    """What is stored for one planned cell.

    ``status`` is complete, failed (a failed.json), invalid (a record that cannot be used) or missing;
    ``problem`` says why in one sentence when it is not complete. ``stored``: the records that can be read, by
    kind. ``off``, ``merge``, ``on`` and ``verify`` are there in a complete cell; else they raise RecordError
    where that record cannot be used.
    """

    cell: Cell
    directory: Path
    run_id: str
    status: str
    problem: str
    stored: Mapping[str, Phase]

    @property
    def off(self) -> SnapshotRecord:
        """Host and guests before KSM merged."""
        return self._record("off", SnapshotRecord)

    @property
    def merge(self) -> MergeRecord:
        """KSM at work."""
        return self._record("merge", MergeRecord)

    @property
    def on(self) -> SnapshotRecord:
        """Host and guests after KSM merged."""
        return self._record("on", SnapshotRecord)

    @property
    def verify(self) -> VerifyRecord:
        """Whether the guests' memory is what it was."""
        return self._record("verify", VerifyRecord)

    @property
    def failed(self) -> FailedRecord | None:
        """Why the cell failed; None where it did not."""
        record = self.stored.get("failed")
        return record if isinstance(record, FailedRecord) else None

    @cached_property
    def census(self) -> CensusRecord | None:
        """The page census, read when it is asked for; None where none was taken. Raises RecordError."""
        return self._beside("census.json", CensusRecord, self._of_another_cell)

    @cached_property
    def after(self) -> AfterRecord | None:
        """The series after the on record, read when it is asked for; None without. Raises RecordError."""
        return self._beside("after.json", AfterRecord, self._of_another_cell)

    @cached_property
    def churn(self) -> Mapping[str, ChurnRecord]:
        """The series after guests left, came back and one diverged, by CHURN. Raises RecordError."""
        found = {kind: self._beside(f"{kind}.json", ChurnRecord, self._of_another_cell) for kind in CHURN}
        return {kind: record for kind, record in found.items() if record is not None}

    @cached_property
    def performance(self) -> PerformanceRecord | None:
        """What its applications did, read when it is asked for; None without. Raises RecordError."""
        return self._beside("performance.json", PerformanceRecord, self._of_another_cell)

    @cached_property
    def survey(self) -> SurveyRecord | None:
        """The survey before KSM was on, read when it is asked for; None without one. Raises RecordError."""
        return self._beside(SURVEY_FILE, SurveyRecord, self._of_another_host)

    @property
    def provenance(self) -> Provenance:
        """Host, kernel, image and knobs as the on arm was measured with them."""
        return self.on.provenance

    @property
    def start(self) -> Start | None:
        """What the cell's guests began from; None while no record says it."""
        starts = (record.provenance.start for record in self.stored.values())
        return next((start for start in starts if start is not None), None)

    @property
    def boot_key(self) -> str:
        """Of which physical boot its guests are: cells of a host with the same text are of one replicate.

        The time of the boot, which each checkpoint of it has; where it is not known, the boot by its number
        in its run. Needs a complete cell.
        """
        return self.provenance.start.booted_at or f"{self.run_id} boot {self.cell.boot}"

    @property
    def page_size_bytes(self) -> int:
        """Page size of the host. Needs a complete cell."""
        return self.provenance.page_size_bytes

    def _record(self, kind: str, model: type[P]) -> P:
        record = self.stored.get(kind)
        if not isinstance(record, model):
            raise RecordError(f"{self.directory} has no {kind} record that can be used.")
        return record

    def _of_another_cell(self, record: CensusRecord | AfterRecord | ChurnRecord | PerformanceRecord) -> str:
        return identity_problem(record, self.run_id, self.cell)

    def _of_another_host(self, record: SurveyRecord) -> str:
        same = (record.run_id, record.hypervisor) == (self.run_id, self.cell.hypervisor)
        return "" if same else "is the record of another run or host"

    def _beside(self, file: str, model: type[B], problem_of: Callable[[B], str]) -> B | None:
        path = self.directory / file
        if not path.exists():
            return None
        try:
            record = read_record(path, model)
        except RecordError as error:
            raise RecordError(f"{self.directory}: {error}.") from None
        problem = problem_of(record)
        if problem:
            raise RecordError(f"{path} {problem}.")
        return record


@dataclass(frozen=True)
class Run:
    """A run: its plan, and each planned cell with what is stored for it.

    ``problems``: a sentence for each cell that is invalid.
    """

    directory: Path
    plan: PlanRecord
    cells: tuple[CellRecords, ...]
    problems: tuple[str, ...]

    @property
    def moments(self) -> set[tuple[str, str]]:
        """On which host and when its cells were measured: of two runs that share one, one is a copy."""
        return {
            (cell.cell.hypervisor, on.recorded_at) for cell in self.cells if (on := cell.stored.get("on"))
        }


@dataclass(frozen=True)
class RunsFound:
    """The directories of runs, oldest first, and a sentence for each that was left out."""

    directories: tuple[Path, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class RunsLoaded:
    """Runs in the order in which they were asked for, and a sentence for each that was left out."""

    runs: tuple[Run, ...]
    problems: tuple[str, ...]


def find_runs(results: Path) -> RunsFound:
    """The runs under ``results``, which may be a run itself.

    The published reference is never taken for the user's own results. Of two directories with the same run
    the second, which is not named like it, is left out as a copy.
    Raises RecordError when there is none, saying what to run.
    """
    plans, problems = _plans(results)
    found: dict[str, Path] = {}
    ordered = sorted(plans.items(), key=lambda item: (item[1].run_id != item[0].name, item[0].name))
    for directory, plan in ordered:
        first = found.setdefault(plan.run_id, directory)
        if first != directory:
            problems.append(f"{directory} holds the run {plan.run_id}, as {first} does: a copy is left out.")
    if not found and not problems:
        raise RecordError(
            f"{results} holds no results: run `make experiment FOCUS=3`, or "
            "`ansible-playbook playbooks/experiment.yml -e focus=3`; the published reference campaign "
            f"is shown with `--results {RESULTS.name}/{REFERENCE}/cells --all`."
        )
    if not found:
        raise RecordError(f"{results} holds no run that can be read: {' '.join(problems)}")
    directories = sorted(found.values(), key=lambda place: (plans[place].created_at, place.name))
    return RunsFound(tuple(directories), tuple(problems))


def find_run(results: Path, run_id: str) -> Path:
    """Directory of one run by its id or its name. Raises RecordError naming the runs that exist."""
    plans, problems = _plans(results)
    more, others = _plans(results / REFERENCE)
    for directory, plan in (plans | more).items():
        if run_id in (directory.name, plan.run_id):
            return directory
    known = ", ".join(plan.run_id for plan in (plans | more).values()) or "none"
    unread = "".join(f" {problem}" for problem in problems + others)
    raise RecordError(f"run {run_id!r} is not under {results}: there are {known}.{unread}")


def load_runs(directories: Iterable[Path]) -> RunsLoaded:
    """Read runs. One that cannot be read, or whose records are those of an earlier one, is left out."""
    runs: list[Run] = []
    problems: list[str] = []
    moments: dict[tuple[str, str], Run] = {}
    for directory in directories:
        try:
            with _no_collecting():
                run = load_run(directory)
        except RecordError as error:
            problems.append(str(error))
            continue
        mine = run.moments
        original = next((moments[one] for one in sorted(mine) if one in moments), None)
        if original is not None:
            problems.append(
                f"{directory} has records that were taken at the same moment as those of "
                f"{original.directory}: a copy is left out."
            )
            continue
        moments |= dict.fromkeys(mine, run)
        runs.append(run)
    return RunsLoaded(tuple(runs), tuple(problems))


def load_run(directory: Path) -> Run:
    """Read a run. Raises RecordError when its plan cannot be read."""
    plan = read_plan(directory)
    cells = tuple(_load_cell(plan, directory, cell) for cell in plan.cells)
    problems = tuple(
        f"{cell.directory.relative_to(directory)}: {cell.problem}" for cell in cells if cell.status == INVALID
    )
    return Run(directory, plan, cells, problems)


@contextmanager
def _no_collecting() -> Iterator[None]:
    """Records hold no cycles: to look for some among ever more of them takes a third of the loading."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        # Those that are loaded are not looked through again.
        gc.freeze()
        if collecting:
            gc.enable()


def _plans(results: Path) -> tuple[dict[Path, PlanRecord], list[str]]:
    plans: dict[Path, PlanRecord] = {}
    problems = []
    for directory in _run_directories(results):
        try:
            plans[directory] = read_plan(directory)
        except RecordError as error:
            problems.append(str(error))
    return plans, problems


def _run_directories(results: Path) -> Iterator[Path]:
    if (results / PLAN_FILE).is_file():
        yield results
    elif results.is_dir():
        for directory in sorted(results.iterdir()):
            if directory.name != REFERENCE and (directory / PLAN_FILE).is_file():
                yield directory


def _load_cell(plan: PlanRecord, run_directory: Path, cell: Cell) -> CellRecords:
    directory = cell_directory(run_directory, cell)
    stored: dict[str, Phase] = {}
    problem = ""
    for kind in (*RECORD_KINDS, "failed"):
        path = directory / f"{kind}.json"
        if not path.exists():
            continue
        try:
            stored[kind] = _read_phase(path, kind, plan.run_id, cell)
        except RecordError as error:
            problem = problem or str(error)
    status, problem = _judged(cell, stored, problem)
    records = CellRecords(cell, directory, plan.run_id, status, problem, stored)
    if status == COMPLETE and (later := _disturbed_later(records)):
        return replace(records, status=INVALID, problem=later)
    return records


def _disturbed_later(records: CellRecords) -> str:
    """Why a series after the on record cannot be used, "" where each can."""
    try:
        series: list[AfterRecord | ChurnRecord | None] = [records.after, *records.churn.values()]
    except RecordError as error:
        return str(error).removesuffix(".")
    return next((problem for one in series if one is not None and (problem := series_problem(one))), "")


def _judged(cell: Cell, stored: Mapping[str, Phase], problem: str) -> tuple[str, str]:
    """Status and problem of a cell of which these records can be read."""
    failed = stored.get("failed")
    if isinstance(failed, FailedRecord):
        seen = failed.observed
        return FAILED, f"failed in {seen.phase}, task {seen.task!r}: {seen.message}"
    if problem:
        return INVALID, problem
    off, merge, on, verify = (stored.get(kind) for kind in RECORD_KINDS)
    if (
        isinstance(off, SnapshotRecord)
        and isinstance(merge, MergeRecord)
        and isinstance(on, SnapshotRecord)
        and isinstance(verify, VerifyRecord)
    ):
        problem = cell_problem(cell, Measured(off, merge, on, verify))
        return (INVALID, problem) if problem else (COMPLETE, "")
    missing = [kind for kind in RECORD_KINDS if kind not in stored]
    return MISSING, f"not measured: no {', '.join(missing)} record" + ("s" if len(missing) > 1 else "")


def _read_phase(path: Path, kind: str, run_id: str, cell: Cell) -> Phase:
    record = read_record(path, PHASES[kind])
    if record.kind != kind:
        raise RecordError(f"{path.name} holds a record of kind {record.kind}")
    problem = identity_problem(record, run_id, cell)
    if problem:
        raise RecordError(f"{path.name} {problem}")
    return record

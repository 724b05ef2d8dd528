"""Capacity runs as they are stored: steps with ever more guests to the limit, and divergence."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.plan.policies import OFF, policy_order
from analysis.records.models import CapacityPhase, DivergenceRecord, StepRecord
from analysis.records.reading import RecordError, parse_record

CAPACITY = "capacity"

# Run, hypervisor, workload, memory of a guest, envelope
RunKey = tuple[str, str, str, int, int | None]


@dataclass(frozen=True)
class Base:
    """A step that measured the host with no guest at all, and its file."""

    path: Path
    sha256: str
    step: StepRecord


@dataclass(frozen=True)
class CapacityRun:
    """One load taken to its limits on one host.

    ``arms``: by policy, off first, its steps by boot and rising guests.
    """

    run_id: str
    hypervisor: str
    workload: str
    guest_memory_bytes: int
    envelope_bytes: int | None
    arms: dict[str, tuple[StepRecord, ...]]
    divergences: tuple[DivergenceRecord, ...]
    bases: tuple[Base, ...]

    @property
    def first(self) -> StepRecord | DivergenceRecord:
        """Any record, for what they have in common."""
        steps = (step for steps in self.arms.values() for step in steps)
        return next(steps, None) or self.divergences[0]

    @property
    def policies(self) -> list[str]:
        """Policies of the run other than off."""
        seen = {*self.arms, *(record.policy for record in self.divergences)}
        return sorted(seen - {OFF}, key=policy_order)

    @property
    def boots(self) -> list[int]:
        """The numbers of the sets of booted guests that were taken to the limits."""
        return sorted({step.boot for steps in self.arms.values() for step in steps})

    def of_boot(self, policy: str, boot: int) -> list[StepRecord]:
        """The steps of one boot's arm, by rising guests."""
        return [step for step in self.arms.get(policy, ()) if step.boot == boot]

    @property
    def capacity_bytes(self) -> int:
        """What the guests have to fit in: the envelope, or the host's memory."""
        return self.envelope_bytes or self.first.provenance.memory_total_bytes


@dataclass(frozen=True)
class _File:
    path: Path
    sha256: str
    record: StepRecord | DivergenceRecord


def load_capacity(results: Path) -> tuple[list[CapacityRun], list[str]]:
    """Every capacity run under ``results``/capacity, and a sentence for each record that is left out.

    Of two records of one step neither says which holds: both are left out. So is one while which somebody
    changed a knob of KSM.
    """
    files, problems = [], []
    for path in sorted((results / CAPACITY).rglob("*.json")):
        try:
            files.append(_read(path))
        except RecordError as error:
            problems.append(f"{path.parent}: {str(error).rstrip('.')}")
    single, doubled = _apart(files)
    return _runs(single), [*problems, *doubled]


def _read(path: Path) -> _File:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path.name} cannot be read: {error.strerror}.") from None
    record = (
        parse_record(raw, DivergenceRecord, path.name)
        if _kind(raw) == "divergence"
        else parse_record(raw, StepRecord, path.name)
    )
    for change in record.observed.knob_changes:
        raise RecordError(f"{path.name}: {change.words} {change.seconds:.0f} s after it had begun.")
    return _File(path, "sha256:" + hashlib.sha256(raw).hexdigest(), record)


def _kind(raw: bytes) -> object:
    """What a file says it is; whether it can be read at all is judged with its model."""
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return content.get("kind") if isinstance(content, dict) else None


def _apart(files: Sequence[_File]) -> tuple[list[_File], list[str]]:
    """Divergences and the steps that are alone of their run, boot, policy and guests; and the others."""
    steps: dict[tuple[RunKey, str, int, int], list[_File]] = {}
    for one in files:
        if isinstance(one.record, StepRecord):
            key = (_key(one.record), one.record.policy, one.record.guests, one.record.boot)
            steps.setdefault(key, []).append(one)
    doubled = {key: mine for key, mine in steps.items() if len(mine) > 1}
    problems = [
        f"{' and '.join(str(one.path) for one in mine)} are all the step to {guests} guests with the policy "
        f"{policy}: a run has one"
        for (_run, policy, guests, _boot), mine in doubled.items()
    ]
    apart = {one.path for mine in doubled.values() for one in mine}
    return [one for one in files if one.path not in apart], problems


def _runs(files: Iterable[_File]) -> list[CapacityRun]:
    groups: dict[RunKey, list[_File]] = {}
    for one in files:
        groups.setdefault(_key(one.record), []).append(one)
    runs = []
    for key, mine in groups.items():
        steps = [(one, one.record) for one in mine if isinstance(one.record, StepRecord)]
        policies = sorted({record.policy for _file, record in steps}, key=policy_order)
        arms = {
            policy: tuple(
                sorted((r for _file, r in steps if r.policy == policy), key=lambda r: (r.boot, r.guests))
            )
            for policy in policies
        }
        divergences = tuple(one.record for one in mine if isinstance(one.record, DivergenceRecord))
        bases = tuple(Base(one.path, one.sha256, step) for one, step in steps if step.guests == 0)
        runs.append(CapacityRun(*key, arms=arms, divergences=divergences, bases=bases))
    return runs


def _key(record: CapacityPhase) -> RunKey:
    return (
        record.run_id,
        record.hypervisor,
        record.workload,
        record.guest_memory_bytes,
        record.envelope_bytes,
    )

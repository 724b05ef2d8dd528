"""Capacity runs as they are stored: steps with ever more guests to the limit, and divergence."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema.exceptions import best_match
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from analysis.plan.policies import OFF, policy_order
from analysis.records.loading import SCHEMA, RecordError
from analysis.records.migration import migrate_capacity

CAPACITY = "capacity"
STEP = "capacity_step"
DIVERGENCE = "divergence"
PROBES = (
    "write_latency_p50_us",
    "write_latency_p99_us",
    "touch_mib_per_second",
    "cpu_iterations_per_second",
)
_RUN = ("run_id", "hypervisor", "workload", "guest_memory_bytes", "envelope_bytes")


@dataclass(frozen=True)
class CapacityRecord:
    """One stored record of a capacity run, checked against its schema."""

    path: Path
    sha256: str
    content: dict[str, Any]


@dataclass(frozen=True)
class CapacityRun:
    """One load taken to the limit on one host. ``arms``: by policy, off first, its steps by rising guests."""

    run_id: str
    hypervisor: str
    workload: str
    guest_memory_bytes: int
    envelope_bytes: int | None
    arms: dict[str, tuple[CapacityRecord, ...]]
    divergences: tuple[CapacityRecord, ...]

    @property
    def first(self) -> dict[str, Any]:
        """Any record, for what they have in common."""
        return next(
            record.content for records in (*self.arms.values(), self.divergences) for record in records
        )

    @property
    def policies(self) -> list[str]:
        """Policies of the run other than off."""
        seen = {*self.arms, *(record.content["policy"] for record in self.divergences)}
        return sorted(seen - {OFF}, key=policy_order)

    @property
    def capacity_bytes(self) -> int:
        """What the guests have to fit in: the envelope, or the host's memory."""
        return self.envelope_bytes or int(self.first["provenance"]["memory_total_bytes"])


def load_capacity(results: Path) -> tuple[list[CapacityRun], list[str]]:
    """Every capacity run under ``results``/capacity, and a sentence for each record that is left out.

    Of two records of one step neither says which holds: both are left out.
    """
    records, problems = [], []
    for path in sorted((results / CAPACITY).rglob("*.json")):
        try:
            records.append(_read(path))
        except RecordError as error:
            problems.append(str(error).rstrip("."))
    single, doubled = _apart(records)
    return _runs(single), [*problems, *doubled]


def breach(content: Any, schema: str) -> str | None:
    """How content breaks the schema of this name, as "$.path: message"; None when it fits."""
    error = best_match(_validator(schema).iter_errors(content))
    return None if error is None else f"{error.json_path}: {error.message.splitlines()[0][:160]}"


def _read(path: Path) -> CapacityRecord:
    try:
        raw = path.read_bytes()
        content = migrate_capacity(json.loads(raw))
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} cannot be read: {error}.") from None
    found = breach(content, "capacity")
    if found:
        raise RecordError(f"{path} breaks the schema at {found}.")
    lengths = {len(column) for column in content["observed"].get("samples", {}).values()}
    if len(lengths) > 1:
        raise RecordError(f"{path} has samples of different lengths.")
    return CapacityRecord(path, "sha256:" + hashlib.sha256(raw).hexdigest(), content)


def _apart(records: Sequence[CapacityRecord]) -> tuple[list[CapacityRecord], list[str]]:
    """Divergences and the steps that are alone of their run, policy and number of guests; and the others."""
    steps: dict[tuple[Any, ...], list[CapacityRecord]] = {}
    for record in records:
        if record.content["kind"] == STEP:
            key = tuple(record.content[name] for name in (*_RUN, "policy", "guests"))
            steps.setdefault(key, []).append(record)
    doubled = [mine for mine in steps.values() if len(mine) > 1]
    problems = [
        f"{' and '.join(str(one.path) for one in mine)} are all the step to "
        f"{mine[0].content['guests']} guests with the policy {mine[0].content['policy']}: a run has one"
        for mine in doubled
    ]
    apart = {one.path for mine in doubled for one in mine}
    return [record for record in records if record.path not in apart], problems


def _runs(records: Iterable[CapacityRecord]) -> list[CapacityRun]:
    groups: dict[tuple[Any, ...], list[CapacityRecord]] = {}
    for record in records:
        key = tuple(record.content[name] for name in _RUN)
        groups.setdefault(key, []).append(record)
    runs = []
    for mine in groups.values():
        arms: dict[str, tuple[CapacityRecord, ...]] = {}
        for policy in sorted({record.content["policy"] for record in mine}, key=policy_order):
            steps = [r for r in mine if r.content["kind"] == STEP and r.content["policy"] == policy]
            if steps:
                arms[policy] = tuple(sorted(steps, key=lambda record: int(record.content["guests"])))
        divergences = tuple(r for r in mine if r.content["kind"] == DIVERGENCE)
        runs.append(
            CapacityRun(**{name: mine[0].content[name] for name in _RUN}, arms=arms, divergences=divergences)
        )
    return runs


@cache
def _validator(name: str) -> Validator:
    try:
        schemas = {
            file: json.loads((SCHEMA.parent / file).read_text(encoding="utf-8"))
            for file in (SCHEMA.name, f"{name}.schema.json")
        }
    except OSError as error:
        raise RecordError(f"the schema {name} cannot be read: {error}.") from None
    shared: Resource[Any] = DRAFT202012.create_resource(schemas[SCHEMA.name])
    schema = schemas[f"{name}.schema.json"]
    registry: Registry[Any] = Registry().with_resource(SCHEMA.name, shared)
    return validator_for(schema)(schema, registry=registry)

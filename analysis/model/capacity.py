"""Capacity runs: guests started one after another to the limit, and what divergence of merged pages does."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
from jsonschema.exceptions import best_match
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from analysis.plan.design import MIB
from analysis.plan.policies import OFF, policy_order
from analysis.records.loading import SCHEMA, RecordError, flat, self_tuned
from analysis.records.migration import migrate_capacity

CAPACITY = "capacity"
STEP, DIVERGENCE = "capacity_step", "divergence"
PROBES = (
    "write_latency_p50_us",
    "write_latency_p99_us",
    "touch_mib_per_second",
    "cpu_iterations_per_second",
)
# Of the start, only from what is a condition.
_NO_CONDITION = frozenset({"design_digest", "start"})
_RUN = ("run_id", "hypervisor", "workload", "guest_memory_bytes", "envelope_bytes")
_TAIL = 0.05
_HELD = {True: "it held", False: "it did NOT hold", None: "whether it holds is not known"}


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


@dataclass(frozen=True)
class ActualLimit:
    """The most guests that ran without a stop; ``reached`` when a step stopped, for ``reason``."""

    guests: int
    reached: bool
    reason: str


@dataclass(frozen=True)
class Divergence:
    """What happened when merged guests all wrote at once.

    ``regained_bytes``: sharing lost, which the guests took from the host again; ``rate``: bytes per second,
    the peak between two samples, and the mean from 5 % to 95 % regained. Latencies are medians over the
    guests in microseconds. ``safe_bytes`` is the forecast's safe need of these guests; None without one.
    ``whole``: the series goes on to the last guest's answer.
    """

    run_id: str
    workload: str
    policy: str
    guests: int
    guests_alive: int
    oom_kills: int | None
    regained_bytes: int
    peak_rate: float
    mean_rate: float | None
    cow_ksm: int | None
    peak_used_bytes: int
    capacity_bytes: int
    p99_before_us: float | None
    p99_during_us: float | None
    safe_bytes: float | None
    whole: bool

    @property
    def survived(self) -> bool:
        """Whether every guest lives and nothing was killed."""
        return self.guests_alive == self.guests and not self.oom_kills

    @property
    def safe_holds(self) -> bool | None:
        """Whether the guests lived and used no more than the safe need.

        None without a forecast, or where the series ended before the guests had all answered.
        """
        if self.safe_bytes is None or (self.survived and not self.whole):
            return None
        return self.survived and self.peak_used_bytes <= self.safe_bytes


def load_capacity(results: Path) -> list[CapacityRun]:
    """Every capacity run under ``results``/capacity.

    Raises RecordError naming a record that cannot be used.
    """
    return _runs([_read(path) for path in sorted((results / CAPACITY).rglob("*.json"))])


def breach(content: Any, schema: str) -> str | None:
    """How content breaks the schema of this name, as "$.path: message"; None when it fits."""
    error = best_match(_validator(schema).iter_errors(content))
    return None if error is None else f"{error.json_path}: {error.message.splitlines()[0][:160]}"


def conditions(content: dict[str, Any]) -> dict[str, str]:
    """What two measurements must have in common, as flat names and text."""
    provenance, off = content["provenance"], content["policy"] == OFF
    knobs, start = provenance["ksm_knobs"], provenance["start"]
    tuned = self_tuned(knobs, "")
    found = flat(
        {
            **{name: value for name, value in provenance.items() if name not in _NO_CONDITION},
            # With KSM off they say nothing.
            "ksm_knobs": {} if off else {n: value for n, value in knobs.items() if n not in tuned},
            "start": {} if no_guests(content) or start is None else {"from": start["from"]},
            "requested": content["requested"],
        }
    )
    return {name: text(value) for name, value in found.items()}


def no_guests(content: Mapping[str, Any]) -> bool:
    """Whether a step measured the host alone, which nothing began from."""
    return int(content["guests"]) == 0


def text(value: Any) -> str:
    """A condition as text, the same whether a table holds it as a whole number or not."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "absent"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def used_bytes(content: dict[str, Any]) -> int:
    """What a step uses of its capacity: the envelope's working set, or the host's MemTotal - MemAvailable."""
    envelope = content["observed"]["envelope"]
    if content["envelope_bytes"] is not None:
        return int(envelope["working_set_bytes"])
    return host_used_bytes(content)


def host_used_bytes(content: dict[str, Any]) -> int:
    """What the host uses at a step, see :func:`in_use_bytes`."""
    return in_use_bytes(content["observed"]["host"], content["provenance"]["page_size_bytes"])


def in_use_bytes(host: Mapping[str, Any], page_size_bytes: int) -> int:
    """MemTotal - MemAvailable, less the free pages on the per-CPU lists.

    MemAvailable does not count these (mm/show_mem.c), and how many there are is chance: tens to hundreds of
    MiB from one reading to the next. Where the kernel hides them they stay in.
    """
    memory = host["meminfo"]
    per_cpu = (host["per_cpu_free_pages"] or 0) * page_size_bytes
    return int(memory["MemTotal_bytes"] - memory["MemAvailable_bytes"] - per_cpu)


def base_steps(runs: Sequence[CapacityRun], hypervisor: str) -> list[CapacityRecord]:
    """The steps that measured a host with no guest at all."""
    return [
        step
        for run in runs
        if run.hypervisor == hypervisor
        for steps in run.arms.values()
        for step in steps
        if no_guests(step.content)
    ]


def steps_table(run: CapacityRun) -> pd.DataFrame:
    """One row a step, by policy and guests.

    Columns: policy, guests, used_bytes; the probes' medians over the guests (NaN when none answered) and
    ``silent_guests``; ksmd_percent and psi_memory_percent of the window's time, steal_percent of all CPUs;
    cow_ksm_per_second, pgmajfault_per_second, swapped_pages; converged; stop, "" while it went on.
    """
    return pd.DataFrame([_row(step.content) for steps in run.arms.values() for step in steps])


def relation(table: pd.DataFrame) -> pd.DataFrame:
    """Memory saved against performance lost: a row for each policy and number of guests seen off, too.

    Columns: policy, guests, saved_bytes, and by how many percent the policy is worse than off:
    touch_lost_percent, cpu_lost_percent (less throughput), p50_added_percent, p99_added_percent (more
    latency).
    """
    # At 0 guests there is neither a saving nor a probe.
    running = table[table["guests"] > 0]
    off, on = running[running["policy"] == OFF], running[running["policy"] != OFF]
    both = on.merge(off, on="guests", suffixes=("_on", "_off"), validate="many_to_one")

    def change(name: str, sign: int) -> "pd.Series[float]":
        return sign * 100 * (both[f"{name}_on"] / both[f"{name}_off"] - 1)

    return pd.DataFrame(
        {
            "policy": both["policy_on"],
            "guests": both["guests"],
            "saved_bytes": both["used_bytes_off"] - both["used_bytes_on"],
            "touch_lost_percent": change("touch_mib_per_second", -1),
            "cpu_lost_percent": change("cpu_iterations_per_second", -1),
            "p50_added_percent": change("write_latency_p50_us", 1),
            "p99_added_percent": change("write_latency_p99_us", 1),
        }
    )


def actual_limit(steps: Sequence[CapacityRecord]) -> ActualLimit:
    """The limit that one arm's steps, by rising guests, ran into."""
    guests = 0
    for step in steps:
        stop = step.content["stop"]
        if stop is not None:
            beyond = step.content["guests"]
            if beyond > guests + 1:
                between = f"it lies between {guests} and {beyond - 1}: the run ended before it was found"
                return ActualLimit(guests, False, between)
            return ActualLimit(guests, True, str(stop["reason"]))
        guests = step.content["guests"]
    return ActualLimit(guests, False, "the run ended before a limit")


def divergence(record: CapacityRecord, safe_bytes: float | None) -> Divergence:
    """Judge one divergence record.

    Raises RecordError when its columns differ in length.
    """
    content = record.content
    observed, provenance = content["observed"], content["provenance"]
    samples = observed["samples"]
    if len({len(column) for column in samples.values()}) != 1:
        raise RecordError(f"{record.path} has samples of different lengths.")
    seconds, saved = samples["seconds"], saved_series(content)
    regained = [max(0, before - now) for before, now in pairwise(saved)]
    spans = [later - earlier for earlier, later in pairwise(seconds)]
    lost = saved[0] - min(saved)
    finished = observed["write"]["finished_seconds"]
    return Divergence(
        run_id=content["run_id"],
        workload=content["workload"],
        policy=content["policy"],
        guests=content["guests"],
        guests_alive=observed["guests_alive"],
        oom_kills=observed["oom_kills"],
        regained_bytes=lost,
        peak_rate=max((r / s for r, s in zip(regained, spans, strict=True) if s > 0), default=0.0),
        mean_rate=_mean_rate(seconds, saved),
        cow_ksm=None if None in samples["cow_ksm"] else samples["cow_ksm"][-1] - samples["cow_ksm"][0],
        peak_used_bytes=max(used_series(content)),
        capacity_bytes=content["envelope_bytes"] or provenance["memory_total_bytes"],
        p99_before_us=_median(observed["probes_before"], "write_latency_p99_us"),
        p99_during_us=_median(observed["probes_during"], "write_latency_p99_us"),
        safe_bytes=safe_bytes,
        whole=finished is not None and finished <= seconds[-1],
    )


def saved_series(content: dict[str, Any]) -> list[int]:
    """Gross saved bytes of each sample."""
    samples, page = content["observed"]["samples"], content["provenance"]["page_size_bytes"]
    return [
        (sharing + (zero or 0)) * page
        for sharing, zero in zip(samples["pages_sharing"], samples["ksm_zero_pages"], strict=True)
    ]


def used_series(content: dict[str, Any]) -> list[int]:
    """Use of the capacity at each sample, as in :func:`used_bytes`."""
    samples = content["observed"]["samples"]
    if content["envelope_bytes"] is not None:
        return [int(value or 0) for value in samples["envelope_working_set_bytes"]]
    total = content["provenance"]["memory_total_bytes"]
    return [total - available for available in samples["MemAvailable_bytes"]]


def capacity_lines(run: CapacityRun) -> list[str]:
    """The steps of a run as a table of text, and memory saved against performance lost."""
    table = steps_table(run)
    lines = [
        f"{'policy':<15}{'N':>4}{'used MiB':>9}{'p50 us':>8}{'p99 us':>8}{'touch MiB/s':>12}{'CPU it/s':>10}"
        f"{'ksmd %':>7}{'PSI mem %':>10}{'COW/s':>7}{'majflt/s':>9}{'steal %':>8}"
    ]
    for row in table.to_dict("records"):
        numbers = (
            _shown(row["write_latency_p50_us"], 8, 1),
            _shown(row["write_latency_p99_us"], 8, 1),
            _shown(row["touch_mib_per_second"], 12, 0),
            _shown(row["cpu_iterations_per_second"], 10, 0),
            _shown(row["ksmd_percent"], 7, 1),
            _shown(row["psi_memory_percent"], 10, 1),
            _shown(row["cow_ksm_per_second"], 7, 0),
            _shown(row["pgmajfault_per_second"], 9, 1),
            _shown(row["steal_percent"], 8, 1),
        )
        lines.append(
            f"{row['policy']:<15}{row['guests']:>4}{row['used_bytes'] / MIB:>9.0f}{''.join(numbers)}"
        )
        if row["stop"]:
            lines.append(f"     stopped: {row['stop']}")
        if row["silent_guests"]:
            lines.append(f"     ! {row['silent_guests']} guests gave no answer; the medians leave them out")
        if row["converged"] is False:
            lines.append("     ! not converged: KSM was still merging")
    both = relation(table)
    if not both.empty:
        lines += [
            "",
            "Memory saved against performance lost, each policy against off at the same N:",
            f"{'policy':<15}{'N':>4}{'saved MiB':>11}{'touch lost %':>14}{'CPU lost %':>12}"
            f"{'p50 added %':>13}{'p99 added %':>13}",
        ]
        for row in both.to_dict("records"):
            lines.append(
                f"{row['policy']:<15}{row['guests']:>4}{row['saved_bytes'] / MIB:>11.0f}"
                f"{_shown(row['touch_lost_percent'], 14, 1)}"
                f"{_shown(row['cpu_lost_percent'], 12, 1)}{_shown(row['p50_added_percent'], 13, 1)}"
                f"{_shown(row['p99_added_percent'], 13, 1)}"
            )
    return lines


def divergence_lines(seen: Divergence) -> list[str]:
    """One divergence in words."""
    rate = "unknown" if seen.mean_rate is None else f"{seen.mean_rate / MIB:.0f} MiB/s"
    lines = [
        f"Divergence, {seen.workload}, {seen.policy}, {seen.guests} guests: "
        f"{seen.regained_bytes / MIB:.0f} MiB regained by the guests, {rate} on average, "
        f"{seen.peak_rate / MIB:.0f} MiB/s at the peak; copy-on-write faults: "
        f"{'unknown' if seen.cow_ksm is None else seen.cow_ksm}.",
        f"Write latency p99: {_shown(seen.p99_before_us, 0, 1)} us before, "
        f"{_shown(seen.p99_during_us, 0, 1)} us during. "
        f"{'All guests live' if seen.survived else f'{seen.guests_alive} of {seen.guests} guests live'}; "
        f"peak use {seen.peak_used_bytes / MIB:.0f} of {seen.capacity_bytes / MIB:.0f} MiB.",
    ]
    if seen.safe_bytes is not None:
        lines.append(
            f"The safe need of these guests was forecast as {seen.safe_bytes / MIB:.0f} MiB: "
            f"{_HELD[seen.safe_holds]}."
        )
    if not seen.whole:
        lines.append("! The series ended before every guest had answered: what came later is not in it.")
    return lines


def _read(path: Path) -> CapacityRecord:
    try:
        raw = path.read_bytes()
        content = migrate_capacity(json.loads(raw))
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} cannot be read: {error}.") from None
    found = breach(content, "capacity")
    if found:
        raise RecordError(f"{path} breaks the schema at {found}.")
    return CapacityRecord(path, "sha256:" + hashlib.sha256(raw).hexdigest(), content)


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
            steps.sort(key=lambda record: (record.content["guests"], record.content["recorded_at"]))
            for one, other in pairwise(steps):
                if one.content["guests"] == other.content["guests"]:
                    raise RecordError(
                        f"{one.path} and {other.path} are both the step to {one.content['guests']} guests "
                        f"with the policy {policy}: a run has one."
                    )
            if steps:
                arms[policy] = tuple(steps)
        divergences = tuple(r for r in mine if r.content["kind"] == DIVERGENCE)
        runs.append(
            CapacityRun(**{name: mine[0].content[name] for name in _RUN}, arms=arms, divergences=divergences)
        )
    return runs


def _row(content: dict[str, Any]) -> dict[str, Any]:
    observed = content["observed"]
    window, probes = observed["window"], observed["probes"]
    seconds, vmstat, psi = window["seconds"], window["vmstat"], window["psi_some_microseconds"]
    cpus = content["provenance"]["cpu_count"] or 1
    steal, cow = window["steal_seconds"], vmstat["cow_ksm"]
    return {
        "policy": content["policy"],
        "guests": content["guests"],
        "used_bytes": used_bytes(content),
        **{name: _number(_median(probes, name)) for name in PROBES},
        "silent_guests": sum(probe is None for probe in probes.values()),
        "ksmd_percent": 100 * window["ksmd_cpu_seconds"] / seconds,
        "psi_memory_percent": _number(None if psi is None else psi["memory"] / 1e4 / seconds),
        "steal_percent": _number(None if steal is None else 100 * steal / seconds / cpus),
        "cow_ksm_per_second": _number(None if cow is None else cow / seconds),
        "pgmajfault_per_second": _number(vmstat["pgmajfault"]) / seconds,
        "swapped_pages": _number(vmstat["pswpin"]) + _number(vmstat["pswpout"]),
        "converged": observed["converged"],
        "stop": "" if content["stop"] is None else content["stop"]["reason"],
    }


def _mean_rate(seconds: Sequence[float], saved: Sequence[int]) -> float | None:
    lost = saved[0] - min(saved)
    if lost <= 0:
        return None
    fell = [saved[0] - now for now in saved]
    end = next(place for place, value in enumerate(fell) if value >= (1 - _TAIL) * lost)
    start = max((place for place in range(end) if fell[place] <= _TAIL * lost), default=0)
    return (fell[end] - fell[start]) / (seconds[end] - seconds[start])


def _median(probes: dict[str, Any], name: str) -> float | None:
    values = [probe[name] for probe in probes.values() if probe is not None]
    return median(values) if values else None


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _shown(value: float | None, width: int, decimals: int) -> str:
    return f"{'-' if value is None or math.isnan(value) else f'{value:.{decimals}f}':>{width}}"


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

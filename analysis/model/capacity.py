"""What a capacity run shows: use and performance by guests, the limit, and divergence of merged pages."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import pandas as pd

from analysis.measure import saving
from analysis.measure.pooling import condition_text
from analysis.plan.policies import OFF
from analysis.records import checks
from analysis.records.capacity import PROBES, CapacityRun
from analysis.records.models import DivergenceRecord, Probe, StepRecord, WritingProbe
from plugins.module_utils.ksm_convergence import saved_pages

_TAIL = 0.05


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


def conditions(record: StepRecord | DivergenceRecord) -> dict[str, str]:
    """What two measurements must have in common, as flat names and text."""
    found = checks.conditions(
        record.provenance,
        record.requested.model_dump(),
        merges=record.policy != OFF,
        guests=record.guests > 0,
    )
    if record.observed.other_mergeable:
        found["others"] = "present"
    return {name: condition_text(value) for name, value in found.items()}


def used_bytes(step: StepRecord) -> float:
    """What a step uses of its capacity: the envelope's working set, or what the host uses; NaN: not known."""
    if step.envelope_bytes is not None and step.observed.envelope is not None:
        return float(step.observed.envelope.working_set_bytes)
    used = saving.used_bytes(step.observed.host, step.provenance.page_size_bytes)
    return math.nan if isinstance(used, saving.Unknown) else used


def steps_table(run: CapacityRun) -> pd.DataFrame:
    """One row a step, by policy and guests.

    Columns: policy, guests, used_bytes; the probes' medians over the guests (NaN when none answered) and
    ``silent_guests``; ksmd_percent and psi_memory_percent of the window's time, steal_percent of all CPUs;
    cow_ksm_per_second, pgmajfault_per_second, swapped_pages; converged; stop, "" while it went on.
    """
    return pd.DataFrame([_row(step) for steps in run.arms.values() for step in steps])


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


def actual_limit(steps: Sequence[StepRecord]) -> ActualLimit:
    """The limit that one arm's steps, by rising guests, ran into."""
    guests = 0
    for step in steps:
        if step.stop is not None:
            if step.guests > guests + 1:
                between = f"it lies between {guests} and {step.guests - 1}: the run ended before it was found"
                return ActualLimit(guests, False, between)
            return ActualLimit(guests, True, step.stop.reason)
        guests = step.guests
    return ActualLimit(guests, False, "the run ended before a limit")


def divergence(record: DivergenceRecord, safe_bytes: float | None) -> Divergence:
    """Judge one divergence record."""
    observed = record.observed
    seconds, saved = observed.samples.seconds, saved_series(record)
    regained = [max(0, before - now) for before, now in pairwise(saved)]
    spans = [later - earlier for earlier, later in pairwise(seconds)]
    first, *_between, last = observed.samples.cow_ksm
    finished = observed.write.finished_seconds
    return Divergence(
        run_id=record.run_id,
        workload=record.workload,
        policy=record.policy,
        guests=record.guests,
        guests_alive=observed.guests_alive,
        oom_kills=observed.oom_kills,
        regained_bytes=saved[0] - min(saved),
        peak_rate=max((r / s for r, s in zip(regained, spans, strict=True) if s > 0), default=0.0),
        mean_rate=_mean_rate(seconds, saved),
        cow_ksm=None if first is None or last is None else last - first,
        peak_used_bytes=max(used_series(record)),
        capacity_bytes=record.envelope_bytes or record.provenance.memory_total_bytes,
        p99_before_us=_median(observed.probes_before, "write_latency_p99_us"),
        p99_during_us=_median(observed.probes_during, "write_latency_p99_us"),
        safe_bytes=safe_bytes,
        whole=finished is not None and finished <= seconds[-1],
    )


def saved_series(record: DivergenceRecord) -> list[int]:
    """Gross saved bytes of each sample."""
    samples = record.observed.samples
    return [
        saved_pages(sharing, zero) * record.provenance.page_size_bytes
        for sharing, zero in zip(samples.pages_sharing, samples.ksm_zero_pages, strict=True)
    ]


def used_series(record: DivergenceRecord) -> list[int]:
    """Use of the capacity at each sample, as in :func:`used_bytes`.

    Where the free pages on per-CPU lists were not sampled they count as used: the safe side of a limit.
    """
    samples, page = record.observed.samples, record.provenance.page_size_bytes
    if record.envelope_bytes is not None:
        return [value or 0 for value in samples.envelope_working_set_bytes]
    lists = samples.per_cpu_free_pages or [0] * len(samples.seconds)
    return [
        record.provenance.memory_total_bytes - available - (pages or 0) * page
        for available, pages in zip(samples.MemAvailable_bytes, lists, strict=True)
    ]


def _row(step: StepRecord) -> dict[str, Any]:
    observed, window = step.observed, step.observed.window
    seconds, vmstat, psi = window.seconds, window.vmstat, window.psi_some_microseconds
    steal, cow = window.steal_seconds, vmstat["cow_ksm"]
    return {
        "policy": step.policy,
        "guests": step.guests,
        "used_bytes": used_bytes(step),
        **{name: _number(_median(observed.probes, name)) for name in PROBES},
        "silent_guests": sum(probe is None for probe in observed.probes.values()),
        "ksmd_percent": 100 * window.ksmd_cpu_seconds / seconds,
        "psi_memory_percent": _number(None if psi is None else psi.memory / 1e4 / seconds),
        "steal_percent": _number(
            None if steal is None else 100 * steal / seconds / step.provenance.cpu_count
        ),
        "cow_ksm_per_second": _number(None if cow is None else cow / seconds),
        "pgmajfault_per_second": _number(vmstat["pgmajfault"]) / seconds,
        "swapped_pages": _number(vmstat["pswpin"]) + _number(vmstat["pswpout"]),
        "converged": observed.converged,
        "stop": "" if step.stop is None else step.stop.reason,
    }


def _mean_rate(seconds: Sequence[float], saved: Sequence[int]) -> float | None:
    lost = saved[0] - min(saved)
    if lost <= 0:
        return None
    fell = [saved[0] - now for now in saved]
    end = next(place for place, value in enumerate(fell) if value >= (1 - _TAIL) * lost)
    start = max((place for place in range(end) if fell[place] <= _TAIL * lost), default=0)
    return (fell[end] - fell[start]) / (seconds[end] - seconds[start])


def _median(
    probes: Mapping[str, Probe | None] | Mapping[str, WritingProbe | None], name: str
) -> float | None:
    values = [getattr(probe, name) for probe in probes.values() if probe is not None]
    return median(values) if values else None


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)

"""What a capacity run shows: use and performance by guests, the limit, and divergence of merged pages."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import pandas as pd

from analysis.measure import saving
from analysis.plan.policies import OFF
from analysis.records.capacity import PROBES, CapacityRecord, CapacityRun
from analysis.records.loading import flat, self_tuned

# Of the start, only from what is a condition.
_NO_CONDITION = frozenset({"design_digest", "start"})
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


def used_bytes(content: dict[str, Any]) -> float:
    """What a step uses of its capacity: the envelope's working set, or what the host uses; NaN: not known."""
    if content["envelope_bytes"] is not None:
        return float(content["observed"]["envelope"]["working_set_bytes"])
    used = saving.used_bytes(content["observed"]["host"], content["provenance"]["page_size_bytes"])
    return math.nan if isinstance(used, saving.Unknown) else used


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
    """Judge one divergence record."""
    content = record.content
    observed, provenance = content["observed"], content["provenance"]
    samples = observed["samples"]
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

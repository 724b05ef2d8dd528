"""What a capacity run shows: use and performance by guests, its limits, and divergence of merged pages."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import pandas as pd

from analysis.measure import saving
from analysis.measure.pooling import condition_text
from analysis.measure.statistics import Estimate, estimate
from analysis.plan.design import MIB
from analysis.plan.policies import OFF
from analysis.records import checks
from analysis.records.capacity import PROBES, CapacityRun
from analysis.records.models import DivergenceRecord, EnvelopeSamples, Probe, StepRecord
from plugins.module_utils.ksm_convergence import saved_pages

_TAIL = 0.05
# Reading less than that costs a guest no more than the request does.
_LEAST_READ_BYTES = 64 * MIB

# What a policy is compared by with KSM off: column, the step's value, and 1 where more of it is worse
COSTS = {
    "touch_lost_percent": ("touch_mib_per_second", -1),
    "cpu_lost_percent": ("cpu_iterations_per_second", -1),
    "p50_added_percent": ("write_latency_p50_us", 1),
    "p99_added_percent": ("write_latency_p99_us", 1),
    "read_cpu_added_percent": ("read_cpu_us_per_mib", 1),
    "operation_cpu_added_percent": ("operation_cpu_us", 1),
}


@dataclass(frozen=True)
class ActualLimit:
    """The most guests that an arm reached; ``reached`` when one more did not fit, for ``reason``."""

    guests: int
    reached: bool
    reason: str


@dataclass(frozen=True)
class FoundLimits:
    """The limits of one arm of one boot, see docs/forecast.md.

    ``admission``: None where it was not watched how guests were started. ``safe``: the same for all arms of
    a boot; None where its arm without KSM does not tell.
    """

    boot: int
    policy: str
    steady: ActualLimit
    admission: ActualLimit | None
    safe: int | None


@dataclass(frozen=True)
class Divergence:
    """What happened when merged guests wrote over what they share, one after another.

    ``regained_bytes``: sharing lost, which the guests took from the host again; ``rate``: bytes per second,
    the peak between two samples, and the mean from 5 % to 95 % regained. ``free_seconds``: how long what was
    free of the capacity at first would have lasted at the peak. ``part``: the part of all that the
    guests hold that was made to differ; ``full_part``: when more was used than they have to fit in, None: it
    never was; ``full_seconds``: how long after the first request that was.
    ``psi_memory_percent``: of the time in which some task of the host waited for memory.
    ``safe_bytes`` is the forecast's safe need of these guests, ``predicted_part`` what it says of
    ``full_part``; None without one. ``whole``: the series goes on to the last guest's answer.
    """

    run_id: str
    boot: int
    workload: str
    policy: str
    guests: int
    guests_alive: int
    oom_kills: int | None
    regained_bytes: int
    peak_rate: float
    mean_rate: float | None
    free_seconds: float | None
    cow_ksm: int | None
    peak_used_bytes: float
    capacity_bytes: int
    part: float
    full_part: float | None
    full_seconds: float | None
    psi_memory_percent: float | None
    safe_bytes: float | None
    predicted_part: float | None
    whole: bool

    @property
    def survived(self) -> bool:
        """Whether every guest lives and nothing was killed."""
        return self.guests_alive == self.guests and not self.oom_kills

    @property
    def safe_holds(self) -> bool | None:
        """Whether the guests lived and used no more than the safe need, were all that they hold to differ.

        None without a forecast, where the series ended before the guests had answered, or not all diverged.
        """
        if self.safe_bytes is None:
            return None
        if not self.survived or self.peak_used_bytes > self.safe_bytes:
            return False
        return True if self.whole and self.part == 1 else None


def conditions(record: StepRecord | DivergenceRecord) -> dict[str, str]:
    """What two measurements must have in common, as flat names and text."""
    # What the host keeps available ends a run, and changes nothing in it.
    requested = record.requested.model_dump(exclude={"host_reserve_bytes"})
    found = checks.conditions(
        record.provenance, requested, merges=record.policy != OFF, guests=record.guests > 0
    )
    if isinstance(record, StepRecord) and record.observed.other_mergeable:
        found["others"] = "present"
    return {name: condition_text(value) for name, value in found.items()}


def used_bytes(step: StepRecord) -> float:
    """What a step uses of its capacity, NaN where it is not known.

    Of an envelope the cgroup's working set and KSM's own memory, which is the kernel's and in no cgroup; of
    the host all that it uses.
    """
    host, page = step.observed.host, step.provenance.page_size_bytes
    if step.envelope_bytes is not None and step.observed.envelope is not None:
        own = saving.ksm_own_bytes(host, step.observed.guests, step.provenance.ksm_knobs, page)
        return step.observed.envelope.working_set_bytes + known_or_nothing(own)
    used = saving.used_bytes(host, page)
    return math.nan if isinstance(used, saving.Unknown) else used


def known_or_nothing(value: saving.Value) -> float:
    """A value, 0 where it is not known."""
    return 0.0 if isinstance(value, saving.Unknown) else value


def line_bytes(record: StepRecord | DivergenceRecord) -> int:
    """What the guests have to fit in: the envelope, or the host's memory less what has to stay available."""
    reserve = record.requested.host_reserve_bytes or 0
    return record.envelope_bytes or record.provenance.memory_total_bytes - reserve


def used_series(record: StepRecord | DivergenceRecord, samples: EnvelopeSamples) -> list[float]:
    """Use of the capacity at each sample, as in :func:`used_bytes`.

    Where the free pages on per-CPU lists were not sampled they count as used: the safe side of a limit.
    """
    page = record.provenance.page_size_bytes
    if record.envelope_bytes is not None:
        return [
            (value or 0) + own
            for value, own in zip(samples.envelope_working_set_bytes, _own_series(samples, page), strict=True)
        ]
    lists = samples.per_cpu_free_pages or [0] * len(samples.seconds)
    return [
        float(record.provenance.memory_total_bytes - available - (pages or 0) * page)
        for available, pages in zip(samples.MemAvailable_bytes, lists, strict=True)
    ]


def saved_series(record: DivergenceRecord) -> list[int]:
    """Gross saved bytes of each sample."""
    return _gross_series(record.observed.samples, record.provenance.page_size_bytes)


def peak_bytes(step: StepRecord) -> float | None:
    """The most that was used while a step's guests started and settled; None where that was not watched."""
    admission = step.observed.admission
    return None if admission is None else max(used_series(step, admission))


def fits(step: StepRecord) -> bool:
    """Whether a step's guests fit once they have settled."""
    return step.stop is None and not used_bytes(step) > line_bytes(step)


def steady_limit(steps: Iterable[StepRecord]) -> ActualLimit:
    """The most settled guests that fit, of one arm's steps."""
    return _limit(steps, _why_not_steady)


def admission_limit(steps: Sequence[StepRecord]) -> ActualLimit | None:
    """The most guests that can be reached one after another with no more in use at any moment than may be.

    None where it was not watched how guests were started.
    """
    if any(step.guests and step.observed.admission is None for step in steps):
        return None
    return _limit(steps, lambda step: _why_not_steady(step) or _why_not_admitted(step))


def full_guest_bytes(steps: Sequence[StepRecord]) -> float | None:
    """What a guest takes that shares nothing and uses all of its memory, by an arm without KSM.

    What its QEMU and the kernel for it take beside what is resident of its own memory, as measured with the
    most guests, all of its memory, and KSM's own for it. None where the guests were not read.
    """
    most = max(steps, key=lambda step: step.guests)
    resident = [guest.mergeable_resident_bytes for guest in most.observed.guests.values()]
    known = [count for count in resident if count is not None]
    if not known or len(known) < most.guests:
        return None
    outside = (used_bytes(most) - _base_bytes(steps) - sum(known)) / most.guests
    memory = most.guest_memory_bytes
    return memory + max(outside, 0.0) + memory / most.provenance.page_size_bytes * saving.RMAP_ITEM_BYTES


def safe_limit(steps: Sequence[StepRecord]) -> int | None:
    """The most guests that fit with nothing shared, by an arm without KSM; None where that does not tell."""
    full = full_guest_bytes(steps) if steps else None
    if full is None:
        return None
    return max(0, int((line_bytes(steps[0]) - _base_bytes(steps)) // full))


def found_limits(run: CapacityRun) -> list[FoundLimits]:
    """The limits of each arm of each boot, off first."""
    found = []
    for policy in run.arms:
        for boot in run.boots:
            steps, off = (run.of_boot(name, boot) for name in (policy, OFF))
            if steps:
                admission = admission_limit(steps)
                found.append(FoundLimits(boot, policy, steady_limit(steps), admission, safe_limit(off)))
    return found


def steps_table(run: CapacityRun) -> pd.DataFrame:
    """One row a step, by policy, boot and guests.

    Columns: boot, policy, guests, used_bytes, peak_bytes; medians over the probes (NaN when none answered):
    the guest's own values, read_cpu_us_per_mib and operation_cpu_us of the host's CPUs; ``silent_guests``;
    ksmd_percent and psi_memory_percent of the window's time, steal_percent of all CPUs; cow_ksm_per_second,
    pgmajfault_per_second, swapped_pages; converged; stop, "" while it went on.
    """
    return pd.DataFrame([_row(step) for steps in run.arms.values() for step in steps])


def relation(table: pd.DataFrame) -> pd.DataFrame:
    """Memory saved against performance lost: a row for each boot, policy and number of guests seen off, too.

    Columns: boot, policy, guests, saved_bytes, and those of COSTS: by how many percent the policy is worse
    than off.
    """
    # At 0 guests there is neither a saving nor a probe.
    running = table[table["guests"] > 0]
    off, on = running[running["policy"] == OFF], running[running["policy"] != OFF]
    both = on.merge(off, on=["boot", "guests"], suffixes=("_on", "_off"), validate="many_to_one")
    return pd.DataFrame(
        {
            "boot": both["boot"],
            "policy": both["policy_on"],
            "guests": both["guests"],
            "saved_bytes": both["used_bytes_off"] - both["used_bytes_on"],
            **{
                name: sign * 100 * (both[f"{value}_on"] / both[f"{value}_off"] - 1)
                for name, (value, sign) in COSTS.items()
            },
        }
    )


@dataclass(frozen=True)
class Cost:
    """Memory saved and performance lost at one number of guests, over the boots; None: not known."""

    policy: str
    guests: int
    saved_bytes: Estimate | None
    lost: dict[str, Estimate | None]


def costs(both: pd.DataFrame) -> list[Cost]:
    """The rows of relation() over boots, which are the replicates: the difference is taken in each boot."""
    found = []
    for _key, rows in both.groupby(["policy", "guests"], sort=False):
        over = {name: estimate([[float(value)] for value in rows[name]]) for name in ("saved_bytes", *COSTS)}
        first = rows.iloc[0]
        found.append(Cost(str(first["policy"]), int(first["guests"]), over.pop("saved_bytes"), over))
    return found


def divergence(
    record: DivergenceRecord, safe_bytes: float | None = None, apart_bytes: float | None = None
) -> Divergence:
    """Judge one divergence record.

    Args:
        record: of the guests.
        safe_bytes: the forecast's safe need of so many guests.
        apart_bytes: the forecast's use of so many guests with nothing that they hold merged.
    """
    observed = record.observed
    samples = observed.samples
    seconds, saved, used = samples.seconds, saved_series(record), used_series(record, samples)
    regained = [max(0, before - now) for before, now in pairwise(saved)]
    spans = [later - earlier for earlier, later in pairwise(seconds)]
    first, *_between, last = samples.cow_ksm
    ends = [turn.finished_seconds for turn in observed.turns]
    begin, line = observed.turns[0].started_seconds, line_bytes(record)
    full = next((at for at, now in zip(seconds, used, strict=True) if now > line), None)
    psi = observed.psi_some_microseconds
    peak_rate = max((r / s for r, s in zip(regained, spans, strict=True) if s > 0), default=0.0)
    watched = seconds[-1] - seconds[0]
    return Divergence(
        run_id=record.run_id,
        boot=record.boot,
        workload=record.workload,
        policy=record.policy,
        guests=record.guests,
        guests_alive=observed.guests_alive,
        oom_kills=observed.oom_kills,
        regained_bytes=saved[0] - min(saved),
        peak_rate=peak_rate,
        mean_rate=_mean_rate(seconds, saved),
        free_seconds=max(0.0, line - used[0]) / peak_rate if peak_rate else None,
        cow_ksm=None if first is None or last is None else last - first,
        peak_used_bytes=max(used),
        capacity_bytes=line,
        part=_part(record, math.inf),
        full_part=None if full is None else _part(record, full),
        full_seconds=None if full is None else max(0.0, full - begin),
        psi_memory_percent=None if psi is None or not watched else psi.memory / 1e4 / watched,
        safe_bytes=safe_bytes,
        predicted_part=_predicted_part(used[0], apart_bytes, line),
        whole=None not in ends and max(end or 0.0 for end in ends) <= seconds[-1],
    )


def _predicted_part(merged_bytes: float, apart_bytes: float | None, line: int) -> float | None:
    """The part at which the line is reached, were use to grow evenly to that of guests that share nothing.

    None: nothing was forecast, or it is not reached.
    """
    if apart_bytes is None or apart_bytes <= line:
        return None
    return max(0.0, (line - merged_bytes) / (apart_bytes - merged_bytes))


def _part(record: DivergenceRecord, second: float) -> float:
    """The part of all that the guests hold that had been made to differ by a second of the samples."""
    written = 0.0
    for turn in record.observed.turns:
        size = record.observed.held_bytes.get(turn.guest, 0)
        end = record.observed.samples.seconds[-1] if turn.finished_seconds is None else turn.finished_seconds
        span = end - turn.started_seconds
        done = 1.0 if second >= end else max(0.0, second - turn.started_seconds) / span
        written += size * done
    whole = sum(record.observed.held_bytes.values())
    return written / whole if whole else 0.0


def _limit(steps: Iterable[StepRecord], why_not: Callable[[StepRecord], str]) -> ActualLimit:
    guests = 0
    for step in sorted(steps, key=lambda step: step.guests):
        if reason := why_not(step):
            if step.guests > guests + 1:
                between = f"it lies between {guests} and {step.guests - 1}: {reason}"
                return ActualLimit(guests, False, between)
            return ActualLimit(guests, True, reason)
        guests = step.guests
    return ActualLimit(guests, False, "the run ended before a limit")


def _why_not_steady(step: StepRecord) -> str:
    if step.stop is not None:
        return step.stop.reason
    used, line = used_bytes(step), line_bytes(step)
    return f"{used / MIB:.0f} of {line / MIB:.0f} MiB are used" if used > line else ""


def _why_not_admitted(step: StepRecord) -> str:
    peak, line = peak_bytes(step), line_bytes(step)
    if peak is None or peak <= line:
        return ""
    return f"while guest {step.guests} was started {peak / MIB:.0f} of {line / MIB:.0f} MiB were used"


def _base_bytes(steps: Sequence[StepRecord]) -> float:
    """Use with no guest, 0 where it was not measured."""
    return next((used_bytes(step) for step in steps if step.guests == 0), 0.0)


def _gross_series(samples: EnvelopeSamples, page_size_bytes: int) -> list[int]:
    return [
        saved_pages(sharing, zero) * page_size_bytes
        for sharing, zero in zip(samples.pages_sharing, samples.ksm_zero_pages, strict=True)
    ]


def _own_series(samples: EnvelopeSamples, page_size_bytes: int) -> list[float]:
    """KSM's own memory at each sample, as saving.ksm_own_bytes has it of a host; 0 where it is not told."""
    own = []
    gross = _gross_series(samples, page_size_bytes)
    for place, profit in enumerate(samples.general_profit):
        pages = (
            samples.pages_shared[place],
            samples.pages_sharing[place],
            samples.pages_unshared[place],
            samples.pages_volatile[place],
        )
        items = sum(count or 0 for count in pages) * saving.RMAP_ITEM_BYTES
        own.append(float(items if profit is None else gross[place] - profit))
    return own


def _row(step: StepRecord) -> dict[str, Any]:
    observed, window = step.observed, step.observed.window
    seconds, vmstat, psi = window.seconds, window.vmstat, window.psi_some_microseconds
    steal, cow = window.steal_seconds, vmstat["cow_ksm"]
    answers = [probe.answer for probe in observed.probes if probe.answer is not None]
    return {
        "boot": step.boot,
        "policy": step.policy,
        "guests": step.guests,
        "used_bytes": used_bytes(step),
        "peak_bytes": _number(peak_bytes(step)),
        **{name: _median(getattr(answer, name) for answer in answers) for name in PROBES},
        "read_cpu_us_per_mib": _median(map(_read_cpu_us_per_mib, observed.probes)),
        "operation_cpu_us": _median(map(_operation_cpu_us, observed.probes)),
        "silent_guests": sum(probe.answer is None for probe in observed.probes),
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


def _read_cpu_us_per_mib(probe: Probe) -> float | None:
    """CPU time of the host for a MiB that a guest reads, less that of a request that does nothing.

    None of a guest that holds too little to tell.
    """
    if probe.read is None or probe.request is None or (probe.read_bytes or 0) < _LEAST_READ_BYTES:
        return None
    if probe.read.run_seconds is None or probe.request.run_seconds is None:
        return None
    return 1e6 * (probe.read.run_seconds - probe.request.run_seconds) / (probe.read_bytes / MIB)


def _operation_cpu_us(probe: Probe) -> float | None:
    """CPU time of the host for an operation of a guest's probe, the CRC-32 of 64 KiB; as above.

    The probe's writes, 16 MiB at most, are in it.
    """
    if probe.probe is None or probe.request is None or probe.answer is None:
        return None
    if probe.probe.run_seconds is None or probe.request.run_seconds is None:
        return None
    ran = probe.probe.run_seconds - probe.request.run_seconds
    operations = probe.answer.cpu_iterations_per_second * (probe.probe.seconds - probe.request.seconds)
    return 1e6 * ran / operations if operations > 0 else None


def _mean_rate(seconds: Sequence[float], saved: Sequence[int]) -> float | None:
    lost = saved[0] - min(saved)
    if lost <= 0:
        return None
    fell = [saved[0] - now for now in saved]
    end = next(place for place, value in enumerate(fell) if value >= (1 - _TAIL) * lost)
    start = max((place for place in range(end) if fell[place] <= _TAIL * lost), default=0)
    return (fell[end] - fell[start]) / (seconds[end] - seconds[start])


def _median(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return median(known) if known else math.nan


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)

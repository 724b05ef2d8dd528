"""What a capacity run uses of what it may use, and the limits that it found."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from analysis.measure import saving
from analysis.measure.burndown import gross_series
from analysis.measure.pooling import condition_text
from analysis.plan.design import MIB
from analysis.plan.policies import OFF
from analysis.records import checks
from analysis.records.capacity import CapacityRun
from analysis.records.models import DivergenceRecord, EnvelopeSamples, StepRecord


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


def conditions(record: StepRecord | DivergenceRecord) -> dict[str, str]:
    """What two measurements must have in common, as flat names and text."""
    # What the host keeps available ends a run, and changes nothing in it.
    requested = record.requested.model_dump(exclude={"host_reserve_bytes"})
    found = checks.conditions(
        record.provenance, requested, merges=record.policy != OFF, guests=record.guests > 0
    )
    if record.observed.other_mergeable:
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


def _own_series(samples: EnvelopeSamples, page_size_bytes: int) -> list[float]:
    """KSM's own memory at each sample, as saving.ksm_own_bytes has it of a host; 0 where it is not told."""
    own = []
    gross = gross_series(samples, page_size_bytes)
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

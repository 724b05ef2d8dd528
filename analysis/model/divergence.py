"""What divergence of merged pages did: how fast memory went, and when more was used than may be."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from analysis.measure.burndown import gross_series
from analysis.model.capacity import line_bytes, used_series
from analysis.records.models import DivergenceRecord

_TAIL = 0.05


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


def saved_series(record: DivergenceRecord) -> list[int]:
    """Gross saved bytes of each sample."""
    return gross_series(record.observed.samples, record.provenance.page_size_bytes)


def _mean_rate(seconds: Sequence[float], saved: Sequence[int]) -> float | None:
    lost = saved[0] - min(saved)
    if lost <= 0:
        return None
    fell = [saved[0] - now for now in saved]
    end = next(place for place, value in enumerate(fell) if value >= (1 - _TAIL) * lost)
    start = max((place for place in range(end) if fell[place] <= _TAIL * lost), default=0)
    return (fell[end] - fell[start]) / (seconds[end] - seconds[start])

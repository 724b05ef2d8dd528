"""The memory model of N guests with KSM off and on, fitted to measured cells; pure arithmetic.

Each part comes from where it is seen best, since what other programs do moves the host's counters alone:

Off:    used = outside + sum of g over the guests. g: the guest's own anonymous memory and page tables, in
        smaps; outside: base + q x N, what MemAvailable has beside it (QEMU, the kernel's share).
Gross:  what KSM's counters say is saved. By the census: its curve (how many guests hold each content) times
        a height. Without one, SHARING: saved = N x I + D x (N - ceil(N / max_page_sharing)); I: duplicates
        within a guest, D: content that every guest has once (saved/VM = I + D (N - 1)/N).
On:     used = off - saved + sum of (k - f) + drift. k: KSM's own memory, its rmap_items; f: what is freed in
        the guests' memory and no counter tells; drift: what else changed on the host between the two arms,
        whatever the number of guests.

The intervals are from how forecasts miss: each boot at each number of guests is predicted from the smaller
numbers of the other boots, and the misses per guest are taken to be those of the forecast.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from statistics import fmean

import numpy as np
from scipy.optimize import lsq_linear  # type: ignore[import-untyped]
from scipy.stats import t  # type: ignore[import-untyped]

from analysis.errors import UserError
from analysis.measure.page_contents import Census
from analysis.measure.saving import RMAP_ITEM_BYTES
from analysis.plan.design import MIB
from analysis.plan.mix import taking_turns

CONFIDENCE = 0.95
HOST, ENVELOPE = "host", "envelope"
SHARING, CENSUS = "sharing", "census"
MOST_GUESTS = 9999

BASE, EACH, DRIFT = "base", "each", "drift"
WITHIN, BETWEEN = "within", "between"

Mix = Mapping[str, int]


class SharingError(UserError):
    """Measurements that cannot carry the model, or guests that it does not know."""


@dataclass(frozen=True)
class Sample:
    """One boot of guests at one number of them; ``census``: of this cell, None where none was taken.

    ``off_bytes`` and ``on_bytes`` are what the host uses, ``guests_off_bytes`` and ``guests_on_bytes`` the
    guests' own anonymous memory and page tables. ``ksm_bytes``: KSM's own memory, None where not known.
    ``filled_bytes``: what its workload filled in each guest.
    """

    workload: str
    guests: int
    boot: str
    off_bytes: float
    on_bytes: float
    guests_off_bytes: float
    guests_on_bytes: float
    gross_bytes: float
    ksm_bytes: float | None
    census: Census | None = None
    filled_bytes: float = 0.0

    def used_bytes(self, scope: str) -> tuple[float, float]:
        """What HOST or ENVELOPE uses, off and on; an envelope counts KSM's own memory, where it is known."""
        host = (self.off_bytes, self.on_bytes)
        envelope = (self.guests_off_bytes, self.guests_on_bytes + (self.ksm_bytes or 0.0))
        return host if scope == HOST else envelope


@dataclass(frozen=True)
class Interval:
    """A predicted value; ``half_width`` is half of its 95 % prediction interval, None: no interval."""

    mean_bytes: float
    half_width_bytes: float | None

    @property
    def low_bytes(self) -> float | None:
        """Lower end of the interval."""
        return None if self.half_width_bytes is None else self.mean_bytes - self.half_width_bytes

    @property
    def high_bytes(self) -> float | None:
        """Upper end of the interval."""
        return None if self.half_width_bytes is None else self.mean_bytes + self.half_width_bytes


@dataclass(frozen=True)
class Saving:
    """What KSM's counters save of N guests of one workload, in bytes.

    ``saved``: were they alone on the host. ``pool``: what they keep for all of them, which guests of another
    workload may hold too. ``within`` is I, ``between`` D: what a guest has that is not its alone.
    """

    saved: Callable[[int], float]
    pool: Callable[[int], float]
    within_bytes: float
    between_bytes: float


@dataclass(frozen=True)
class Miss:
    """A boot's measured memory less what was predicted of it, in bytes a guest."""

    workload: str
    boot: str
    guests: int
    off_bytes: float
    on_bytes: float
    gross_bytes: float

    @property
    def saved_bytes(self) -> float:
        """What it saved less what was predicted: the misses of off and on have much in common."""
        return self.off_bytes - self.on_bytes


@dataclass(frozen=True)
class Breakdown:
    """Where the memory of one guest goes, KSM off, in bytes; the first four sum to u.

    ``within`` and ``between`` are I and D; ``unmergeable`` is the rest of the resident guest memory;
    ``outside`` is QEMU, page tables and the kernel's share. None where rmap_items are not known.
    ``ksm`` is KSM's own memory, ``uncounted`` what goes with merging and no counter tells (huge pages split).
    """

    within_bytes: float
    between_bytes: float
    unmergeable_bytes: float | None
    outside_bytes: float | None
    ksm_bytes: float | None
    uncounted_bytes: float | None


@dataclass(frozen=True, eq=False)
class Model:
    """The fitted model of one host and one size of guests.

    ``name``: what the saving is taken from, SHARING or CENSUS. ``guest_bytes``: g by workload; ``outside``:
    BASE and EACH; ``freed_bytes``: f by workload; ``added``: on the host under KSM, DRIFT and by workload.
    """

    name: str
    scope: str
    guest_memory_bytes: int
    page_size_bytes: int
    max_page_sharing: int
    samples: tuple[Sample, ...]
    guest_bytes: dict[str, float]
    outside: dict[str, float]
    freed_bytes: dict[str, float]
    added: dict[str, float]
    saving: dict[str, Saving]
    misses: tuple[Miss, ...] = ()

    @property
    def workloads(self) -> tuple[str, ...]:
        """Every workload that can be predicted."""
        return tuple(self.saving)

    @property
    def base_bytes(self) -> float:
        """Use with no guest; 0 in an envelope, which holds the guests alone."""
        return self.outside[BASE]

    def off_bytes(self, workload: str) -> float:
        """Use of one more guest with KSM off."""
        return self.guest_bytes[workload] + self.outside[EACH]

    def ksm_bytes(self, workload: str) -> float | None:
        """KSM's own memory for one guest, the mean over the cells."""
        return mean_of_known(
            None if sample.ksm_bytes is None else sample.ksm_bytes / sample.guests
            for sample in self.samples
            if sample.workload == workload
        )

    def resident_bytes(self, workload: str) -> float | None:
        """Guest memory that is resident: ksmd keeps one rmap_item for each page it scans (mm/ksm.c)."""
        own = self.ksm_bytes(workload)
        if own is None:
            return None
        return min(own / RMAP_ITEM_BYTES * self.page_size_bytes, self.guest_memory_bytes)

    @cached_property
    def safe_guest_bytes(self) -> float:
        """One guest when no page is shared: all of its memory, what lies outside it, and KSM's own memory.

        Outside: the greatest over the workloads of u less the resident guest memory; where that is not
        known nothing of u is taken for guest memory, which errs on the safe side.
        """
        outside = max(
            self.off_bytes(workload) - (self.resident_bytes(workload) or 0.0) for workload in self.workloads
        )
        pages = self.guest_memory_bytes / self.page_size_bytes
        return self.guest_memory_bytes + max(outside, 0.0) + pages * RMAP_ITEM_BYTES

    def breakdown(self, workload: str) -> Breakdown:
        """Where the memory of one guest goes."""
        saving = self.saving[workload]
        resident, own = self.resident_bytes(workload), self.ksm_bytes(workload)
        return Breakdown(
            within_bytes=saving.within_bytes,
            between_bytes=saving.between_bytes,
            unmergeable_bytes=(
                None if resident is None else resident - saving.within_bytes - saving.between_bytes
            ),
            outside_bytes=None if resident is None else self.off_bytes(workload) - resident,
            ksm_bytes=own,
            uncounted_bytes=None if own is None else self.freed_bytes[workload],
        )

    def half_width_bytes(self, quantity: str, mix: Mix) -> float | None:
        """Half of the 95 % interval of off, on, saved or gross of these guests; None: no miss is known.

        The mean square of the misses per guest, bias and all: of all workloads, or of one of the mix alone
        where that is larger. A degree of freedom for each boot, since the guests of a boot share its state of
        the host. Not less than at the most guests measured, for the host's own noise is there at any number.
        """
        if not self.misses:
            return None

        def mean_square(misses: Sequence[Miss]) -> float:
            return fmean(getattr(miss, f"{quantity}_bytes") ** 2 for miss in misses)

        alone = [[miss for miss in self.misses if miss.workload == workload] for workload in mix]
        widest = max(mean_square(misses) for misses in (self.misses, *filter(None, alone)))
        degrees = len({miss.boot for miss in self.misses})
        guests = max(sum(mix.values()), *(sample.guests for sample in self.samples))
        return float(t.ppf((1 + CONFIDENCE) / 2, degrees)) * math.sqrt(widest) * guests


@dataclass(frozen=True)
class Prediction:
    """Memory used by these guests; ``saved``: off less on; ``on_apart_bytes``: were nothing shared across
    workloads."""

    mix: dict[str, int]
    off: Interval
    on: Interval
    saved: Interval
    gross: Interval
    on_apart_bytes: float
    safe_bytes: float

    @property
    def guests(self) -> int:
        """Number of all guests."""
        return sum(self.mix.values())

    @property
    def at_risk_bytes(self) -> float:
        """What is needed beyond the expectation when all pages diverge."""
        return self.safe_bytes - self.on.mean_bytes


@dataclass(frozen=True)
class Limits:
    """How many guests fit in ``capacity_bytes``; ``on_low`` and ``on_high`` from the interval's ends.

    ``on`` is the steady limit, ``admission`` that of guests started one after another, each merged before the
    next one; with KSM off the two are the same. ``at_risk_bytes``: what would lack when all pages of the
    expected number of guests diverge. None: more than MOST_GUESTS.
    """

    capacity_bytes: float
    off: int | None
    on: int | None
    on_low: int | None
    on_high: int | None
    admission: int | None
    safe: int | None
    at_risk_bytes: float | None


@dataclass(frozen=True)
class Naive:
    """Use with KSM on, by the answers that need no model (bytes)."""

    constant_saving: float
    sharing_ratio: float
    nominal: float


def fit(
    samples: Sequence[Sample],
    *,
    name: str,
    scope: str,
    guest_memory_bytes: int,
    page_size_bytes: int,
    max_page_sharing: int,
    bases_bytes: Sequence[float] = (),
) -> Model:
    """Fit the model to boots of one host and one size of guests, with its misses.

    Args:
        samples: at least two different numbers of guests for each workload, or with CENSUS a census of each.
        name: SHARING or CENSUS.
        scope: HOST or ENVELOPE; an envelope holds the guests' own memory and KSM's for them.
        guest_memory_bytes: nominal memory of a guest.
        page_size_bytes: page size of the host.
        max_page_sharing: KSM's knob; one physical page for so many equal ones.
        bases_bytes: use measured with no guest at all.

    Raises SharingError when the samples cannot tell the parameters apart.
    """

    def fitted(some: Sequence[Sample]) -> Model:
        workloads = sorted({sample.workload for sample in some})
        by_workload = {w: [sample for sample in some if sample.workload == w] for w in workloads}
        saving = {
            workload: _by_census(mine) if name == CENSUS else _by_numbers(mine, max_page_sharing)
            for workload, mine in by_workload.items()
        }
        host = scope == HOST
        return Model(
            name=name,
            scope=scope,
            guest_memory_bytes=guest_memory_bytes,
            page_size_bytes=page_size_bytes,
            max_page_sharing=max_page_sharing,
            samples=tuple(some),
            guest_bytes={
                w: _per_guest(mine, lambda s: s.guests_off_bytes) for w, mine in by_workload.items()
            },
            outside=_outside(some, bases_bytes) if host else {BASE: 0.0, EACH: 0.0},
            freed_bytes={
                w: _per_guest(mine, lambda s: s.guests_off_bytes - s.guests_on_bytes - s.gross_bytes)
                for w, mine in by_workload.items()
            },
            added=_added(some) if host else _ksm_alone(by_workload),
            saving=saving,
        )

    if not samples:
        raise SharingError("there is no measured cell to forecast from: run the experiment at some N.")
    return replace(fitted(samples), misses=_misses(samples, name, fitted))


def predict(model: Model, mix: Mix) -> Prediction:
    """Use of the guests of a mix (workload: guests), off and on.

    Across workloads the shared contents are taken as nested: of two workloads the smaller pool is common to
    all guests of both. Raises SharingError for an unknown workload or no guest.
    """
    mix = {workload: guests for workload, guests in mix.items() if guests}
    unknown = sorted(set(mix) - set(model.workloads))
    if unknown:
        raise SharingError(
            f"workload {unknown[0]!r} was not measured: allowed is {', '.join(model.workloads)}."
        )
    if not mix:
        raise SharingError("guests is 0: allowed is a whole number from 1.")
    guests = sum(mix.values())
    off = model.base_bytes + sum(n * model.off_bytes(w) for w, n in mix.items())
    apart = sum(model.saving[w].saved(n) for w, n in mix.items())
    gross = apart + _shared_across(model, mix)
    more = model.added[DRIFT] + sum(n * (model.added[w] - model.freed_bytes[w]) for w, n in mix.items())
    return Prediction(
        mix=mix,
        off=Interval(off, model.half_width_bytes("off", mix)),
        on=Interval(off - gross + more, model.half_width_bytes("on", mix)),
        saved=Interval(gross - more, model.half_width_bytes("saved", mix)),
        gross=Interval(gross, model.half_width_bytes("gross", mix)),
        on_apart_bytes=off - apart + more,
        safe_bytes=model.base_bytes + guests * model.safe_guest_bytes,
    )


def limits(model: Model, shares: Mix, capacity_bytes: float) -> Limits:
    """How many guests, in these shares by workload, fit in the capacity: off, on, and when all diverge."""
    counts: dict[str, int | None] = dict.fromkeys(("off", "on", "on_low", "on_high", "admission", "safe"))
    at = None
    for seen, peak in growing(model, shares, MOST_GUESTS):
        needs = {
            "off": seen.off.mean_bytes,
            "on": seen.on.mean_bytes,
            "on_low": seen.on.high_bytes if seen.on.high_bytes is not None else seen.on.mean_bytes,
            "on_high": seen.on.low_bytes if seen.on.low_bytes is not None else seen.on.mean_bytes,
            "admission": peak,
            "safe": seen.safe_bytes,
        }
        for name, need in needs.items():
            if counts[name] is None and need > capacity_bytes:
                counts[name] = seen.guests - 1
        if counts["on"] is None:
            at = seen.safe_bytes - capacity_bytes
        if None not in counts.values():
            break
    interval = predict(model, scaled(shares, 1)).on.half_width_bytes is not None
    return Limits(
        capacity_bytes=capacity_bytes,
        off=counts["off"],
        on=counts["on"],
        on_low=counts["on_low"] if interval else None,
        on_high=counts["on_high"] if interval else None,
        admission=counts["admission"],
        safe=counts["safe"],
        at_risk_bytes=None if at is None or counts["on"] is None else max(at, 0.0),
    )


def growing(model: Model, shares: Mix, most: int) -> Iterator[tuple[Prediction, float]]:
    """1, 2, ... up to most guests in these shares, and the most that is used while the last of them starts.

    The others are merged then, and nothing of it when it has loaded what it holds: the safe side, for KSM
    merges meanwhile.
    """
    settled, mix = model.base_bytes, dict.fromkeys(shares, 0)
    for starting in taking_turns(shares, most):
        mix[starting] += 1
        peak = settled + model.off_bytes(starting) + (model.ksm_bytes(starting) or 0.0)
        seen = predict(model, mix)
        yield seen, peak
        settled = seen.on.mean_bytes


def naive(model: Model, mix: Mix) -> Naive:
    """The answers without a model, from the largest N of each workload, with the model's base and off.

    constant_saving: off less the saving per VM seen there. sharing_ratio: nominal memory less the fraction
    of it that pages_sharing was there. nominal: base and the guests' nominal memory.
    """
    off = predict(model, mix).off.mean_bytes
    memory = model.guest_memory_bytes
    constant, ratio = 0.0, 0.0
    for workload, guests in mix.items():
        mine = [sample for sample in model.samples if sample.workload == workload]
        largest = [s for s in mine if s.guests == max(sample.guests for sample in mine)]
        used = [(s.used_bytes(model.scope), s.guests) for s in largest]
        constant += guests * fmean((off_arm - on_arm) / n for (off_arm, on_arm), n in used)
        ratio += guests * fmean(s.gross_bytes / s.guests for s in largest)
    nominal = model.base_bytes + sum(mix.values()) * memory
    return Naive(constant_saving=off - constant, sharing_ratio=nominal - ratio, nominal=nominal)


def scaled(shares: Mix, guests: int) -> dict[str, int]:
    """So many guests in these shares, as a capacity run starts them; workloads of no guest are left out."""
    return dict(Counter(taking_turns(shares, guests)))


def _outside(samples: Sequence[Sample], bases_bytes: Sequence[float]) -> dict[str, float]:
    """BASE and EACH of what the host uses beside the guests' own memory."""
    if len({sample.guests for sample in samples}) < 2 and not bases_bytes:
        raise SharingError(
            "the host's use with no guest cannot be told from one number of guests: measure another number."
        )
    return _least_squares(
        [{BASE: 1.0, EACH: float(s.guests)} for s in samples] + [{BASE: 1.0} for _base in bases_bytes],
        [*(s.off_bytes - s.guests_off_bytes for s in samples), *bases_bytes],
        floor=0.0,
    )


def _per_guest(samples: Sequence[Sample], value: Callable[[Sample], float]) -> float:
    return sum(map(value, samples)) / sum(sample.guests for sample in samples)


def _added(samples: Sequence[Sample]) -> dict[str, float]:
    """What comes with KSM outside of the guests' memory, by workload, and the drift.

    KSM's own memory is known exactly; where it is not, all of it is taken to grow with the guests.
    """
    more = [(s.on_bytes - s.guests_on_bytes) - (s.off_bytes - s.guests_off_bytes) for s in samples]
    drifts = [m - s.ksm_bytes for m, s in zip(more, samples, strict=True) if s.ksm_bytes is not None]
    found = {DRIFT: fmean(drifts) if drifts else 0.0}
    for workload in {sample.workload for sample in samples}:
        mine = [(m, s) for m, s in zip(more, samples, strict=True) if s.workload == workload]
        known = all(s.ksm_bytes is not None for _m, s in mine)
        parts = [(s.ksm_bytes or 0.0) if known else m - found[DRIFT] for m, s in mine]
        found[workload] = sum(parts) / sum(s.guests for _m, s in mine)
    return found


def _ksm_alone(by_workload: Mapping[str, Sequence[Sample]]) -> dict[str, float]:
    """As _added, of an envelope, beside which the host does what it likes; unknown counts as nothing."""
    own = {w: _per_guest(mine, lambda s: s.ksm_bytes or 0.0) for w, mine in by_workload.items()}
    return {DRIFT: 0.0, **own}


def _by_numbers(samples: Sequence[Sample], max_page_sharing: int) -> Saving:
    """I and D from the counters at several numbers of guests."""
    if len({sample.guests for sample in samples}) < 2:
        raise SharingError(
            f"{samples[0].workload} was measured at {samples[0].guests} guests only: a forecast needs at "
            "least two different numbers of guests, for the saving per VM is not constant in N."
        )

    def copies(guests: int) -> int:
        return math.ceil(guests / max_page_sharing)

    found = _least_squares(
        [{WITHIN: float(s.guests), BETWEEN: float(s.guests - copies(s.guests))} for s in samples],
        [sample.gross_bytes for sample in samples],
        floor=0.0,
    )
    within, between = found[WITHIN], found[BETWEEN]
    return Saving(
        saved=lambda guests: guests * within + (guests - copies(guests)) * between,
        pool=lambda guests: copies(guests) * between,
        within_bytes=within,
        between_bytes=between,
    )


def _by_census(samples: Sequence[Sample]) -> Saving:
    """The curve of the censuses of the most guests, the mean of the boots; its height by the counters."""
    counted = [(sample.guests, sample.census) for sample in samples if sample.census is not None]
    if not counted:
        raise SharingError(
            f"no cell of {samples[0].workload} has a page census: measure one with -e census=true, or use "
            "--model sharing."
        )
    most = max(guests for guests, _census in counted)
    censuses = [census for guests, census in counted if guests == most]

    def mean(value: Callable[[Census], float]) -> float:
        return fmean(map(value, censuses))

    @cache
    def ideal(guests: int) -> float:
        return mean(lambda census: census.saved_bytes(guests))

    squares = sum(ideal(s.guests) ** 2 for s in samples)
    height = sum(ideal(s.guests) * s.gross_bytes for s in samples) / squares if squares else 0.0
    page = height * censuses[0].page_size_bytes
    return Saving(
        saved=lambda guests: height * ideal(guests),
        pool=lambda guests: height * mean(lambda census: census.pool_bytes(guests)),
        within_bytes=page * mean(lambda c: (c.resident_pages - c.guests_distinct_pages) / len(c.guests)),
        between_bytes=page * mean(lambda c: c.guests_distinct_pages / len(c.guests) - c.chances.alone),
    )


def _shared_across(model: Model, mix: Mix) -> float:
    """What guests of different workloads save between them: of two pools all of the smaller one."""
    if len(mix) == 1:
        return 0.0
    guests = remaining = sum(mix.values())
    pools = {workload: model.saving[workload].pool for workload in mix}
    apart = sum(pools[workload](n) for workload, n in mix.items())
    kept, below = 0.0, None
    for workload in sorted(mix, key=lambda workload: (pools[workload](guests), workload)):
        pool = pools[workload]
        kept += pool(remaining) - (below(remaining) if below else 0.0)
        below, remaining = pool, remaining - mix[workload]
    return max(apart - kept, 0.0)


def _misses(
    samples: Sequence[Sample], name: str, fitted: Callable[[Sequence[Sample]], Model]
) -> tuple[Miss, ...]:
    """Each boot at each number of guests beside what the smaller numbers of the other boots say of it.

    Those of the same boot too where the others cannot; all numbers of other boots where no number can be left
    out.
    """
    cells = sorted({(sample.guests, sample.boot) for sample in samples})

    def missed(guests: int, boot: str, others: Sequence[Sample]) -> list[Miss]:
        fits = fitting([(s.workload, s.guests, s.census is not None) for s in others], name)
        if not fits:
            return []
        try:
            model = fitted([sample for sample in others if sample.workload in fits])
        except SharingError:
            return []
        held_out = [s for s in samples if (s.guests, s.boot) == (guests, boot) and s.workload in fits]
        return [_miss(model, sample) for sample in held_out]

    found: list[Miss] = []
    for guests, boot in cells:
        smaller = [sample for sample in samples if sample.guests < guests]
        apart = [sample for sample in smaller if sample.boot != boot]
        found += missed(guests, boot, apart) or missed(guests, boot, smaller)
    if not found:
        for guests, boot in cells:
            found += missed(guests, boot, [sample for sample in samples if sample.boot != boot])
    return tuple(found)


def _miss(model: Model, sample: Sample) -> Miss:
    seen = predict(model, {sample.workload: sample.guests})
    off, on = sample.used_bytes(model.scope)
    return Miss(
        sample.workload,
        sample.boot,
        sample.guests,
        off_bytes=(off - seen.off.mean_bytes) / sample.guests,
        on_bytes=(on - seen.on.mean_bytes) / sample.guests,
        gross_bytes=(sample.gross_bytes - seen.gross.mean_bytes) / sample.guests,
    )


def fitting(seen: Iterable[tuple[str, int, bool]], name: str) -> set[str]:
    """The workloads that a model can be fitted to, of (workload, guests, whether it has a census)."""
    if name == CENSUS:
        return {workload for workload, _guests, counted in seen if counted}
    numbers: dict[str, set[int]] = {}
    for workload, guests, _counted in seen:
        numbers.setdefault(workload, set()).add(guests)
    return {workload for workload, mine in numbers.items() if len(mine) > 1}


def _least_squares(
    rows: Sequence[Mapping[str, float]], values: Sequence[float], *, floor: float
) -> dict[str, float]:
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    x = np.array([[row.get(name, 0.0) for name in names] for row in rows])
    # In MiB, for the solver's tolerances are made for numbers near 1.
    found = lsq_linear(x, np.array(values) / MIB, bounds=(floor, np.inf), method="bvls").x
    return {name: float(value) * MIB for name, value in zip(names, found, strict=True)}


def mean_of_known(values: Iterable[float | None]) -> float | None:
    """The mean, None where a value is unknown (or there is none): a mean of the rest would pass for all."""
    known = list(values)
    return None if not known or None in known else fmean(value for value in known if value is not None)

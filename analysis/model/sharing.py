"""The memory model of N guests with KSM off and on, fitted to measured cells; pure arithmetic.

Off:    used = base + sum of u over the guests.
Gross:  saved = N x I + D x (N - ceil(N / max_page_sharing)); I: duplicates within a guest, D: content that
        every guest has once (saved/VM = I + D (N - 1)/N).
On:     used = off - saved + sum of o over the guests; o: KSM's own memory less what is freed uncounted.
Three regressions, for they have different noise: u and base are seen in MemAvailable, I and D in KSM's
counters, o in the difference of the two arms of one cell, where the noise of its boot cancels.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np
from scipy.optimize import lsq_linear  # type: ignore[import-untyped]
from scipy.stats import t  # type: ignore[import-untyped]

from analysis.errors import UserError
from analysis.measure.saving import RMAP_ITEM_BYTES
from analysis.plan.design import MIB

CONFIDENCE = 0.95
HOST, ENVELOPE = "host", "envelope"
SHARING, CENSUS = "sharing", "census"
MOST_GUESTS = 9999

BASE = "base"
WITHIN, BETWEEN = "within", "between"

Mix = Mapping[str, int]
# Gross saved bytes of N guests of one workload, as a census of page contents tells (rarefaction).
Shape = Callable[[int], float]


class SharingError(UserError):
    """Measurements that cannot carry the model, or guests that it does not know."""


@dataclass(frozen=True)
class Sample:
    """One measured cell. ``ksm_bytes``: KSM's own memory, rmap_items; None where it is not known.

    ``off_bytes`` and ``on_bytes`` are what the scope uses: the host, or the QEMU processes alone.
    """

    workload: str
    guests: int
    off_bytes: float
    on_bytes: float
    gross_bytes: float
    ksm_bytes: float | None


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


@dataclass(frozen=True, eq=False)
class Regression:
    """Least squares by named terms. ``inverse``: (X'X)^-1 over ``names``, 0 for a term held at 0.

    ``variance`` of one observation is None without a degree of freedom.
    """

    names: tuple[str, ...]
    values: tuple[float, ...]
    inverse: "np.ndarray[tuple[int, int], np.dtype[np.float64]]"
    variance: float | None
    degrees: int

    def __getitem__(self, name: str) -> float:
        """The fitted term."""
        return self.values[self.names.index(name)]

    def mean(self, row: Mapping[str, float]) -> float:
        """The expected value where the terms have these weights."""
        return sum(weight * self[name] for name, weight in row.items())

    def spread(self, row: Mapping[str, float]) -> tuple[float | None, int]:
        """Variance of a new observation there, and its degrees of freedom."""
        if self.variance is None:
            return None, 0
        x = np.array([row.get(name, 0.0) for name in self.names])
        return self.variance * (1 + float(x @ self.inverse @ x)), self.degrees


@dataclass(frozen=True)
class Breakdown:
    """Where the memory of one guest goes, KSM off, in bytes; the first four sum to u.

    ``within`` and ``between`` are I and D, None when a census gave the curve; ``unmergeable`` is the rest
    of the resident guest memory;
    ``outside`` is QEMU, page tables and the kernel's share. None where rmap_items are not known.
    ``ksm`` is KSM's own memory, ``uncounted`` what goes with merging and no counter tells (huge pages split).
    """

    within_bytes: float | None
    between_bytes: float | None
    unmergeable_bytes: float | None
    outside_bytes: float | None
    ksm_bytes: float | None
    uncounted_bytes: float | None


@dataclass(frozen=True, eq=False)
class Model:
    """The fitted model of one host and one size of guests."""

    scope: str
    guest_memory_bytes: int
    page_size_bytes: int
    max_page_sharing: int
    samples: tuple[Sample, ...]
    off: Regression
    overhead: dict[str, Regression]
    saving: dict[str, Regression]
    shapes: dict[str, Shape] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the saving is taken from: SHARING, or CENSUS."""
        return CENSUS if self.shapes else SHARING

    @property
    def workloads(self) -> tuple[str, ...]:
        """Every workload that can be predicted."""
        return tuple(self.saving)

    @property
    def base_bytes(self) -> float:
        """Use with no guest; 0 in an envelope, which holds the guests alone."""
        return self.off[BASE] if BASE in self.off.names else 0.0

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

    @property
    def safe_guest_bytes(self) -> float:
        """One guest when no page is shared: all of its memory, what lies outside it, and KSM's own memory.

        Outside: the greatest over the workloads of u less the resident guest memory; where that is not
        known nothing of u is taken for guest memory, which errs on the safe side.
        """
        outside = max(
            self.off[workload] - (self.resident_bytes(workload) or 0.0) for workload in self.workloads
        )
        # ksmd's own allocations are charged to no cgroup.
        pages = self.guest_memory_bytes / self.page_size_bytes if self.scope == HOST else 0
        return self.guest_memory_bytes + max(outside, 0.0) + pages * RMAP_ITEM_BYTES

    def breakdown(self, workload: str) -> Breakdown:
        """Where the memory of one guest goes."""
        saving = self.saving[workload]
        shaped = workload in self.shapes
        within, between = (None, None) if shaped else (saving[WITHIN], saving[BETWEEN])
        resident, own = self.resident_bytes(workload), self.ksm_bytes(workload)
        if self.scope == ENVELOPE and own is not None:
            own = 0.0
        return Breakdown(
            within_bytes=within,
            between_bytes=between,
            unmergeable_bytes=(
                None if resident is None or within is None or between is None else resident - within - between
            ),
            outside_bytes=None if resident is None else self.off[workload] - resident,
            ksm_bytes=own,
            uncounted_bytes=None if own is None else own - self.overhead[workload][workload],
        )


@dataclass(frozen=True)
class Prediction:
    """Memory used by these guests; ``on_apart_bytes``: were nothing shared across workloads."""

    mix: dict[str, int]
    off: Interval
    on: Interval
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

    ``at_risk_bytes``: what would lack when all pages of the expected number of guests diverge.
    None: more than MOST_GUESTS.
    """

    capacity_bytes: float
    off: int | None
    on: int | None
    on_low: int | None
    on_high: int | None
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
    scope: str,
    guest_memory_bytes: int,
    page_size_bytes: int,
    max_page_sharing: int,
    bases_bytes: Sequence[float] = (),
    shapes: Mapping[str, Shape] | None = None,
) -> Model:
    """Fit the model to cells of one host and one size of guests.

    Args:
        samples: cells, at least two different numbers of guests for each workload that has no shape.
        scope: HOST or ENVELOPE; an envelope has no base.
        guest_memory_bytes: nominal memory of a guest.
        page_size_bytes: page size of the host.
        max_page_sharing: KSM's knob; one physical page for so many equal ones.
        bases_bytes: use measured with no guest at all.
        shapes: of some workloads, the census' curve; its scale alone is fitted then.

    Raises SharingError when the cells cannot tell the parameters apart.
    """
    if not samples:
        raise SharingError("there is no measured cell to forecast from: run the experiment at some N.")
    shapes = dict(shapes or {})
    workloads = sorted({sample.workload for sample in samples})
    by_workload = {w: [sample for sample in samples if sample.workload == w] for w in workloads}
    for workload, mine in by_workload.items():
        if workload not in shapes and len({sample.guests for sample in mine}) < 2:
            raise SharingError(
                f"{workload} was measured at {mine[0].guests} guests only: a forecast needs at least two "
                "different numbers of guests, for the saving per VM is not constant in N."
            )
    several = any(len({sample.guests for sample in mine}) > 1 for mine in by_workload.values())
    if scope == HOST and not several and not bases_bytes:
        raise SharingError(
            "the host's use with no guest cannot be told from one number of guests: measure another number."
        )
    base = {BASE: 1.0} if scope == HOST else {}
    rows: list[Mapping[str, float]] = [
        *({**base, sample.workload: float(sample.guests)} for sample in samples),
        *({BASE: 1.0} for _value in bases_bytes if scope == HOST),
    ]
    measured = [sample.off_bytes for sample in samples]
    off = _least_squares(rows, [*measured, *(bases_bytes if scope == HOST else ())], floor=0.0)
    overhead, saving = {}, {}
    for workload, mine in by_workload.items():
        overhead[workload] = _least_squares(
            [{workload: float(sample.guests)} for sample in mine],
            [sample.on_bytes + sample.gross_bytes - sample.off_bytes for sample in mine],
            floor=-math.inf,
        )
        shape = shapes.get(workload)
        saving[workload] = _least_squares(
            [
                _saving_row(sample.guests, max_page_sharing)
                if shape is None
                else {workload: shape(sample.guests)}
                for sample in mine
            ],
            [sample.gross_bytes for sample in mine],
            floor=0.0,
        )
    return Model(
        scope,
        guest_memory_bytes,
        page_size_bytes,
        max_page_sharing,
        tuple(samples),
        off,
        overhead,
        saving,
        shapes,
    )


def predict(model: Model, mix: Mix) -> Prediction:
    """Use of the guests of a mix (workload: guests), off and on.

    Across workloads the shared contents are taken as nested: of two workloads the smaller D is common to
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
    off_row = {**({BASE: 1.0} if model.scope == HOST else {}), **{w: float(n) for w, n in mix.items()}}
    off = model.off.mean(off_row)
    saving_rows = _mixed_rows(model, mix)
    gross = sum(model.saving[w].mean(row) for w, row in saving_rows.items())
    apart = sum(model.saving[w].mean(_own_row(model, w, n)) for w, n in mix.items())
    own = sum(model.overhead[w].mean({w: n}) for w, n in mix.items())
    off_spread = [model.off.spread(off_row)]
    gross_spread = [model.saving[w].spread(row) for w, row in saving_rows.items()]
    own_spread = [model.overhead[w].spread({w: n}) for w, n in mix.items()]
    return Prediction(
        mix=mix,
        off=Interval(off, _half_width(off_spread)),
        on=Interval(off - gross + own, _half_width([*off_spread, *gross_spread, *own_spread])),
        gross=Interval(gross, _half_width(gross_spread)),
        on_apart_bytes=off - apart + own,
        safe_bytes=model.base_bytes + sum(mix.values()) * model.safe_guest_bytes,
    )


def limits(model: Model, shares: Mix, capacity_bytes: float) -> Limits:
    """How many guests, in these shares by workload, fit in the capacity: off, on, and when all diverge."""
    counts: dict[str, int | None] = dict.fromkeys(("off", "on", "on_low", "on_high", "safe"))
    at = None
    for guests in range(1, MOST_GUESTS + 1):
        seen = predict(model, scaled(shares, guests))
        needs = {
            "off": seen.off.mean_bytes,
            "on": seen.on.mean_bytes,
            "on_low": seen.on.high_bytes if seen.on.high_bytes is not None else seen.on.mean_bytes,
            "on_high": seen.on.low_bytes if seen.on.low_bytes is not None else seen.on.mean_bytes,
            "safe": seen.safe_bytes,
        }
        for name, need in needs.items():
            if counts[name] is None and need > capacity_bytes:
                counts[name] = guests - 1
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
        safe=counts["safe"],
        at_risk_bytes=None if at is None or counts["on"] is None else max(at, 0.0),
    )


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
        constant += guests * fmean((s.off_bytes - s.on_bytes) / s.guests for s in largest)
        ratio += guests * fmean(s.gross_bytes / s.guests for s in largest)
    nominal = model.base_bytes + sum(mix.values()) * memory
    return Naive(constant_saving=off - constant, sharing_ratio=nominal - ratio, nominal=nominal)


def scaled(shares: Mix, guests: int) -> dict[str, int]:
    """So many guests in these shares, whole numbers by the largest remainder."""
    whole = sum(shares.values())
    exact = {workload: guests * share / whole for workload, share in shares.items()}
    counts = {workload: math.floor(value) for workload, value in exact.items()}
    by_remainder = sorted(exact, key=lambda workload: (counts[workload] - exact[workload], workload))
    for workload in by_remainder[: guests - sum(counts.values())]:
        counts[workload] += 1
    return counts


def _shared(guests: float, max_page_sharing: int) -> float:
    return guests - math.ceil(guests / max_page_sharing)


def _saving_row(guests: int, max_page_sharing: int) -> dict[str, float]:
    return {WITHIN: float(guests), BETWEEN: _shared(guests, max_page_sharing)}


def _own_row(model: Model, workload: str, guests: int) -> dict[str, float]:
    shape = model.shapes.get(workload)
    return _saving_row(guests, model.max_page_sharing) if shape is None else {workload: shape(guests)}


def _mixed_rows(model: Model, mix: Mix) -> dict[str, dict[str, float]]:
    """Weights of each workload's terms; a layer of D is shared by all guests whose D reaches it."""
    if len(mix) == 1:
        return {workload: _own_row(model, workload, guests) for workload, guests in mix.items()}
    shaped = sorted(set(mix) & set(model.shapes))
    if shaped:
        raise SharingError(
            f"{shaped[0]} is forecast from a census, which does not tell what it shares with another "
            "workload: measure it at two numbers of guests for a mix."
        )
    rows = {}
    ordered = sorted(mix, key=lambda workload: (model.saving[workload][BETWEEN], workload))
    remaining = sum(mix.values())
    for workload in ordered:
        above = remaining - mix[workload]
        weight = _shared(remaining, model.max_page_sharing) - _shared(above, model.max_page_sharing)
        rows[workload] = {WITHIN: float(mix[workload]), BETWEEN: weight}
        remaining = above
    return rows


def _least_squares(
    rows: Sequence[Mapping[str, float]], values: Sequence[float], *, floor: float
) -> Regression:
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    x = np.array([[row.get(name, 0.0) for name in names] for row in rows])
    # In MiB, for the solver's tolerances are made for numbers near 1.
    y = np.array(values) / MIB
    found = lsq_linear(x, y, bounds=(floor, np.inf), method="bvls").x
    residuals = y - x @ found
    free = [number for number, value in enumerate(found) if value > floor]
    inverse = np.zeros((len(names), len(names)))
    inverse[np.ix_(free, free)] = np.linalg.pinv(x[:, free].T @ x[:, free])
    degrees = len(rows) - len(names)
    return Regression(
        names=names,
        values=tuple(float(value) * MIB for value in found),
        inverse=inverse,
        variance=float(residuals @ residuals) / degrees * MIB * MIB if degrees > 0 else None,
        degrees=max(degrees, 0),
    )


def _half_width(parts: Sequence[tuple[float | None, int]]) -> float | None:
    """Half of the interval of a sum; degrees of freedom by Welch and Satterthwaite."""
    variances = [(variance, degrees) for variance, degrees in parts if variance is not None]
    if len(variances) < len(parts):
        return None
    total = sum(variance for variance, _degrees in variances)
    if total == 0:
        return 0.0
    degrees = total**2 / sum(variance**2 / degrees for variance, degrees in variances)
    return float(t.ppf((1 + CONFIDENCE) / 2, degrees)) * math.sqrt(total)


def mean_of_known(values: Iterable[float | None]) -> float | None:
    """The mean, None where a value is unknown (or there is none): a mean of the rest would pass for all."""
    known = list(values)
    return None if not known or None in known else fmean(value for value in known if value is not None)

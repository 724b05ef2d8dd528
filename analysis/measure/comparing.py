"""Two campaigns, B less A, for each treatment that both measured.

Which interval it is, is decided by what the guests began from, before any value is looked at: boots that both
restored from the same checkpoints are pairs; without one the boots are two independent sets.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

import pandas as pd

from analysis.measure.pooling import Conditions, condition_columns, condition_text, differing
from analysis.measure.saving import PER_VM
from analysis.measure.statistics import (
    CHECKPOINT,
    Difference,
    Estimate,
    Summary,
    estimate,
    paired,
    summarise,
    welch,
)
from analysis.measure.table import TREATMENT
from analysis.records.loading import COMPLETE

# What is compared; the registry of quantities says what each is.
MEASURES = (*PER_VM, "converged_after_seconds", "ksmd_cpu_seconds")

MORE, LESS, NOTHING, TOO_FEW = "more", "less", "no difference shown", "too few boots"


@dataclass(frozen=True)
class Contrast:
    """One measure of A and of B, of the boots that are compared.

    ``a_boots``, ``b_boots``: the mean of each boot, at least one; in the same order where ``pairs``.
    """

    a: Estimate
    b: Estimate
    a_boots: tuple[float, ...]
    b_boots: tuple[float, ...]
    pairs: bool

    @cached_property
    def difference(self) -> Difference:
        """B less A."""
        return self.beyond(1)

    @property
    def conclusive(self) -> bool:
        """Whether both have boots enough to conclude something from the interval."""
        return self.a.conclusive and self.b.conclusive

    @property
    def shown(self) -> str:
        """What the interval shows of B: MORE or LESS than A, NOTHING where it holds zero, or TOO_FEW."""
        mean, half_width = self.difference.mean, self.difference.half_width
        if half_width is None or not self.conclusive:
            return TOO_FEW
        if abs(mean) <= half_width:
            return NOTHING
        return MORE if mean > 0 else LESS

    def beyond(self, factor: float) -> Difference:
        """B less ``factor`` times A."""
        scaled = [factor * mean for mean in self.a_boots]
        if self.pairs:
            return paired([theirs - ours for ours, theirs in zip(scaled, self.b_boots, strict=True)])
        return welch(scaled, self.b_boots)


@dataclass(frozen=True)
class Line:
    """One treatment that both measured.

    ``pairs``: whether boots are paired; ``boots``: how many of A and of B are compared; ``left_out``: how
    many of each are not, for the other one has nothing from their checkpoints. ``differing``: in what they
    were measured differently, as "name: A's / B's". ``contrasts`` is keyed by MEASURES; None where a value is
    not known, or where A or B is itself not pooled.
    """

    a: Summary
    b: Summary
    pairs: bool
    boots: tuple[int, int]
    left_out: tuple[int, int]
    differing: tuple[str, ...]
    contrasts: dict[str, Contrast | None]

    @property
    def not_compared(self) -> tuple[str, ...]:
        """In what the cells of A, or those of B, differ among themselves."""
        return (*self.a.not_pooled, *self.b.not_pooled)


@dataclass(frozen=True)
class Comparison:
    """The treatments that both measured, and those that only one did."""

    lines: tuple[Line, ...]
    only_a: tuple[Summary, ...]
    only_b: tuple[Summary, ...]


def compare(a: pd.DataFrame, b: pd.DataFrame) -> Comparison:
    """Compare two tidy tables treatment by treatment, hypervisor by hypervisor.

    Where each has one hypervisor they are compared whatever they are called.
    """
    tables = (a, b)
    one_each = all(table["hypervisor"].nunique() == 1 for table in tables)
    names = list(TREATMENT) if one_each else ["hypervisor", *TREATMENT]
    ours, theirs = ({_key(one, names): one for one in summarise(table) if one.measured} for table in tables)
    rows_of = [dict(iter(table[table["status"] == COMPLETE].groupby(names))) for table in tables]
    return Comparison(
        lines=tuple(
            _line(one, theirs[key], *(rows[key] for rows in rows_of))
            for key, one in ours.items()
            if key in theirs
        ),
        only_a=tuple(one for key, one in ours.items() if key not in theirs),
        only_b=tuple(one for key, one in theirs.items() if key not in ours),
    )


def _key(summary: Summary, names: Iterable[str]) -> tuple[Any, ...]:
    return tuple(getattr(summary, name) for name in names)


def _line(a: Summary, b: Summary, a_rows: pd.DataFrame, b_rows: pd.DataFrame) -> Line:
    shared = _starts(a_rows) & _starts(b_rows)
    a_used, b_used = (_from(rows, shared) if shared else rows for rows in (a_rows, b_rows))
    a_boots, b_boots = (rows["boot_key"].nunique() for rows in (a_used, b_used))
    pooled = not (a.not_pooled or b.not_pooled)
    host = [f"hypervisor: {a.hypervisor} / {b.hypervisor}"] if a.hypervisor != b.hypervisor else []
    return Line(
        a=a,
        b=b,
        pairs=bool(shared),
        boots=(a_boots, b_boots),
        left_out=(len(a.boots) - a_boots, len(b.boots) - b_boots),
        differing=(*host, *_differing(a_rows, b_rows)) if pooled else (),
        contrasts={
            name: _contrast(_by_boot(a_used, name), _by_boot(b_used, name), bool(shared)) if pooled else None
            for name in MEASURES
        },
    )


def _starts(rows: pd.DataFrame) -> set[tuple[str, str]]:
    """The checkpoints of a treatment, with their boots; none of guests that were measured as they booted."""
    restored = rows[rows["start_from"] == CHECKPOINT]
    return set(zip(restored["boot_key"], restored["checkpoint"], strict=True))


def _from(rows: pd.DataFrame, starts: set[tuple[str, str]]) -> pd.DataFrame:
    mine = zip(rows["boot_key"], rows["checkpoint"], strict=True)
    return rows[[start in starts for start in mine]]


def _by_boot(rows: pd.DataFrame, name: str) -> list[list[float]]:
    """The values of each boot, in the order of the boots' keys."""
    boots: dict[str, list[float]] = {}
    for boot, value in sorted(zip(rows["boot_key"], rows[name], strict=True), key=lambda pair: str(pair[0])):
        boots.setdefault(str(boot), []).append(float(value))
    return list(boots.values())


def _contrast(ours: list[list[float]], theirs: list[list[float]], pairs: bool) -> Contrast | None:
    a, b = estimate(ours), estimate(theirs)
    if a is None or b is None:
        return None
    a_boots, b_boots = (tuple(map(fmean, boots)) for boots in (ours, theirs))
    return Contrast(a, b, a_boots, b_boots, pairs)


def _differing(a_rows: pd.DataFrame, b_rows: pd.DataFrame) -> tuple[str, ...]:
    """Of rows that do not differ among themselves."""
    names = sorted({*condition_columns(a_rows), *condition_columns(b_rows)})
    a, b = (_conditions(rows.iloc[0].to_dict(), names) for rows in (a_rows, b_rows))
    return differing(a, b)


def _conditions(row: Mapping[Any, Any], names: Iterable[str]) -> Conditions:
    return tuple((name, condition_text(row.get(name))) for name in names)

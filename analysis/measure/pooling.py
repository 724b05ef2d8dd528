"""What measurements must have in common, in what they differ, and the largest set that belongs together."""

from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.measure.table import PROVENANCE, REQUESTED, RULE, TREATMENT
from analysis.plan.policies import KEEP
from analysis.records.loading import COMPLETE

_KNOBS = f"{PROVENANCE}ksm_knobs."
_THP, _THP_ASKED = f"{PROVENANCE}thp.enabled", f"{REQUESTED}thp_enabled"
# A column of the treatment, and the condition that says the same.
_SAME = {"start_from": f"{PROVENANCE}start.from", "guest_memory_bytes": f"{PROVENANCE}guest_memory_bytes"}

Row = Mapping[Hashable, Any]
Conditions = tuple[tuple[str, str], ...]
Left = tuple[str, str, tuple[str, ...]]


@dataclass(frozen=True)
class LeftOut:
    """Measured cells of one run and hypervisor that do not belong to those kept.

    ``differing``: in what, as "name: theirs / that of the cells kept".
    """

    run_id: str
    hypervisor: str
    cells: int
    differing: tuple[str, ...]


@dataclass(frozen=True)
class Chosen:
    """The rows of a tidy table that belong together, and the cells that were left out of it."""

    table: pd.DataFrame
    left_out: tuple[LeftOut, ...]


def pooling_conflicts(rows: pd.DataFrame) -> tuple[str, ...]:
    """In what the conditions of these rows differ, as "name: one value / other value"."""
    conflicts = []
    for column in sorted(condition_columns(rows)):
        values = sorted({condition_text(value) for value in rows[column].unique()})
        if len(values) > 1:
            conflicts.append(_conflict(column, *values))
    return _once(conflicts)


def largest_set(table: pd.DataFrame, apart: Collection[str] = TREATMENT) -> Chosen:
    """The largest set of cells that were measured under the same conditions, on each hypervisor.

    Of the sets that the complete cells of a hypervisor fall into by their conditions, that with the most
    cells; of two as large the later one. KSM's own settings are compared within each policy, where policies
    may differ. What was not measured stays, unless the measured cells of its run were left out.

    Args:
        table: a tidy table, its runs oldest first.
        apart: columns in which cells may differ and belong together all the same, for they are told apart.
    """
    rows = table.to_dict("records")
    columns = [name for name in condition_columns(table) if name not in {_SAME.get(one) for one in apart}]
    of_policy = _of_policy(table)
    steps: list[tuple[tuple[str, ...], list[str]]] = [(("hypervisor",), columns)]
    if "policy" in apart:
        steps = [
            (("hypervisor",), [name for name in columns if not name.startswith(of_policy)]),
            (("hypervisor", "policy"), [name for name in columns if name.startswith(of_policy)]),
        ]
    measured = [at for at, row in enumerate(rows) if not pd.isna(row["boot_key"])]
    kept, left_out = measured, Counter[Left]()
    for group, names in steps:
        kept, more = _commonest(rows, kept, group, names)
        left_out += more
    runs = [(row["run_id"], row["hypervisor"]) for row in rows]
    gone = {runs[at] for at in measured} - {runs[at] for at in kept}
    unmeasured = {at for at, run in enumerate(runs) if run not in gone} - set(measured)
    return Chosen(
        table.iloc[sorted(unmeasured.union(kept))].reset_index(drop=True),
        tuple(LeftOut(run, host, cells, what) for (run, host, what), cells in left_out.items()),
    )


def _commonest(
    rows: Sequence[Row], places: Sequence[int], group: Sequence[str], columns: Sequence[str]
) -> tuple[list[int], Counter[Left]]:
    """Those of the places with the conditions that most of their group have, and what the others are."""
    seen = {
        at: (
            tuple(rows[at][name] for name in group),
            tuple((name, condition_text(rows[at][name])) for name in columns),
        )
        for at in places
    }
    complete = [seen[at] for at in places if rows[at]["status"] == COMPLETE]
    # The last of a group stands: what most have, and of these the latest.
    best = dict(sorted(complete, key=Counter(complete).__getitem__))
    kept, left_out = [], Counter[Left]()
    for at, (place, found) in seen.items():
        wanted = best.get(place, found)
        if found == wanted:
            kept.append(at)
        else:
            row = rows[at]
            left_out[str(row["run_id"]), str(row["hypervisor"]), differing(found, wanted)] += 1
    return kept, left_out


def condition_columns(rows: pd.DataFrame) -> list[str]:
    """Of a tidy table, the columns of what measurements must have in common."""
    return [
        name for name in map(str, rows.columns) if name.startswith((PROVENANCE, REQUESTED)) or name == RULE
    ]


def _of_policy(table: pd.DataFrame) -> tuple[str, ...]:
    """Beginnings of the columns that a policy decides: huge pages where some policy asks for them."""
    asked = {condition_text(value) for value in table.get(_THP_ASKED, ())} - {KEEP, condition_text(None)}
    return (_KNOBS, REQUESTED, _THP) if asked else (_KNOBS, REQUESTED)


def differing(theirs: Conditions, ours: Conditions) -> tuple[str, ...]:
    """In what two sets of the same conditions differ, as "name: theirs / ours"."""
    pairs = zip(theirs, ours, strict=True)
    return _once(
        sorted(_conflict(name, there, here) for (name, there), (_name, here) in pairs if there != here)
    )


def condition_text(value: Any) -> str:
    """A condition as text, the same whether a table holds it as a whole number or not."""
    if value is None or pd.isna(value):
        return "absent"
    # A column with an absent value holds whole numbers as floats.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _conflict(column: str, *values: str) -> str:
    # Twelve digits tell digests apart.
    short = (f"{value[:19]}..." if value.startswith("sha256:") else value for value in values)
    return f"{column.removeprefix(PROVENANCE)}: {' / '.join(short)}"


def _once(conflicts: Sequence[str]) -> tuple[str, ...]:
    """What was asked for and is so on the host need not be said twice."""
    return tuple(
        conflict
        for conflict in conflicts
        if not (conflict.startswith(REQUESTED) and conflict.removeprefix(REQUESTED) in conflicts)
    )

"""Two campaigns side by side, as text and JSON: in what they were measured differently, then what differs."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from analysis.measure.comparing import LESS, MEASURES, MORE, TOO_FEW, Comparison, Contrast, Line
from analysis.measure.statistics import LEAST_BOOTS, Summary
from analysis.measure.table import TREATMENT
from analysis.report.quantities import QUANTITIES, UNITS
from analysis.report.summary import Answer, described, measured_on, place, row_name, warnings
from analysis.report.tables import Grid, Part, heading, notes, table

OF_A = QUANTITIES["difference_percent"]


@dataclass(frozen=True)
class Side:
    """A or B: what it is called, what was given for it, and its runs summarised."""

    name: str
    given: str
    answer: Answer


@dataclass(frozen=True)
class Compared:
    """Two sides, and B less A."""

    a: Side
    b: Side
    comparison: Comparison

    @property
    def sides(self) -> tuple[Side, Side]:
        """A, then B."""
        return self.a, self.b

    @property
    def lines(self) -> list[Line]:
        """The lines without those of which a side is itself not pooled."""
        return [line for line in self.comparison.lines if not line.not_compared]


def comparison_parts(compared: Compared) -> list[Part]:
    """The comparison as text: first in what the two were measured differently."""
    parts = beginning(compared)
    for where, mine in groupby(compared.lines, key=lambda line: place(line.a)):
        parts += [heading(where), *map(line_grid, mine)]
    return [*parts, notes([*remarks(compared), *_legend(compared.lines)])]


def beginning(compared: Compared) -> list[Part]:
    """Which runs, on what they were measured, and in what their conditions differ."""
    parts: list[Part] = [
        "\n".join([f"{side.name}: {side.given}", *measured_on(side.answer.runs)]) for side in compared.sides
    ]
    a, b = (side.name for side in compared.sides)
    found = conditions_differing(compared.lines)
    if found:
        return [*parts, heading(f"Measured differently, {a} / {b}"), notes(found)]
    if compared.lines:
        parts.append("Measured under the same conditions.")
    return parts


def conditions_differing(lines: Sequence[Line]) -> list[str]:
    """In what the lines were measured differently, each once, with the lines where it is not all of them."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        for text in line.differing:
            found.setdefault(text, []).append(line)
    return [
        text if len(mine) == len(lines) else f"{text} (in {'; '.join(row_name(line.a) for line in mine)})"
        for text, mine in found.items()
    ]


def line_grid(line: Line) -> Grid:
    """One treatment, a row for each measure."""
    heads = ("measure", "B than A", "A", "B", "B - A", OF_A.head)
    return table(
        heads,
        [_row(name, line.contrasts[name]) for name in MEASURES],
        names=2,
        title=f"{row_name(line.a)}: {method(line)}",
    )


def method(line: Line) -> str:
    """Which interval it is, and over how many boots."""
    a, b = line.boots
    return f"paired, {_boots(a)}" if line.pairs else f"Welch, {a} and {_boots(b)}"


def of_a_percent(contrast: Contrast) -> float | None:
    """The difference over A; None where that is nothing."""
    return 100 * contrast.difference.mean / abs(contrast.a.mean) if contrast.a.mean else None


def full_name(summary: Summary) -> str:
    """A line in words, its place included."""
    return f"{row_name(summary)} ({place(summary)})"


def remarks(compared: Compared) -> list[str]:
    """What is left out and why."""
    a, b = (side.name for side in compared.sides)
    lines = []
    if not compared.comparison.lines:
        lines.append(
            f"! Nothing can be compared: {a} and {b} have no measured workload with the same policy, number "
            "and size of guests, and start in common."
        )
    for only, name, other in ((compared.comparison.only_a, a, b), (compared.comparison.only_b, b, a)):
        lines += [f"! {full_name(one)}: measured in {name} and not in {other}." for one in only]
    for line in compared.comparison.lines:
        for number, name, other in ((line.left_out[0], a, b), (line.left_out[1], b, a)):
            if number:
                lines.append(
                    f"! {full_name(line.a)}: {_boots(number)} of {name} left out, for {other} measured "
                    "nothing from the same checkpoint."
                )
    for side in compared.sides:
        lines += [f"! {side.name}: {line.removeprefix('! ')}" for line in warnings(side.answer)]
    return lines


def comparison_json(compared: Compared) -> str:
    """The comparison as JSON, see :func:`comparison_content`."""
    return json.dumps(comparison_content(compared), indent=2, ensure_ascii=False) + "\n"


def comparison_content(compared: Compared) -> dict[str, Any]:
    """a, b: what was given and its runs; quantities; differing; lines; only_a, only_b; notes.

    A line has ``interval`` (paired, welch), ``boots`` and ``left_out`` of A and of B, ``not_compared`` where
    the cells of one side differ among themselves, and its ``measures`` by name, null where they are not
    known: the estimates of ``a`` and ``b``, each boot's mean, ``difference`` (B less A) and what is ``shown``
    of B.
    """
    comparison = compared.comparison
    return {
        "schema_version": 1,
        **{
            key: {"given": side.given, "run_ids": [run.plan.run_id for run in side.answer.runs]}
            for key, side in zip("ab", compared.sides, strict=True)
        },
        "quantities": described(MEASURES),
        "differing": conditions_differing(compared.lines),
        "lines": [
            {
                **treatment(line.a),
                "interval": "paired" if line.pairs else "welch",
                "boots": line.boots,
                "left_out": line.left_out,
                "differing": line.differing,
                "not_compared": line.not_compared,
                "measures": {name: _measure(contrast) for name, contrast in line.contrasts.items()},
            }
            for line in comparison.lines
        ],
        "only_a": list(map(treatment, comparison.only_a)),
        "only_b": list(map(treatment, comparison.only_b)),
        "notes": [*remarks(compared), UNITS],
    }


def treatment(summary: Summary) -> dict[str, Any]:
    """What tells a line from another, for JSON."""
    return {name: getattr(summary, name) for name in ("hypervisor", *TREATMENT)}


def _measure(contrast: Contrast | None) -> dict[str, Any] | None:
    if contrast is None:
        return None
    return {**asdict(contrast), "difference": asdict(contrast.difference), "shown": contrast.shown}


def _row(name: str, contrast: Contrast | None) -> tuple[str, ...]:
    quantity = QUANTITIES[name]
    label = f"{quantity.label}, {quantity.unit}"
    if contrast is None:
        return (label, "not known", "-", "-", "-", "-")
    return (
        label,
        contrast.shown,
        quantity.estimate(contrast.a),
        quantity.estimate(contrast.b),
        quantity.estimate(contrast.difference, sign=True),
        OF_A.number(of_a_percent(contrast), sign=True),
    )


def _legend(lines: Iterable[Line]) -> list[str]:
    shown = [one.shown for line in lines for one in line.contrasts.values() if one is not None]
    if not shown:
        return []
    concluded = [one for one in shown if one != TOO_FEW]
    said = sum(one in (MORE, LESS) for one in concluded)
    by_chance = f"Shown are {said} of {len(concluded)} differences; if nothing differed, 1 in 20 would be."
    return [
        *([by_chance] if concluded else []),
        "±: half of the 95 % t interval over boots. Paired: of the differences of boots that both restored "
        "from the same checkpoint. Welch: of two independent sets of boots. Where it holds zero no "
        f"difference is shown; of fewer than {LEAST_BOOTS} boots it is printed as what it is, and nothing "
        "follows from it.",
        UNITS,
    ]


def _boots(number: int) -> str:
    return "1 boot" if number == 1 else f"{number} boots"
